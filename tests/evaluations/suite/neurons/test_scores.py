from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluations.core import statistics
from evaluations.suite.neurons.examiners.base import Unscored
from evaluations.suite.neurons.excerpts import HeldOut
from evaluations.suite.neurons.scores import (
    UnitScores,
    balanced_accuracy,
    columns,
    correlation,
    derangement,
    fuzzing_trial,
    interval_over_units,
    metrics,
    unscored,
)


def held(*fires: list[int]) -> HeldOut:
    return HeldOut(
        tuple(range(len(fires))),
        tuple(tuple(f"{place}-{i}" for i in range(len(row))) for place, row in enumerate(fires)),
        tuple(range(len(fires))),
        tuple(np.array(row, dtype=float) for row in fires),
        tuple(np.array(row, dtype=bool) for row in fires),
    )


def test_the_correlation_is_scipys_over_all_excerpts_together():
    draws = np.random.default_rng(0)
    true = [draws.normal(size=n) for n in (5, 1, 9)]
    said = [(row + draws.normal(size=len(row))).tolist() for row in true]
    expected = stats.pearsonr(np.concatenate(true), np.concatenate(said)).statistic
    assert correlation(true, said) == pytest.approx(expected)
    assert correlation(true, [(-3 * row + 1).tolist() for row in true]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("true", "said", "reason"),
    [
        ([], [], "no held-out excerpt"),
        ([[1.0, 1.0]], [[0.0, 1.0]], "constant activation"),
        ([[1.0, 2.0]], [[3.0, 3.0]], "constant prediction"),
        ([[1.0, 2.0]], [[3.0, np.nan]], "prediction not finite"),
    ],
)
def test_what_has_no_correlation_says_why(true, said, reason):
    assert correlation([np.array(row) for row in true], said) == Unscored(reason)


def test_balanced_accuracy_by_hand():
    truth = np.array([True, True, True, True, False])
    assert balanced_accuracy(truth, [True, True, True, False, False]) == pytest.approx(0.875)
    assert balanced_accuracy(truth, [True] * 5) == 0.5
    assert balanced_accuracy(~truth, [True] * 5) == 0.5
    assert balanced_accuracy(truth[:4], [True] * 4) == Unscored("it fires in every excerpt")
    assert balanced_accuracy(truth[4:], [True]) == Unscored("it fires in no excerpt")


def test_half_of_the_markings_are_wrong_with_as_many_tokens():
    unit = held([1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0], [0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0])
    trial = fuzzing_trial(unit, np.random.default_rng(0))
    assert not isinstance(trial, Unscored)
    marked, truth = trial
    usable = (0, 1, 3, 4)  # not the one without firing, nor the one that cannot be marked wrongly
    assert [one.tokens for one in marked] == [unit.tokens[place] for place in usable]
    assert [one.start for one in marked] == list(usable)
    assert truth.sum() == 2
    for one, place, right in zip(marked, usable, truth, strict=True):
        fires = set(np.flatnonzero(unit.fires[place]).tolist())
        assert len(one.marked) == len(fires)
        assert (one.marked == fires) if right else not one.marked & fires
    again = fuzzing_trial(unit, np.random.default_rng(0))
    assert again[0] == marked
    assert fuzzing_trial(held([1, 0], [0, 0]), np.random.default_rng(0)) == Unscored(
        "fewer than two excerpts to mark"
    )


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_gives_each_another_one_once(n):
    other = derangement(n, np.random.default_rng(n))
    assert sorted(other.tolist()) == list(range(n))
    assert (other != np.arange(n)).all()


def units() -> list[UnitScores]:
    found = []
    for index, value in enumerate([0.2, 0.4, None, 0.9]):
        unit = UnitScores(index // 2, index)
        if value is None:
            unit.fail(("simulation", "control"), "dead")
        else:
            unit.take("simulation", value)
            unit.take("control", Unscored("constant prediction"))
        found.append(unit)
    return found


def test_means_leave_out_what_has_no_score_and_count_it(monkeypatch):
    monkeypatch.setattr(statistics, "ENOUGH", 3)
    found = {one.name: one for one in metrics(units(), ("simulation", "control"), 0, 200)}
    mean = found["simulation"]
    values = np.array([0.2, 0.4, 0.9])
    assert (mean.value, mean.n, mean.n_failed) == (pytest.approx(0.5), 3, 1)
    assert mean.reasons == {"dead": 1}
    assert mean.standard_error == pytest.approx(stats.sem(values))
    assert mean.interval.low < 0.5 < mean.interval.high
    assert "over 3 neurons, 200 resamples" in mean.interval.method
    assert found["simulation_layer_0"].value == pytest.approx(0.3)
    assert found["simulation_layer_1"].n == 1
    assert found["simulation_layer_1"].standard_error is None
    assert found["control"].value is None
    assert found["control"].reasons == {"dead": 1, "constant prediction": 3}
    assert found["dead"].value == 1
    assert (found["unscored"].value, found["unscored"].reasons) == (1, {"dead": 1})


def test_the_share_that_is_scored_is_a_metric_with_wilsons_interval(monkeypatch):
    found = {one.name: one for one in metrics(units() * 5, ("simulation", "control"), 0, 0)}
    share = found["simulation_scored"]
    assert (share.value, share.n, share.reasons) == (0.75, 20, {"dead": 5})
    wanted = stats.binomtest(15, 20).proportion_ci(0.95, "wilson")
    assert (share.interval.low, share.interval.high) == pytest.approx((wanted.low, wanted.high))
    share = found["control_scored"]
    assert (share.value, share.reasons) == (0, {"dead": 5, "constant prediction": 15})
    nothing = {one.name: one for one in metrics([], ("simulation",), 0, 0)}["simulation_scored"]
    assert (nothing.value, nothing.reasons) == (None, {"no neuron": 1})


def test_a_record_says_which_units_have_no_score_and_why():
    assert unscored(units(), ("simulation", "control")) == {
        "simulation": {"dead": [2]},
        "control": {"constant prediction": [0, 1, 3], "dead": [2]},
    }


def test_the_interval_is_near_scipys():
    values = np.random.default_rng(1).normal(0.4, 0.25, 400)
    found = interval_over_units(values, 0, 4000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.004)
    assert found.high == pytest.approx(theirs.high, abs=0.004)


def test_a_record_gets_every_unit():
    told = columns(units(), ("simulation", "control"))
    assert told["layer"] == [0, 0, 1, 1]
    assert told["simulation"] == [0.2, 0.4, None, 0.9]
    assert told["reason"] == [
        "constant prediction",
        "constant prediction",
        "dead",
        "constant prediction",
    ]
