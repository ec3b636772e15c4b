"""``circuits`` as a whole: curves of small models against other ways to compute them."""

from __future__ import annotations

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer

from evaluations.core.record import UPPER_BOUND, Metric, Record
from evaluations.suite.circuits.case import Case, held_out_case
from evaluations.suite.circuits.faithfulness import faithfulness
from evaluations.suite.circuits.frontier import candidates, metrics, report
from evaluations.suite.circuits.frontier.bench import Bench
from evaluations.suite.circuits.frontier.candidates import Candidate
from evaluations.suite.circuits.frontier.config import FrontierConfig
from evaluations.suite.circuits.frontier.data import FrontierData, ceiling
from evaluations.suite.circuits.frontier.evaluation import evaluate
from evaluations.suite.circuits.frontier.frontiers import Frontier, Point
from evaluations.suite.circuits.frontier.results import Curve
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.eap import attribution, first, ranking
from evaluations.suite.circuits.methods.find import FoundCircuit
from evaluations.suite.circuits.patched import kl_divergence
from evaluations.tasks.pairs import Competence, TaskPrompts
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.cases import copied, task
from tests.evaluations.suite.circuits.test_patched import _patched_by_hooks
from tests.evaluations.suite.circuits.tiny import tiny_model

QUICK = {
    "methods": ("acdc", "eap-ig"),
    "ablations": ("cf", "zero"),
    "points": 3,
    "random_circuits": 2,
    "restorations": 4,
    "resamples": 50,
}
SMALL = {**QUICK, "methods": ("eap-ig",), "ablations": ("cf",), "points": 3, "random_circuits": 1}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path))


def _tiny() -> HookedTransformer:
    """Two layers of two heads: every kind of edge, and a fifth of those of four heads."""
    return tiny_model(n_heads=2, d_head=8)


def _prompts(model: object, n: int = 6) -> TaskPrompts:
    return copied(model, dataclasses.replace(task(n=n), held_out=task(n=n, seed=7)))


@pytest.fixture(scope="module")
def model():
    return _tiny()


@pytest.fixture(scope="module")
def data(model):
    return FrontierData.of(_prompts(model))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The cache that ``result`` was made with."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def result(model, data, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAT_INTERP_CACHE", str(kept))
        return evaluate(model, data, FrontierConfig(**QUICK))


def _mask(graph: Graph, circuit: dict) -> torch.Tensor:
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    for edge in circuit["edges"]:
        kept[graph.edge_named(edge["source"], edge["destination"])] = True
    return kept


def _figures(result) -> dict:
    return {metric.name: metric for metric in result.metrics}


def test_every_curve_has_its_null_task_and_random_circuits(result):
    found = {(c["ablation"], c["method"], c["null"]) for c in result.extra["curves"]}
    assert found == {
        (ablation, method, null)
        for ablation in ("cf", "zero")
        for method, null in (
            ("acdc", False),
            ("acdc", True),
            ("eap-ig", False),
            ("eap-ig", True),
            ("all", False),
            ("all", True),
            ("random", False),
        )
    }
    figures = _figures(result)
    assert len(figures) == len(result.metrics)
    for name in ("e50", "e20", "e10", "e05", "faithful", "area"):
        for curve in ("cf", "cf_acdc", "zero_eap_ig", "zero_null", "cf_random"):
            assert f"{name}_{curve}" in figures
    for metric in result.metrics:
        assert (metric.value is None) == bool(metric.reasons), metric.name


def test_a_circuits_cost_is_that_of_patching_by_hooks(model, data, result):
    """The kept edges of a record, run by hooks on the model itself, cost what the record says."""
    graph, held = Graph.of(model), data.prompts.held_out
    rows = [one for one in result.extra["circuits"] if not one["null"]]
    assert {one["ablation"] for one in rows} == {"cf", "zero"}
    for row in rows:
        kept, kls = _mask(graph, row["circuit"]), []
        for batch in held.batches:
            clean = _sources(model, graph, batch.clean)
            replaced = _sources(model, graph, batch.corrupted)
            if row["ablation"] == "zero":
                replaced = torch.zeros_like(clean)
            own = _tiny()
            patched = _patched_by_hooks(own, graph, batch.clean, kept, replaced)
            kls.append(kl_divergence(model(batch.clean)[:, -1], patched))
        assert float(torch.cat(kls).mean()) == pytest.approx(row["held"], abs=1e-9)


def _sources(model, graph, tokens):
    from evaluations.suite.circuits.forward import embed, run

    return run(model, graph, embed(model, tokens)).sources


def test_points_are_chosen_on_fit_prompts_and_plotted_on_held_out_ones(model, data, result):
    curve = _curve(result, "cf", "eap-ig")
    case = Case.of(model, data.prompts, "resample")
    held = held_out_case(case, "resample")
    scores = attribution(case, "kl")
    tried = {}
    sizes = FrontierConfig(**QUICK).cuts(case.graph.n_edges)
    for signed in (False, True):
        for size in [0, *sizes]:
            kept = on_paths(case.graph, first(ranking(case.graph, scores, signed=signed), size))
            tried[kept.numpy().tobytes()] = kept
    fit = [(int(k.sum()), float(case.outcome(k).kl.mean()), k) for k in tried.values()]
    wanted = [
        (n, cost, kept)
        for n, cost, kept in sorted(fit, key=lambda one: one[:2])
        if all(not (m <= n and other <= cost and (m, other) != (n, cost)) for m, other, _ in fit)
    ]
    assert [(p["edges"], pytest.approx(p["fit"])) for p in curve["points"]] == [
        (n, cost) for n, cost, _ in wanted
    ]
    for point, (_, _, kept) in zip(curve["points"], wanted, strict=True):
        outcome = held.outcome(kept)
        assert point["held"] == pytest.approx(float(outcome.kl.mean()))
        assert point["faithfulness"] == pytest.approx(faithfulness(held, outcome).value)
        assert point["low"] <= point["held"] <= point["high"]
    assert len(curve["tried"]) == len(fit)


def _curve(result, ablation: str, method: str, null: bool = False) -> dict:
    (found,) = (
        c
        for c in result.extra["curves"]
        if (c["ablation"], c["method"], c["null"]) == (ablation, method, null)
    )
    return found


def test_all_methods_together_are_never_worse_on_the_fit_prompts(result):
    for ablation in ("cf", "zero"):
        together = _curve(result, ablation, "all")["points"]
        for method in ("acdc", "eap-ig"):
            for point in _curve(result, ablation, method)["points"]:
                best = min(one["fit"] for one in together if one["edges"] <= point["edges"])
                assert best <= point["fit"]


def test_a_model_that_fails_the_task_has_curves_and_no_numbers(model):
    prompts = _prompts(model)

    def swapped(some: TaskPrompts) -> TaskPrompts:
        batches = tuple(dataclasses.replace(b, right=b.wrong, wrong=b.right) for b in some.batches)
        return dataclasses.replace(some, batches=batches)

    wrong = dataclasses.replace(swapped(prompts), held_out=swapped(prompts.held_out))
    result = evaluate(model, FrontierData.of(wrong), FrontierConfig(**SMALL))
    metric = _figures(result)["e20_cf"]
    assert metric.value is None
    assert metric.reasons == {"accuracy below 0.9": 1}
    assert "does not do the task" in result.extra["marked"]
    assert _curve(result, "cf", "eap-ig")["points"]


def test_without_a_null_task_there_are_no_numbers(model, data):
    # one prompt of each length has no peers whose words could be exchanged
    def alone(some: TaskPrompts) -> TaskPrompts:
        tokens = some.batches[0].clean
        batches = [
            dataclasses.replace(
                some.batches[0][[row]],
                clean=tokens[[row], : 4 + row],
                corrupted=some.batches[0].corrupted[[row], : 4 + row],
            )
            for row in range(5)
        ]
        return TaskPrompts("alone", tuple(batches), some.texts[:5])

    long = dataclasses.replace(task((10,), n=5), held_out=task((10,), n=5, seed=7))
    prompts = dataclasses.replace(alone(long), held_out=alone(long.held_out))
    result = evaluate(model, FrontierData.of(copied(model, prompts)), FrontierConfig(**SMALL))
    assert result.extra["no_null"]
    assert not any(curve["null"] for curve in result.extra["curves"])
    reasons = _figures(result)["e20_cf_eap_ig"].reasons
    assert list(reasons) == ["no null task: no other prompt changes at the same places"]


def test_what_is_done_is_not_done_again(model, data, result, kept, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(kept))
    monkeypatch.setattr(candidates, "attribution", None)
    monkeypatch.setattr(candidates, "by_acdc", None)
    monkeypatch.setattr(Case, "_outcome", _once_a_case(Case._outcome))
    again = evaluate(model, data, FrontierConfig(**QUICK))
    assert again.metrics == result.metrics
    assert again.extra == result.extra


def _once_a_case(outcome):
    """Whole models may be run again, circuits not."""

    def run(case, logits):
        assert all(
            torch.equal(bucket.logits, own)
            for bucket, own in zip(case.buckets, logits, strict=True)
        )
        return outcome(case, logits)

    return run


def test_a_damaged_cache_is_made_again(model, data, result, kept, tmp_path, monkeypatch, caplog):
    own = tmp_path / "damaged"
    shutil.copytree(kept, own)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(own))
    for path in own.rglob("*.jsonl"):
        lines = path.read_text().splitlines()
        broken = [lines[0][:-5], '{"name": "x", "other": 1}', "[]", *lines[3:-1], lines[-1][:9]]
        path.write_text("\n".join(broken))
    for path in own.rglob("scores-*.json"):
        path.write_text("{")
    assert evaluate(model, data, FrontierConfig(**QUICK)).metrics == result.metrics
    assert "measured again" in caplog.text


def test_restored_edges_by_hand(model, data, result):
    """The rise of a circuit's cost, each draw computed on its own."""
    (row,) = (
        one
        for one in result.extra["circuits"]
        if (one["ablation"], one["method"], one["null"]) == ("cf", "acdc", False)
    )
    case = Case.of(model, data.prompts, "resample")
    held = held_out_case(case, "resample")
    kept = _mask(case.graph, row["circuit"])
    generator = torch.Generator().manual_seed(0)
    kls = [
        held.outcome(kept | (torch.rand(case.graph.n_edges, generator=generator) < 0.5)).kl
        for _ in range(QUICK["restorations"])
    ]
    wanted = float(torch.stack(kls).mean() - held.outcome(kept).kl.mean())
    metric = _figures(result)["restored_cf_acdc"]
    assert metric.value == pytest.approx(wanted)
    assert metric.interval.low <= wanted <= metric.interval.high


def test_the_ceiling_is_what_the_mean_prediction_costs(model, data):
    logs = torch.cat([model(b.clean)[:, -1].log_softmax(-1) for b in data.prompts.batches])
    mean = logs.exp().mean(0)
    wanted = (logs.exp() * (logs - mean.log())).sum(-1).mean()
    found = ceiling(model, [data.prompts])
    assert found == pytest.approx(float(wanted))
    assert 0 < found <= math.log(len(logs))


def test_held_out_prompts_with_a_text_of_the_others_are_left_out(model):
    prompts = _prompts(model)
    mixed = dataclasses.replace(prompts, held_out=prompts.subset(range(prompts.n)))
    with pytest.raises(UserError, match="12 prompts to find circuits on and 0 others"):
        evaluate(model, FrontierData.of(mixed), FrontierConfig(**QUICK))


def test_a_model_that_ignores_its_prompt_has_an_empty_circuit(model):
    """Nothing costs anything: the empty circuit is a result, and shares of 0 are not reported."""
    own = _tiny()
    for name, parameter in own.named_parameters():
        if "W_U" in name:
            parameter.data.zero_()
    result = evaluate(own, FrontierData.of(_prompts(own)), FrontierConfig(**SMALL))
    points = _curve(result, "cf", "eap-ig")["points"]
    assert [point["edges"] for point in points] == [0]
    figures = _figures(result)
    assert figures["accuracy"].value == 1
    for name in ("e20_cf_eap_ig", "area_cf_eap_ig", "e20"):
        assert figures[name].reasons == {"predictions do not depend on the prompt": 1}


@pytest.mark.parametrize("method", ["ugs", "edge-pruning"])
def test_circuits_of_searches_by_gradients_are_kept(model, data, monkeypatch, method):
    settings = {"methods": (method,), "ablations": ("oa",), "search_steps": 2, "search_prompts": 2}
    settings |= {"search_masks": 2, "penalties": (1e-3,), "sizes": (20,), "restorations": 1}
    settings |= {"exchanges": 1}
    settings |= {"starts": 1, "evaluations": 2}
    config = FrontierConfig(**{**SMALL, **settings})
    once = evaluate(model, data, config)
    curve = _curve(once, "oa", method)
    assert len(curve["tried"]) > 1
    known = ("price", "20 edges, edges exchanged")
    assert all(point["setting"].startswith(known) for point in curve["points"][1:])
    assert any(point["setting"] == known[1] for point in curve["points"])
    monkeypatch.setattr(candidates, "searched", None)
    assert evaluate(model, data, config).metrics == once.metrics


def test_sizes_are_in_equal_ratios_or_as_given():
    config = FrontierConfig(points=4)
    assert config.cuts(479) == [5, 21, 86, 359]
    assert config.cuts(8) == [2, 3, 4, 6]  # 2, 2.9, 4.2 and 6
    assert config.cuts(1) == [1]
    assert FrontierConfig(sizes=(20, 5, 900)).cuts(479) == [5, 20, 479]


def test_thresholds_are_in_equal_ratios_or_as_given():
    assert FrontierConfig(points=3).shares_of_ceiling() == pytest.approx([0.001, 0.01, 0.1])
    assert FrontierConfig(thresholds=(0.5, 0.1, 0.5)).shares_of_ceiling() == [0.1, 0.5]


def _bench(model, data, ablation="resample") -> Bench:
    return Bench(model, data.prompts, ablation, Graph.of(model), FrontierConfig(**QUICK))


def _acdc(monkeypatch, kept):
    """Let ACDC keep the first ``kept(tau)`` edges, and return the thresholds it will be run at."""
    ran = []

    def found(case, tau):
        ran.append(tau)
        n = case.graph.n_edges
        return FoundCircuit(torch.arange(n) < kept(tau), torch.zeros(n))

    monkeypatch.setattr(candidates, "by_acdc", found)
    return ran


def test_acdc_is_run_between_the_last_circuit_and_the_first_empty_one(model, data, monkeypatch):
    """Edges are kept up to a threshold of 0.03 I; the interval around it is halved three times."""
    monkeypatch.setattr(candidates, "REFERENCE", -1.0)  # no circuit costs so little: none follows
    bench = _bench(model, data)
    n_edges = bench.case.graph.n_edges
    ran = _acdc(monkeypatch, lambda tau: n_edges * (tau < 0.03))
    config = FrontierConfig(thresholds=(0.01, 0.04, 0.16))
    circuits = candidates.find_circuits("acdc", bench, config, 1.0)
    assert ran[:3] == [0.01, 0.04, 0.16]
    assert ran[3:] == pytest.approx([0.02, 0.02828, 0.03364], rel=1e-3)
    assert [one.n for one in circuits] == [0, n_edges]
    ran.clear()
    config = FrontierConfig(thresholds=(0.05, 0.16))  # only empty ones
    candidates.find_circuits("acdc", bench, config, 1.0)
    assert ran == [0.05]  # 0.16 is known


@pytest.mark.parametrize(
    ("thresholds", "first_dear", "expected"),
    [
        ((0.01, 0.03), 0.2, [0.01, 0.03, 0.06, 0.12, 0.24]),  # each twice the last
        ((0.05,), 0.2, [0.05, 0.1, 0.2]),
        ((0.01, 0.03), 0.03, [0.01, 0.03]),  # the smallest already costs too much
    ],
)
def test_thresholds_go_on_until_the_smallest_circuit_costs_more_than_a_fifth(
    model, data, monkeypatch, thresholds, first_dear, expected
):
    """All edges cost nothing; from ``first_dear`` I on a single edge stays, which costs plenty."""
    bench = _bench(model, data)
    n_edges = bench.case.graph.n_edges
    one = torch.arange(n_edges) < 1
    ceiling = bench.measure([one])[0].fit * 4.9  # more than a fifth, if only just
    ran = _acdc(monkeypatch, lambda tau: 1 if tau >= 0.99 * first_dear * ceiling else n_edges)
    config = FrontierConfig(thresholds=thresholds)
    found = candidates.find_circuits("acdc", bench, config, ceiling)
    assert ran == pytest.approx([share * ceiling for share in expected], rel=1e-3)
    # that edge alone costs more than none: edges are removed from the circuit above it
    assert [one.n for one in found][:2] == [0, 1]
    costs = [one.fit for one in bench.measure([one.kept for one in found])]
    within = [cost <= ceiling / 5 for cost in costs]
    assert within == sorted(within)
    assert within.count(False) in (2, 3)  # the last removal may leave that edge
    assert len(within) > 5


def test_thresholds_that_go_on_end_at_the_empty_circuit(model, data, monkeypatch):
    """All edges cost nothing at 0.01 to 0.04, none is left at 0.08: three more lie between.

    Edges are then removed until the circuit costs more than a fifth, and not beyond.
    """
    bench = _bench(model, data)
    n_edges = bench.case.graph.n_edges
    ran = _acdc(monkeypatch, lambda tau: n_edges * (tau < 0.05))
    ceiling = 2 * bench.empty.fit
    config = FrontierConfig(thresholds=(0.01 / ceiling, 0.02 / ceiling))
    none, first, *others = candidates.find_circuits("acdc", bench, config, ceiling)
    assert ran[:4] == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert len(ran) == 7
    assert all(0.04 < tau < 0.08 for tau in ran[4:])
    assert (none.n, others[-1].n) == (0, n_edges)
    assert len(others) > 2
    cost = {one.n: bench.measure([one.kept])[0].fit for one in (first, *others)}
    assert cost.pop(first.n) > ceiling / 5
    assert max(cost.values()) <= ceiling / 5
    monkeypatch.setattr(candidates, "smaller", None)  # what is done is read
    again = candidates.find_circuits("acdc", bench, config, ceiling)
    assert [one.n for one in again] == [0, first.n, *(one.n for one in others)]


@pytest.mark.parametrize("ceiling", [0.0, 1e-7])
def test_thresholds_do_not_go_on_where_nothing_depends_on_the_prompt(
    model, data, monkeypatch, ceiling
):
    """A share of no cost is no cost, however large: the search would not end."""
    bench = _bench(model, data)
    ran = _acdc(monkeypatch, lambda _: bench.case.graph.n_edges)
    candidates.find_circuits("acdc", bench, FrontierConfig(thresholds=(0.01, 0.02)), ceiling)
    assert len(set(ran)) <= 2


def test_thresholds_that_are_too_low_do_not_bound_a_fifth(model, data):
    """At 0.00002 I nearly all edges stay; going on gives the circuits of thresholds written out."""
    low = {**SMALL, "methods": ("acdc",)}
    written = tuple(1e-5 * 2**step for step in range(40))
    found, all_of_them = (
        evaluate(model, data, FrontierConfig(**{**low, "thresholds": thresholds}))
        for thresholds in ((1e-5, 2e-5), written)
    )
    curve, written_out = (
        next(one for one in result.extra["curves"] if one["method"] == "acdc" and not one["null"])
        for result in (found, all_of_them)
    )
    smallest = next(point["edges"] for point in curve["points"] if point["edges"])
    assert curve["summary"]["e20"]["value"] == written_out["summary"]["e20"]["value"] > smallest


@pytest.mark.parametrize(
    ("tried", "is_bound"), [([(0, 4.0), (5, 0.5)], True), ([(0, 4.0), (3, 4.1), (5, 0.5)], False)]
)
def test_the_smallest_circuit_that_was_tried_bounds_the_number_of_edges(tried, is_bound):
    """5 edges cost an eighth of I = 4. With 3 it costs more than with none: off the frontier."""
    none = Candidate(torch.zeros(9, dtype=torch.bool), "none")
    some = Candidate(torch.arange(9) < 5, "some")
    flat = np.zeros(6)
    points = [Point(none, 4.0, np.full(6, 4.0), flat), Point(some, 0.5, np.full(6, 0.5), flat)]
    frontier = Frontier(points, tried, 4.0, flat, flat, (1, 5), 20, 0)
    found = metrics.curve_metrics(
        [Curve("oa", "acdc", False, frontier)], Competence(1, 1, 1, 1, 2.0, None, 6, 0, 0), ""
    )
    e20 = next(one for one in found if one.name == "e20_oa_acdc")
    assert e20.value == 5
    assert (UPPER_BOUND in e20.description) == is_bound


def test_a_curve_that_costs_more_on_held_out_prompts_is_marked():
    """The smallest circuit within a fifth of I = 4 has 5 edges: 0.5 nats, 0.7 held out."""
    none = Candidate(torch.zeros(9, dtype=torch.bool), "none")
    some = Candidate(torch.arange(9) < 5, "some")
    flat = np.zeros(6)
    points = [
        Point(none, 4.0, np.full(6, 4.2), flat),
        Point(some, 0.5, np.array([0.6, 0.8] * 3), flat),
    ]
    frontier = Frontier(points, [], 4.0, flat, flat, (1, 5), 20, 0)
    assert frontier.excess == pytest.approx(0.4)
    assert frontier.is_overfitted
    higher = dataclasses.replace(
        frontier, points=[points[0], dataclasses.replace(points[1], fit=0.6)]
    )
    assert higher.excess == pytest.approx(1 / 6)
    assert not higher.is_overfitted
    without = dataclasses.replace(frontier, points=points[:1])
    assert without.excess is None
    assert not without.is_overfitted


def test_overfitted_curves_are_named_in_tables_and_warnings(result):
    shares = {"oa, acdc": 0.3, "oa, all methods": 0.3, "oa, acdc, null task": 0.4, "oa, ugs": 0.1}
    metrics = [
        Metric(f"excess_{place}", f"Held-out cost above fitted: {name}", share, "share")
        for place, (name, share) in enumerate(shares.items())
    ]
    # what a report of many models keeps of a curve is that it is there
    record = Record("circuits", {"name": "m"}, {}, {}, "", 0, metrics, {"curves": True})
    (line,) = report.warnings([record])
    assert line.startswith("m: overfitted, more than a fifth")
    assert "prompts: oa, acdc; more" in line
    known = _curve(result, "cf", "acdc")
    point = next(one for one in known["points"] if one["fit"] <= 0.2 * result.extra["ceiling"])
    assert known["excess"] == pytest.approx(point["held"] / point["fit"] - 1)
    assert _figures(result)["excess_cf_acdc"].value == known["excess"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("eapig",)}, "unknown method 'eapig': did you mean 'eap-ig'"),
        ({"ablations": ("one",)}, "unknown ablation 'one'"),
        ({"methods": ()}, "name at least one method"),
        ({"methods": ("acdc", "acdc")}, "every method is named once, not acdc,acdc"),
        ({"sizes": (0,)}, "sizes are numbers of edges, at least 1, not 0"),
        ({"penalties": (-1.0,)}, "penalties are prices in nats, at least 0, not -1.0"),
        ({"thresholds": (0.1, 0.0)}, "thresholds are shares of I, above 0, not 0.0"),
        ({"search_steps": 0}, "search_steps must be at least 1, not 0"),
        ({"points": 1}, "points must be at least 2, not 1"),
        ({"random_circuits": 0}, "random_circuits must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FrontierConfig(**settings)


def test_random_circuits_are_as_large_as_circuits_that_were_found(result):
    sizes = {
        point["edges"]
        for method in ("acdc", "eap-ig")
        for point in _curve(result, "cf", method)["points"]
    }
    points = _curve(result, "cf", "random")["points"]
    assert {point["edges"] for point in points} <= sizes
    tried = _curve(result, "cf", "random")["tried"]
    for point in points[1:]:
        costs = [cost for edges, cost in tried if edges == point["edges"]]
        assert len(costs) == 2
        assert point["fit"] == pytest.approx(np.mean(costs))


def test_overlap_is_that_of_the_circuits(model, result):
    known, graph = result.extra["overlap"], Graph.of(model)
    masks = [_mask(graph, one["circuit"]) for one in result.extra["circuits"]]
    assert known["edges"] == [int(mask.sum()) for mask in masks]
    for y, one in enumerate(masks):
        for x, other in enumerate(masks):
            union = int((one | other).sum())
            wanted = int((one & other).sum()) / union if union else None
            assert known["jaccard"][y][x] == wanted


def test_a_description_counts_the_prompts_of_the_ceiling(data):
    described = data.describe()
    assert described["n_ceiling"] == 24
    assert described["content"] == data.content != data.prompts.content
    assert FrontierData(data.prompts, (task(n=2),)).content != data.content
