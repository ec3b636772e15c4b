"""The evaluation as a whole: every figure there, right, and told when it cannot be had."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from evaluations.core.record import Record
from evaluations.suite.circuits.case import Case, finite_case, held_out_case
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.evaluation import evaluate as circuits
from evaluations.suite.circuits.faithfulness import cmd, cpr, curve, faithfulness, tau_ranking
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods import find
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.methods.eap import attribution, ranking
from evaluations.suite.circuits.methods.find import by_acdc, by_attribution
from evaluations.suite.circuits.metrics import mark
from evaluations.suite.circuits.patched import circuit_kl
from evaluations.tasks.pairs import Competence, PairBatch, TaskPrompts, competence
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.cases import doable, task
from tests.evaluations.suite.circuits.tiny import tiny_model

QUICK = {"tau": (0.05, 0.3), "random_circuits": 4, "bootstrap": 5, "null_draws": 5}
ALWAYS = {
    "accuracy",
    "logit_difference",
    "kl_corrupted",
    "edges",
    "edges_chosen",
    "circuit_kl",
    "held_out_kl",
    "faithfulness",
    "held_out_faithfulness",
    "cpr",
    "cmd",
    "random_faithfulness",
    "null_edges",
    "bootstrap_edges",
    "bootstrap_sd",
    "bootstrap_jaccard",
    "orders_edges",
    "orders_sd",
    "orders_jaccard",
    "margin",
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompts(model):
    return doable(model, dataclasses.replace(task(n=10), held_out=task(n=12, seed=7)))


@pytest.fixture(scope="module")
def result(model, prompts):
    return circuits(model, prompts, CircuitConfig(**QUICK))


def _figures(result):
    return {metric.name: metric for metric in result.metrics}


def test_everything_the_count_must_not_be_without_is_there(result, prompts):
    found = _figures(result)
    assert found.keys() >= ALWAYS
    assert len(found) == len(result.metrics)
    for name in ALWAYS:
        assert found[name].value is not None, name
        assert found[name].n, name
    for name in (
        "accuracy",
        "kl_corrupted",
        "circuit_kl",
        "held_out_kl",
        "faithfulness",
        "held_out_faithfulness",
        "cpr",
        "cmd",
        "random_faithfulness",
        "null_edges",
        "bootstrap_sd",
        "orders_sd",
    ):
        assert found[name].interval is not None, name
    assert found["circuit_kl"].n == prompts.n
    assert found["held_out_kl"].n == found["cpr"].n == prompts.held_out.n == 24
    assert found["random_faithfulness"].n == 4
    assert found["bootstrap_edges"].n == found["orders_jaccard"].n == found["null_edges"].n == 5


def test_what_is_held_out_is_measured_on_held_out_prompts(result, model, prompts):
    found = _figures(result)
    case = Case.of(model, prompts)
    kept = on_paths(case.graph, acdc(model, case.graph, case.buckets, 0.05).kept)
    held = Case.of(model, prompts.held_out)
    outcome = held.outcome(kept)
    assert found["held_out_kl"].value == pytest.approx(float(outcome.kl.mean()))
    assert found["held_out_kl"].value != pytest.approx(found["circuit_kl"].value)
    assert found["held_out_faithfulness"].value == faithfulness(held, outcome).value
    sweep = {tau: by_acdc(case, tau) for tau in (0.05, 0.3)}
    assert found["cpr"].value == pytest.approx(cpr(curve(held, tau_ranking(sweep))))
    assert found["cmd"].value == pytest.approx(cmd(curve(held, tau_ranking(sweep, signed=False))))
    assert "no edges at 0.1 %, 0.2 %" in found["cpr"].description
    assert result.extra["edges_without_rank"] == int(
        (~(sweep[0.05].all_chosen | sweep[0.3].all_chosen)).sum()
    )


def test_cpr_is_signed_and_cmd_is_not(model, prompts):
    config = CircuitConfig(method="eap", random_circuits=0, bootstrap=0, null_draws=0)
    found = _figures(circuits(model, prompts, config))
    held, scores = Case.of(model, prompts.held_out), attribution(Case.of(model, prompts), steps=1)
    signed, absolute = (
        curve(held, ranking(held.graph, scores, "greedy", signed)) for signed in (True, False)
    )
    assert found["cpr"].value == pytest.approx(cpr(signed))
    assert found["cmd"].value == pytest.approx(cmd(absolute))
    assert cpr(signed) != pytest.approx(cpr(absolute))


@pytest.mark.parametrize("ablation", ["zero", "mean", "cf_mean", "oa"])
@pytest.mark.parametrize("start", ["<bos>", None])
def test_held_out_edges_are_replaced_by_the_constants_of_the_other_prompts(
    model, prompts, ablation, start
):
    held_out = dataclasses.replace(prompts.held_out, note={"story_start": start})
    prompts = dataclasses.replace(prompts, note={"story_start": start}, held_out=held_out)
    case = Case.of(model, prompts, ablation)
    held = held_out_case(case, ablation)
    constants = case.buckets[0].replacement[:, :1, -1:]
    plain = []
    for bucket, own in zip(held.buckets, Case.of(model, prompts.held_out).buckets, strict=True):
        wanted = constants.expand_as(own.clean).clone()
        if start is not None:
            wanted[:, :, 0] = own.clean[:, :, 0]
        assert torch.equal(bucket.clean, own.clean)
        assert torch.equal(bucket.replacement.expand_as(wanted), wanted)
        plain.append(dataclasses.replace(own, replacement=wanted, first=0))
    kept = torch.rand(case.graph.n_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    if ablation == "oa":  # those are the empty circuit's, which an outcome fits a little further
        kept[:] = False
    assert float(held.outcome(kept).kl.mean()) == pytest.approx(
        circuit_kl(model, case.graph, plain, kept), rel=1e-3 if ablation == "oa" else 1e-6
    )


def test_old_records_of_constants_are_not_those_of_today():
    """In records of before, constants replaced BOS, and "mean" was one of corrupted prompts."""
    names = {
        ablation: CircuitConfig(ablation=ablation).recorded()["ablation"]
        for ablation in ("resample", "zero", "mean", "cf_mean")
    }
    assert names["resample"] == "resample"
    old = {"zero", "mean", "clean_mean"}
    assert not old & {*names.values()}
    assert len({*names.values()}) == 4


def test_how_constants_are_fitted_is_recorded_where_they_are():
    assert "starts" not in CircuitConfig().recorded()
    assert CircuitConfig(ablation="oa", starts=3).recorded()["starts"] == 3
    with pytest.raises(UserError, match="starts must be at least 1, not 0"):
        CircuitConfig(starts=0)


@pytest.mark.parametrize("ablation", ["mean", "cf_mean"])
def test_a_prompt_that_is_not_finite_is_in_no_mean(model, prompts, ablation):
    model = copy.deepcopy(model)
    token = int(prompts.batches[0].clean[0, 2])
    model.W_E[token] = torch.nan
    case, left_out = finite_case(model, prompts, ablation)
    bad = [(batch.clean == token).any(1) for batch in prompts.batches]
    assert 0 < left_out == int(torch.cat(bad).sum()) < prompts.n
    assert all(bucket.replacement.isfinite().all() for bucket in case.buckets)


def test_edges_off_every_path_are_not_edges_of_the_circuit(model, prompts, monkeypatch):
    graph = Case.of(model, prompts).graph
    chosen = torch.zeros(graph.n_edges, dtype=torch.bool)
    names = [
        ("embed", "resid_final"),
        ("embed", "m1"),
        ("m1", "resid_final"),  # on paths
        ("embed", "a0.h0.q"),
        ("a1.h2", "resid_final"),
    ]  # one end is nowhere
    chosen[[graph.edge_named(*name) for name in names]] = True
    monkeypatch.setattr(find, "first", lambda order, n: chosen)
    config = CircuitConfig(method="eap", random_circuits=2, bootstrap=5, null_draws=2)
    result = circuits(model, prompts, config)
    found = _figures(result)
    assert (found["edges"].value, found["edges_chosen"].value) == (3, 5)
    assert found["bootstrap_edges"].value == 3
    edges = result.extra["circuit"]["edges"]
    assert {(edge["source"], edge["destination"]) for edge in edges} == set(names[:3])
    assert len(result.extra["off_paths"]) == 2


def test_a_bfloat16_models_circuit_is_that_of_its_weights_in_float32(model, prompts, caplog):
    half = copy.deepcopy(model)
    half.to(torch.bfloat16, print_details=False)
    single = copy.deepcopy(half)
    single.to(torch.float32, print_details=False)
    config = CircuitConfig(tau=(0.05,), no_sweep=True, bootstrap=0, random_circuits=0, null_draws=0)
    found, exact = (circuits(one, prompts, config) for one in (half, single))
    assert found.metrics == exact.metrics
    assert found.extra["circuit"] == exact.extra["circuit"]
    assert found.extra["precision"] == "float32"
    assert "searched in float32" in caplog.text
    assert half.W_E.dtype == torch.bfloat16


def test_prompts_on_which_the_model_is_not_finite_are_left_out_and_counted(model, prompts, caplog):
    broken = copy.deepcopy(model)
    token = int(prompts.batches[0].clean[0, 0])
    broken.embed.W_E.data[token] = math.nan
    bad = sum(
        int(((batch.clean == token) | (batch.corrupted == token)).any(1).sum())
        for batch in prompts.batches
    )
    config = CircuitConfig(tau=(0.05,), no_sweep=True, bootstrap=0, random_circuits=0, null_draws=0)
    found = _figures(circuits(broken, prompts, config))
    assert found["circuit_kl"].n == prompts.n - bad
    assert found["kl_corrupted"].reasons == {"not finite": bad}
    assert f"{bad} of 20 prompts left out" in caplog.text
    broken.unembed.W_U.data[:, 3] = math.inf  # a token that is no answer: accuracy does not see it
    with pytest.raises(UserError, match="not finite on any prompt"):
        circuits(broken, prompts, config)


def test_the_circuit_is_acdcs_at_the_first_tau_unless_the_papers_is_among_them(
    result, model, prompts
):
    case = Case.of(model, prompts)
    direct = acdc(model, case.graph, case.buckets, 0.05)
    found = _figures(result)
    circuit = on_paths(case.graph, direct.kept)
    assert found["edges"].value == circuit.sum()
    assert found["edges_chosen"].value == direct.n_kept
    assert found["circuit_kl"].value == pytest.approx(direct.kl)
    assert found["margin"].value == pytest.approx(direct.margin)
    edges = result.extra["circuit"]["edges"]
    names = {(edge["source"], edge["destination"]): edge["score"] for edge in edges}
    kept = circuit.nonzero().flatten().tolist()
    assert names == {case.graph.edge_name(e): pytest.approx(float(direct.steps[e])) for e in kept}
    assert CircuitConfig(tau=(0.1, 0.03, 0.01)).threshold == 0.03
    assert CircuitConfig(tau=(0.1, 0.01)).threshold == 0.1


def test_a_sweep_gives_a_circuit_for_each_tau_and_one_tau_a_sweep_of_its_own(result):
    assert [row["tau"] for row in result.extra["sweep"]] == [0.05, 0.3]
    few, many = (row["edges"] for row in reversed(result.extra["sweep"]))
    assert few < many
    assert len(result.extra["curve"]) == 10
    assert CircuitConfig(tau=(0.02,)).swept() == [0.01, 0.02, 0.03, 0.1, 0.3, 1.0]
    assert CircuitConfig(no_sweep=True).swept() == [0.03]


def test_the_record_survives_its_file_and_the_model_its_evaluation(result, model):
    record = Record("acdc", {"weights_hash": "x"}, {}, {}, "h", 0, result.metrics, result.extra)
    back = Record.from_json(record.to_json())
    assert back.metrics == result.metrics
    assert back.extra["sweep"][0]["edges"] == result.extra["sweep"][0]["edges"]
    assert not model.training


def test_seeds_reproduce(result, model, prompts):
    again = circuits(model, prompts, CircuitConfig(**QUICK))
    assert again.metrics == result.metrics


def test_attribution_has_a_circuit_of_the_size_asked_for_and_no_order(model, prompts):
    config = CircuitConfig(method="eap-ig", edges=30, random_circuits=3, bootstrap=2, null_draws=2)
    result = circuits(model, prompts, config)
    found = _figures(result)
    direct = by_attribution(Case.of(model, prompts), config)
    assert found["edges_chosen"].value == 30
    assert found["edges"].value == direct.n == on_paths(Graph.of(model), direct.all_chosen).sum()
    assert result.extra["interpolation"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert found["cpr"].value is not None
    assert found["bootstrap_jaccard"].value is not None
    for name, reason in {
        "orders_edges": "no order",
        "null_edges": "size is given",
        "margin": "none tested",
    }.items():
        assert found[name].value is None
        assert reason in found[name].reasons
    assert result.extra["tau"] is None
    by_default = circuits(model, prompts, CircuitConfig(method="eap", bootstrap=0))
    assert _figures(by_default)["edges_chosen"].value == int(0.05 * direct.kept.numel())


@pytest.mark.parametrize("selection", ["greedy", "consistent", "positive"])
def test_both_rankings_of_attribution_are_recorded(model, prompts, selection):
    none = {"bootstrap": 0, "null_draws": 0, "random_circuits": 0}
    how = {"ranking": "signed", "selection": selection, "positive_ratio": 0.25}
    config = CircuitConfig(method="eap-ig", edges=12, **how, **none)
    result = circuits(model, prompts, config)
    signed, absolute = result.extra["rankings"]
    assert (signed["ranking"], absolute["ranking"]) == ("signed", "absolute")
    assert signed["circuit"] == result.extra["circuit"]["edges"]
    other = circuits(model, prompts, dataclasses.replace(config, ranking="absolute"))
    assert absolute["circuit"] == other.extra["circuit"]["edges"]
    assert absolute["kl"] == pytest.approx(_figures(other)["circuit_kl"].value)
    assert "ranking" in config.recorded()
    assert "ranking" not in dataclasses.replace(config, ranking="absolute").recorded()


@pytest.mark.parametrize("method", ["ugs", "hcgs", "edge-pruning"])
def test_a_search_by_masks_has_all_figures(model, prompts, method):
    short = {"search_steps": 20, "search_prompts": 4, "search_masks": 2}
    few = {"random_circuits": 2, "bootstrap": 1, "null_draws": 1}
    config = CircuitConfig(method=method, ablation="zero", **short, **few)
    result = circuits(model, prompts, config)
    found = _figures(result)
    assert found["edges"].value == len(result.extra["circuit"]["edges"])
    assert found["cpr"].value is not None
    is_sized = method != "edge-pruning"
    assert (found["null_edges"].value is not None) == is_sized
    assert result.extra["interpolation"] is None
    assert "rankings" not in result.extra
    assert config.recorded()["search_steps"] == 20
    assert "search_steps" not in CircuitConfig(search_steps=20).recorded()


def test_what_was_not_asked_for_or_cannot_be_had_says_so(model):
    lone = doable(model, task(n=1))  # no two prompts of one length, none held out
    config = CircuitConfig(tau=(50.0,), random_circuits=3, bootstrap=0, no_sweep=True)
    result = circuits(model, lone, config)
    found = _figures(result)
    assert found["edges"].value == 0
    for name, reason in {
        "cpr": "one tau ranks no edges",
        "null_edges": "no null task: no other prompt changes at the same places",
        "held_out_kl": "no held-out prompts",
        "held_out_faithfulness": "no held-out prompts",
        "random_faithfulness": "no edge of the circuit lies on a path",
        "bootstrap_edges": "--bootstrap 5",
    }.items():
        assert found[name].value is None, name
        assert found[name].n_failed > 0
        assert any(reason in one for one in found[name].reasons), (name, found[name].reasons)
    assert not any(math.isnan(m.value) for m in result.metrics if m.value is not None)


def test_a_task_without_difference_has_no_faithfulness(model, prompts):
    batches = tuple(PairBatch(b.clean, b.clean, b.right, b.wrong) for b in prompts.batches)
    same = dataclasses.replace(prompts, batches=batches)
    same = dataclasses.replace(same, held_out=same)
    found = _figures(circuits(model, same, CircuitConfig(**{**QUICK, "bootstrap": 0})))
    assert found["faithfulness"].value is None
    assert found["faithfulness"].n_failed == prompts.n
    assert found["cmd"].value is None
    assert found["kl_corrupted"].value == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_cannot_do_the_task_is_marked(model, prompts):
    swapped = tuple(PairBatch(b.clean, b.corrupted, b.wrong, b.right) for b in prompts.batches)
    wrong = TaskPrompts("wrong", swapped, prompts.texts)
    config = CircuitConfig(tau=(1.0,), no_sweep=True, bootstrap=0, null_draws=1)
    result = circuits(model, wrong, config)
    assert "does not do the task" in result.extra["marked"]
    assert mark(competence(model, prompts)) is None
    poor = Competence(0.8, 0.7, 0.87, 0.5, 1.0, 0.1, 100, 0, 0)
    assert "poorly" in mark(poor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": (0.0,)}, "positive number"),
        ({"tau": (float("nan"),)}, "positive number"),
        ({"tau": ()}, "there is no tau"),
        ({"method": "acd"}, "did you mean 'acdc'"),
        ({"engine": "slow"}, "unknown engine"),
        ({"ablation": "noise"}, "unknown ablation"),
        ({"edges": -1}, "at least 0, not -1"),
        ({"penalty": -0.1}, "penalty must be a number from 0 up, not -0.1"),
        ({"penalty": float("inf")}, "penalty must be a number from 0 up, not inf"),
        ({"search_steps": 0}, "search_steps must be at least 1, not 0"),
        ({"positive_ratio": 1.5}, "positive-ratio must be from 0 to 1, not 1.5"),
        ({"ranking": "abs"}, "unknown ranking"),
        ({"objective": "loss"}, "unknown objective"),
        ({"bootstrap": -1}, "bootstrap must be at least 0, not -1"),
        ({"null_draws": -1}, "null_draws must be at least 0, not -1"),
        ({"points": "other"}, "unknown points"),
        ({"method": "eap-ig", "steps": 0}, "at least one step"),
        ({"method": "eap", "score_by": "kl"}, "zero for every edge"),
        ({"engine": "auto-circuit", "ablation": "zero"}, "resample ablation only"),
        ({"engine": "auto-circuit", "method": "eap"}, "resample ablation only"),
        ({"engine": "auto-circuit", "objective": "logit-difference"}, "by KL with"),
    ],
)
def test_what_cannot_be_asked_is_one_line(settings, message):
    config = CircuitConfig()
    for name, value in settings.items():  # past the check of types, which only tests have
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message) as caught:
        config.__post_init__()
    assert "\n" not in str(caught.value)


def test_more_edges_than_there_are_is_one_line(model, prompts):
    with pytest.raises(UserError, match="not 5,000"):
        circuits(model, prompts, CircuitConfig(method="eap", edges=5000))


def test_ours_with_gates_has_a_circuit(make_model):
    model = make_model("local")
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(200, (4, 6), generator=generator)
    corrupted = torch.randint(200, (4, 6), generator=generator)
    batch = PairBatch(clean, corrupted, clean[:, 0], corrupted[:, 0])
    prompts = doable(model, TaskPrompts("any", (batch,), ()))
    config = CircuitConfig(tau=(1e-4,), no_sweep=True, bootstrap=0, random_circuits=0)
    prompts = dataclasses.replace(prompts, texts=task(n=4, lengths=(6,)).texts)
    assert _figures(circuits(model, prompts, config))["edges"].value > 0
