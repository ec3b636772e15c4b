"""The room as a whole: what it counts, refuses, controls, and draws."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import torch

from evaluations.cli import main
from evaluations.core.record import Record, read_records
from evaluations.suite.trace import SPEC, report
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.curves import TOO_SMALL
from evaluations.suite.trace.evaluation import TOO_FEW, TOO_LONG, UNKNOWN, default_facts, evaluate
from evaluations.suite.trace.figures import Figures
from evaluations.suite.trace.measure import (
    TRUTH,
    Bench,
    Losses,
    Plan,
    Traced,
    draw_layers,
    draw_span,
    split_by_subject,
    window_layers,
)
from evaluations.suite.trace.metrics import _damage, _peaks, planted_truth
from evaluations.suite.trace.run import Problem
from evaluations.tasks.facts import FactPrompts
from sat_interp._util.errors import UserError
from tests.evaluations.suite.trace.cases import some_facts, tiny
from tests.unlike_ours import unlike_ours

FAST = TraceConfig(n_facts=40, windows=(1, 3), draws=1, random_sets=1, evaluations=6, resamples=50)
LEAN = TraceConfig(
    methods=("oat", "gnt"),
    kinds=("mlp",),
    tokens=("last",),
    windows=(1,),
    draws=1,
    random_sets=0,
    evaluations=4,
    resamples=20,
)


@pytest.fixture(scope="module")
def traced():
    model = tiny()
    facts = some_facts(model, 40, decides="last")
    return model, facts, evaluate(model, facts, FAST)


def by_name(measurement):
    return {metric.name: metric for metric in measurement.metrics}


def record(measurement, **extra):
    return Record(
        evaluation="trace",
        model={"name": "tiny", "spec": "tiny", "weights_hash": "ab" * 32, "ablation": None},
        data={"spec": "facts", "content": "c0ffee"},
        config={},
        config_hash="0123456789ab",
        seed=0,
        metrics=measurement.metrics,
        extra={**json.loads(json.dumps(measurement.extra)), **extra},
        version=SPEC.version,
        started="2026-01-01T00:00:00+00:00",
    )


def test_windows_are_cut_at_both_ends():
    assert [window_layers(at, 5, 6) for at in (0, 2, 5)] == [
        (0, 1, 2),
        (0, 1, 2, 3, 4),
        (3, 4, 5),
    ]
    assert window_layers(1, 1, 3) == (1,)
    plan = Plan.of([("mlp", "last", 9), ("mlp", "last", 1)], 3)
    assert len(plan.problems) == 1 + 1 + 3  # all layers at once is one problem
    assert plan.problems[plan.at["mlp", "last", 9, 0]] == Problem("mlp", "last", (0, 1, 2))


def test_no_subject_is_on_both_sides():
    facts = some_facts(tiny(), 60).prompts
    fitted, held = split_by_subject(facts, 0)
    assert sorted(fitted + held) == list(range(60))
    names = [{facts[i].fact.subject for i in side} for side in (fitted, held)]
    assert not names[0] & names[1]
    assert len(names[0]) / len(names[0] | names[1]) == 0.6
    assert split_by_subject(facts, 1) != (fitted, held)


def test_a_span_lies_beside_the_subject():
    for fact in some_facts(tiny(), 30).prompts:
        span = draw_span(fact, 1, random.Random(0))
        if span:
            assert len(span) == len(fact.subject)
            assert not set(span) & {0, len(fact.tokens) - 1, *fact.subject}
            assert span == tuple(range(span[0], span[-1] + 1))


def test_every_curve_comes_with_its_controls(traced):
    _, _, measurement = traced
    found = by_name(measurement)
    for method in FAST.methods:
        for name in ("damage", "layers", "peak", "agreement", "found", "margin"):
            assert f"{name}_{method}" in found
        assert {f"found_{method}_w3", f"margin_{method}_w3"} <= found.keys()
        for kind in FAST.kinds:
            for tokens in FAST.tokens:
                metric = found[f"aie_{method}_{kind}_{tokens}_w3"]
                assert metric.n == measurement.extra["n_held"]
                assert metric.value is None or metric.value <= 1
    assert {"span_gnt", "span_oat", "gain_oat_gnt", "gain_oat_shared"} <= found.keys()
    assert {"kept_deciding", "kept_other"} <= found.keys()
    assert found["known"].value == 1
    for metric in measurement.metrics:
        assert metric.value is None or math.isfinite(metric.value)
        assert metric.value is not None or metric.reasons


def test_a_curve_has_a_value_for_each_layer(traced):
    _, _, measurement = traced
    curves = measurement.extra["curves"]
    wanted = len(FAST.methods) * len(FAST.kinds) * len(FAST.windows) * (len(FAST.tokens) + 2)
    assert len(curves) == wanted
    for curve in curves:
        assert len(curve["value"]) == len(curve["fit"]) == len(curve["logit"]) == 3
        for value, low, high in zip(curve["value"], curve["low"], curve["high"], strict=True):
            if value is not None:
                assert low - 1e-9 <= value <= high + 1e-9
    last = next(
        c
        for c in curves
        if (c["method"], c["kind"], c["tokens"], c["window"]) == ("gnt", "mlp", "all_subject", 1)
    )
    heat = next(h for h in measurement.extra["heat"] if (h["method"], h["kind"]) == ("gnt", "mlp"))
    assert len(heat["value"]) == 3
    assert last["value"][2] == pytest.approx(0)  # the last layer reads no other token


def test_a_fact_is_found_where_the_deciding_token_brings_back_more():
    """Two layers, four facts: by hand."""
    facts = some_facts(tiny(), 4, decides="first").prompts
    plan = Plan.of([("mlp", where, width) for where in TRUTH for width in (1, 3)], 2)
    at = {place: number for number, place in enumerate(plan.problems)}
    lost = torch.full((len(plan.problems), 4), 0.8, dtype=torch.float64)
    lost[at["mlp", "deciding", (0,)]] = torch.tensor([0.1, 0.5, 0.8, 0.8]).double()
    lost[at["mlp", "deciding", (1,)]] = torch.tensor([0.8, 0.5, 0.8, 0.6]).double()
    lost[at["mlp", "other", (0,)]] = torch.tensor([0.3, 0.8, 0.2, 0.8]).double()
    lost[at["mlp", "deciding", (0, 1)]] = torch.tensor([0.0, 0.0, 0.4, 0.8]).double()
    lost[at["mlp", "other", (0, 1)]] = torch.tensor([0.4, 0.4, 0.8, 0.8]).double()
    traced = Traced(plan, facts, torch.ones(4).bool(), torch.full((4,), 0.9).double())
    traced.held = {"gnt": Losses(lost, lost)}
    found = {one.name: one for one in planted_truth(Figures(traced, FAST))}
    assert found["found_gnt"].value == 3 / 4  # all but the third
    # sums of the losses over layers: 0.9 + 1.0 + 1.6 + 1.4 against 1.1 + 1.6 + 1.0 + 1.6
    assert found["margin_gnt"].value == pytest.approx((5.3 - 4.9) / 2 / 4 / 0.8)
    assert found["found_gnt_w3"].value == 3 / 4  # all but the last, a tie
    assert found["margin_gnt_w3"].value == pytest.approx((2.4 - 1.2) / 4 / 0.8)


def test_facts_without_an_unrelated_subject_are_counted_not_scored():
    """Two layers, four facts, by hand: the swap has no partner for the first one."""
    facts = some_facts(tiny(), 4, decides="first").prompts
    plan = Plan.of([("mlp", where, 1) for where in (*TRUTH, "last")], 2)
    at = {place: number for number, place in enumerate(plan.problems)}
    lost = torch.full((len(plan.problems), 4), 0.8, dtype=torch.float64)
    lost[at["mlp", "deciding", (0,)]] = torch.tensor([0.1, 0.5, 0.7, 0.9]).double()
    lost[at["mlp", "last", (1,)]] = torch.tensor([0.0, 0.2, 0.4, 0.3]).double()
    traced = Traced(plan, facts, torch.ones(4).bool(), torch.full((4,), 0.9).double())
    traced.held = {"swap": Losses(lost, lost).of(torch.tensor([False, True, True, True]))}
    traced.fitted = traced.held
    figures = Figures(traced, FAST)
    found = {one.name: one for one in [*planted_truth(figures), *all_curves(figures)]}
    assert found["found_swap"].value == 2 / 3
    assert found["damage_swap"].value == pytest.approx(0.8)
    assert found["aie_swap_mlp_last_w1"].value == pytest.approx(1 - 0.9 / 2.4)
    assert found["aie_swap_mlp_deciding_w1"].value == pytest.approx(1 - 2.1 / 2.4)
    for one in found.values():
        assert (one.n, one.n_failed, one.reasons) == (3, 1, {"no unrelated subject": 1})
    traced.held = {"swap": Losses(lost, lost).of(torch.zeros(4).bool())}
    (none,) = _damage(Figures(traced, FAST))
    assert none.value is None
    assert none.reasons == {"no unrelated subject": 4}


def all_curves(figures):
    return [*_damage(figures), *_peaks(figures)]


def test_a_method_that_finds_no_partner_leaves_the_fact_out():
    """The subject of three tokens is alone with that length."""
    model = tiny()
    facts = some_facts(model, 30, decides="last")
    tokens = facts.prompts[0].tokens
    alone = [
        dataclasses.replace(one, subject=tuple(range(1, 5))) if one.tokens == tokens else one
        for one in facts.prompts
    ]
    config = dataclasses.replace(LEAN, methods=("swap",), tokens=("last", "last_subject"), draws=3)
    alone_on = [split_by_subject(alone, seed)[1].count(0) for seed in range(9)].index(1)
    config = dataclasses.replace(config, seed=alone_on)
    found = by_name(evaluate(model, dataclasses.replace(facts, prompts=tuple(alone)), config))
    damage = found["damage_swap"]
    assert damage.n_failed == 1
    assert damage.reasons == {"no unrelated subject": 1}
    assert found["found_swap"].n == damage.n  # its subject has four tokens: no deciding one


def test_the_map_is_over_the_facts_that_have_the_token(traced):
    """Twin: the map of the facts alone that have a token between subject and last."""
    model, facts, _ = traced
    config = dataclasses.replace(LEAN, methods=("gnt",))
    short = [one for one in facts.prompts if len(one.tokens) == 6]
    moved = [dataclasses.replace(one, subject=(3, 4)) for one in short[: len(short) // 2]]
    some = (*moved, *short[len(moved) :])
    (grid,) = evaluate(model, dataclasses.replace(facts, prompts=some), config).extra["heat"]
    n = dict(zip(grid["tokens"], grid["n"], strict=True))
    assert 0 < n["next"] < n["last"]
    bench = Bench(model, some, [one.answer for one in some], 1, config)
    measured = bench.measure()
    plan, losses = measured.heat_plan, measured.heat["gnt"]
    has_next = torch.tensor([one.subject[-1] < 4 for one in measured.held_facts])
    assert int(has_next.sum()) == n["next"]
    at = grid["tokens"].index("next")
    for layer, row in enumerate(grid["value"]):
        p = losses.p[plan.at["mlp", "next", 1, layer]][has_next]
        assert row[at] == pytest.approx(1 - (p.mean() / losses.p[0][has_next].mean()).item())


def test_random_layers_are_as_many_as_a_window_in_the_middle():
    model = tiny(n_layers=9)
    facts = some_facts(model, 20, decides="last")
    config = dataclasses.replace(LEAN, methods=("gnt",), windows=(3, 5), random_sets=2)
    measured = Bench(
        model, facts.prompts, [one.answer for one in facts.prompts], 1, config
    ).measure()
    sizes = {w: {len(one.layers) for one in p[1:]} for w, p in measured.random_plans.items()}
    assert sizes == {3: {3}, 5: {5}}


@pytest.mark.parametrize(("n_layers", "size"), [(4, 3), (48, 9)])
def test_sets_of_layers_are_different_and_drawn_from_all(n_layers, size):
    found = draw_layers(n_layers, size, 200, random.Random(0))
    assert len(found) == len(set(found)) == min(200, math.comb(n_layers, size))
    assert all(len(set(one)) == size and list(one) == sorted(one) for one in found)
    assert {layer for one in found for layer in one} == set(range(n_layers))


def test_optimal_constants_beat_the_shared_one_where_they_are_fitted(traced):
    _, _, measurement = traced
    fitted = {
        (c["method"], c["kind"], c["tokens"], c["window"]): c["fit"]
        for c in measurement.extra["curves"]
    }
    better = [
        own - shared
        for (method, *rest), values in fitted.items()
        if method == "oat"
        for own, shared in zip(values, fitted["oat_shared", *rest], strict=True)
    ]
    certificates = measurement.extra["constants"]
    # softplus(20 x) / 20 is fitted, which exceeds (x)_+ by at most ln 2 / 20
    assert min(better) > -math.log(2) / 20 / certificates[0]["loss"]
    assert max(better) > 0.05
    assert certificates[0]["kind"] == "nothing"
    assert all(one["gap"] >= 0 and one["loss"] >= 0 for one in certificates)


def test_the_same_seed_gives_the_same_figures(traced):
    model, facts, _ = traced
    one, same, other = (
        [metric.value for metric in evaluate(model, facts, config).metrics]
        for config in (LEAN, LEAN, dataclasses.replace(LEAN, seed=1))
    )
    assert one == same != other


def test_facts_that_are_not_known_or_too_long_are_counted(traced):
    model, facts, _ = traced
    wrong = [
        dataclasses.replace(one, answer=(one.answer + 1) % 60) if number < 15 else one
        for number, one in enumerate(facts.prompts)
    ]
    wrong[-1] = dataclasses.replace(wrong[-1], tokens=(0,) + tuple(range(1, 20)))
    found = by_name(evaluate(model, FactPrompts("mixed", tuple(wrong)), LEAN))
    assert found["facts_traced"].value == 24
    assert found["facts_traced"].reasons == {UNKNOWN: 15, TOO_LONG: 1}
    assert found["known"].value == pytest.approx(24 / 40)
    own = evaluate(
        model, FactPrompts("mixed", tuple(wrong)), dataclasses.replace(LEAN, answer="own")
    )
    assert by_name(own)["facts_traced"].value == 39
    assert by_name(own)["known"].value == pytest.approx(24 / 40)


def test_a_model_that_knows_nothing_has_null_figures_with_the_reason(traced):
    model, facts, _ = traced
    wrong = [dataclasses.replace(one, answer=(one.answer + 1) % 60) for one in facts.prompts]
    measurement = evaluate(model, FactPrompts("unknown", tuple(wrong)), LEAN)
    found = by_name(measurement)
    assert found["facts_traced"].value == 0
    assert found["layers_oat"].value is None
    assert found["layers_oat"].reasons == {f"0 of 40 facts can be traced: {TOO_FEW}": 1}
    (table,) = report.tables([record(measurement)])
    assert [one.title for one in table.columns[1:]] == ["Facts known", "Facts traced"]
    assert f"Facts traced 40 of {record(measurement).model['name']}, mostly: {UNKNOWN}" in " ".join(
        table.remarks
    )
    assert all(not draw([record(measurement)]) for draw in report.FIGURES.values())


def test_a_subject_that_costs_nothing_has_no_effect():
    """The denominator is near zero: null, with the reason."""
    model = tiny()
    facts = some_facts(model, 40)
    with torch.no_grad():
        model.W_E[:] = model.W_E.mean(0)  # no token differs from any other
    same = [
        dataclasses.replace(one, answer=int(model(torch.tensor([one.tokens]))[0, -1].argmax()))
        for one in facts.prompts
    ]
    config = dataclasses.replace(LEAN, methods=("swap",))
    measurement = evaluate(model, FactPrompts("same", tuple(same)), config)
    found = by_name(measurement)
    assert not report.FIGURES[""]([record(measurement)])  # no panels without a curve
    metric = found["aie_swap_mlp_last_w1"]
    assert metric.value is None
    assert metric.reasons == {TOO_SMALL: metric.n}
    assert found["damage_swap"].value == pytest.approx(0, abs=1e-9)


def test_parallel_blocks_are_refused_by_name():
    model = unlike_ours(
        n_layers=2,
        d_vocab=60,
        n_ctx=12,
        parallel_attn_mlp=True,
        original_architecture="GPTJForCausalLM",
    )
    with pytest.raises(UserError, match="GPTJForCausalLM has parallel blocks"):
        evaluate(model, some_facts(tiny(), 20), LEAN)


def test_tokens_of_another_vocabulary_are_refused():
    facts = some_facts(tiny(), 20)
    with pytest.raises(UserError, match="the model knows only 30"):
        evaluate(tiny(d_vocab=30), facts, LEAN)


def test_a_model_without_mlps_has_attention_alone():
    model = unlike_ours(n_layers=2, d_vocab=60, n_ctx=12, attn_only=True).requires_grad_(False)
    both = dataclasses.replace(LEAN, kinds=("attn", "mlp"))
    measurement = evaluate(model, some_facts(model, 30), both)
    assert {curve["kind"] for curve in measurement.extra["curves"]} == {"attn"}
    with pytest.raises(UserError, match="no MLPs"):
        evaluate(model, some_facts(model, 30), LEAN)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"methods": ("oa",)}, "unknown method 'oa': did you mean 'oat'"),
        ({"kinds": ("mlps",)}, "unknown output 'mlps'"),
        ({"tokens": ("subject",)}, "unknown token 'subject'"),
        ({"windows": (4,)}, "odd numbers"),
        ({"windows": ()}, "odd numbers"),
        ({"windows": (1, 6, 9)}, "not 6"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"methods": ()}, "name at least one method"),
    ],
)
def test_options_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        TraceConfig(**settings)


def test_figures_are_drawn_for_each_model(traced, tmp_path):
    *_, measurement = traced
    one = record(measurement)
    assert report.tables([one])
    for name, draw in report.FIGURES.items():
        (figure,) = draw([one])
        figure.savefig(tmp_path / f"f{name}.png")
    frame = report.details(one, tmp_path)
    assert len(frame) == 3 * len(measurement.extra["curves"])
    assert {"layer", "aie", "aie_fit", "method"} <= set(frame)


def test_facts_are_the_planted_ones_for_models_trained_on_them():
    assert [default_facts(one) for one in ("facts", "facts:900", "demo", None)] == [
        "facts",
        "facts",
        "ioi",
        "ioi",
    ]


def test_a_gpt2_directory_that_knows_nothing_runs_to_the_end(foreign, tmp_path, monkeypatch):
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2LMHeadModel.config_class.from_pretrained(foreign)
    GPT2LMHeadModel(config).save_pretrained(foreign)
    facts = [
        {"subject": "Tom", "attribute": "Anna", "prompt": "Tom gave the ball to", "relation_id": 1},
        {"subject": "nobody", "attribute": "Anna", "prompt": "Tom gave the cat to"},
    ]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    assert main(["trace", str(foreign), "--facts", "facts.json", "--out", "res"]) == 0
    (found,), problems = read_records("res")
    assert not problems
    counted = found.metric("facts_traced")
    assert (counted.n, counted.n_failed) == (2, 2)
    assert found.data["left_out"] == {"the subject does not occur in the prompt": 1}
