"""The summary says which model is better only where several seeds show it."""

from __future__ import annotations

import dataclasses

import pytest

from evaluations.comparison.measures import Comparison
from evaluations.comparison.seeds import groups
from evaluations.comparison.selection import models
from evaluations.comparison.summary import answers
from evaluations.core.record import Interval, Metric
from evaluations.suite.ablate.report import HEADLINE as ABLATE
from evaluations.suite.circuits.report import HEADLINE as CIRCUITS
from evaluations.suite.gates.report import HEADLINE as GATES
from evaluations.suite.lm.report import HEADLINE as LM
from tests.evaluations.comparison.study_records import acdc, gates, lm, made

L4 = {"ablation": gates("local", 4)}
RANDOM = {"ablation": gates("local", 4, "random")}


def answer(records, name="lm", headline=LM):
    (found,) = answers(Comparison(groups(models(records))), {name: headline})
    assert found.text.endswith(".")
    assert not found.text.endswith("..")
    return found


def runs(base, gated, **more):
    """Perplexities by seed of a baseline and of local k = 4."""
    return [
        *(lm(f"baseline-s{seed}", seed, value) for seed, value in enumerate(base)),
        *(lm(f"local-k4-s{seed}", seed, value, **L4, **more) for seed, value in enumerate(gated)),
    ]


def test_three_seeds_whose_interval_leaves_0_out_give_a_verdict():
    found = answer(runs([2.0, 2.1, 2.2], [3.0, 3.12, 3.2]))
    assert found.verdict == "worse"
    assert found.text == (
        "Worse than baseline (2.100): perplexity 3.107 of local-k4 "
        "(difference +1.007 [+0.978, +1.035] over 3 seeds)."
    )
    assert answer(runs([3.0, 3.12, 3.2], [2.0, 2.1, 2.2])).verdict == "better"


def test_a_smaller_spoof_share_than_the_baselines_is_better():
    records = [
        made("ablate", f"{name}-s{seed}", seed, {"spoof_share": value + seed / 100}, **more)
        for name, value, more in (("baseline", 0.6, {}), ("local-k4", 0.4, L4))
        for seed in range(3)
    ]
    found = answer(records, "ablate", ABLATE)
    assert found.verdict == "better"
    assert "Better than baseline (0.610): spoof share R 0.410 of local-k4" in found.text


def test_an_interval_that_holds_0_gives_none():
    found = answer(runs([2.0, 2.1, 2.2], [2.1, 2.0, 2.2]))
    assert found.verdict == "cannot be told"
    assert "the interval of the difference holds 0" in found.text
    assert "difference 0.000" in found.text.replace("+", "")


@pytest.mark.parametrize(("seeds", "reason"), [(1, "one seed each"), (2, "2 seeds give no")])
def test_single_models_are_never_better(seeds, reason):
    found = answer(runs([2.0, 2.1][:seeds], [1.0, 1.1][:seeds]))
    assert found.verdict == "cannot be told"
    assert reason in found.text
    assert "better" not in found.text


def test_neurons_and_stories_of_one_model_are_no_seeds():
    sure = Interval(0.99, 1.01, 0.95, "bootstrap")
    records = [
        dataclasses.replace(one, metrics=[dataclasses.replace(one.metrics[0], interval=sure)])
        for one in runs([2.0], [1.0])
    ]
    assert answer(records).verdict == "cannot be told"


def test_an_edge_count_of_a_model_that_fails_the_task_is_not_compared():
    records = [acdc(f"baseline-s{seed}", seed, 30 + seed) for seed in range(3)]
    records += [acdc(f"local-k4-s{seed}", seed, 5, 0.5, **L4) for seed in range(3)]
    found = answer(records, "acdc", CIRCUITS)
    assert found.verdict == "cannot be told"
    assert "accuracy below 0.9, so that the edge count is not meaningful" in found.text
    assert "31.0 of baseline, 5.0 †/5.0 †/5.0 † of local-k4" in found.text


def test_a_model_that_is_not_better_than_its_control_is_not_praised_alone():
    records = runs([3.0, 3.1, 3.2], [2.0, 2.1, 2.2])
    for seed in range(3):
        records.append(lm(f"local-k4-random-s{seed}", seed, 2.0 + seed / 10, **RANDOM))
    found = answer(records)
    assert found.verdict == "better"
    assert "but not shown to be better than local-k4-random" in found.text


def test_other_settings_other_recipes_and_missing_values_are_named():
    assert "different settings" in answer(runs([2.0] * 3, [3.0] * 3, config={"stories": 5})).text
    other = answer(runs([2.0] * 3, [3.0] * 3, training={"steps": 9}))
    assert "differ in more than their gates" in other.text
    assert "no value" in answer(runs([2.0], [None])).text
    assert answer([lm("baseline-s0", 0, 2.0)]).text == (
        "Only one model was measured: perplexity 2.000 of baseline-s0."
    )


def test_a_warning_of_a_measurement_forbids_a_verdict():
    found = answer(runs([2.0] * 3, [3.0, 3.1, 3.2], extra={"health": ["too few stories"]}))
    assert found.verdict == "cannot be told"
    assert "a warning applies: too few stories" in found.text


def test_what_masks_carry_is_compared_with_zero():
    def leak(low, high):
        record = made("gates", "local-k4-s0", 0, {}, **L4)
        interval = Interval(low, high, 0.95, "bootstrap")
        metric = Metric("leak_mask_excess", "x", (low + high) / 2, interval=interval)
        return answer([dataclasses.replace(record, metrics=[metric])], "gates", GATES)

    assert leak(0.1, 0.3).verdict == "yes"
    assert (
        "0.200 of local-k4-s0 ([0.100, 0.300] over the stories of a single" in leak(0.1, 0.3).text
    )
    assert leak(-0.1, 0.3).verdict == "no"


def test_records_of_other_settings_are_not_compared():
    other = acdc("baseline-s0", 0, 30, data={"spec": "greater-than"})
    found = answer([other, lm("a", 0, 2.0)], "acdc", CIRCUITS)
    assert found.verdict == "cannot be told"
    assert "No record has the settings" in found.text
