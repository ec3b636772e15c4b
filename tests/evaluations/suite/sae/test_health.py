from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evaluations.core.record import Metric
from evaluations.suite.sae.health import health_warnings
from evaluations.suite.sae.metrics import (
    NO_GAP,
    AutoencoderSums,
    autoencoder_metrics,
    paired_difference,
)

STORIES = 40


def measured(gap=1.0, noise=0.1, lost=0.1, dead=0, squares=0.2, variance=1.0):
    """40 stories of 10 tokens; zeroing costs ``gap`` nats a token, give or take ``noise``."""
    tokens = np.full(STORIES, 10)
    clean = np.linspace(20, 30, STORIES)
    spread = noise * np.where(np.arange(STORIES) % 2, 1.0, -1.0)
    return AutoencoderSums(
        tokens=tokens,
        nats={"clean": clean, "sae": clean + 10 * lost, "zero": clean + 10 * (gap + spread)},
        active=np.full(STORIES, 30.0),
        squares=squares * tokens,
        variance=variance * tokens,
        fired=np.array([0] * dead + [7] * (20 - dead)),
    )


def warnings_of(found, passes=None, *others):
    return health_warnings([*autoencoder_metrics(found, 0, 200), *others], passes)


def test_a_sound_autoencoder_has_no_mark():
    assert warnings_of(measured(), passes=2.0) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dead": 11}, "55% of the features are dead on the evaluation text"),
        ({"squares": 0.6}, "not converged: explains less than half of the variance"),
        ({"gap": 0.04, "noise": 0.1}, "costs 0.04 nats, with a standard error of 0.02"),
        ({"gap": -0.1}, "zeroing the activation does not increase the loss"),
        ({"gap": 0.4, "noise": 0.6, "lost": 0.39}, "the interval of the CE score is"),
        ({"variance": 0.0}, "the activation does not vary: explained variance is undefined"),
    ],
)
def test_each_fault_has_its_phrase(changes, match):
    assert sum(match in phrase for phrase in warnings_of(measured(**changes))) == 1


def test_half_of_the_features_may_be_dead():
    assert warnings_of(measured(dead=10)) == []


def test_dead_is_said_of_the_text_and_of_training():
    trained = Metric("dead_in_training", "Dead in training", 0.05, "share", n=20)
    (phrase,) = warnings_of(measured(dead=12), None, trained)
    assert phrase == "60% of the features are dead on the evaluation text, 5% in training"
    dead = next(
        one for one in autoencoder_metrics(measured(dead=12), 0, 10) if one.name == "dead_features"
    )
    assert "none of the 400 tokens of the 40 evaluation stories: 12" in dead.description


def test_a_small_text_read_many_times_is_marked():
    assert warnings_of(measured(), passes=40.0) == ["trained on 40 passes over a small text"]


def test_the_gap_is_the_scores_denominator_with_its_error_by_hand():
    found = {one.name: one for one in autoencoder_metrics(measured(gap=0.5, noise=0.1), 0, 500)}
    assert found["ce_gap"].value == pytest.approx(0.5)
    # residuals of +-1 nat a story: sqrt(40 / 39 * 40) / 400
    assert found["ce_gap"].standard_error == pytest.approx((40 / 39 * 40) ** 0.5 / 400)
    assert found["ce_score"].value == pytest.approx((0.5 - 0.1) / 0.5)


def brute_force(found, seed, resamples):
    """Scores of resampled stories, one resample at a time."""
    draws = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        drawn = draws.integers(STORIES, size=STORIES)
        gained = sum(found.nats["zero"][i] - found.nats["sae"][i] for i in drawn)
        possible = sum(found.nats["zero"][i] - found.nats["clean"][i] for i in drawn)
        scores.append(gained / possible)
    return np.quantile(scores, [0.025, 0.975])


def test_the_scores_interval_is_a_bootstrap_of_the_ratio_over_stories():
    found = measured(gap=0.5, noise=0.3)
    interval = next(
        one for one in autoencoder_metrics(found, 3, 300) if one.name == "ce_score"
    ).interval
    assert (interval.low, interval.high) == pytest.approx(tuple(brute_force(found, 3, 300)))


def test_a_ratio_over_nothing_has_no_interval():
    found = {one.name: one for one in autoencoder_metrics(measured(gap=0.01, noise=0.5), 0, 500)}
    gap = found["ce_gap"].interval
    assert gap.low < 0 < gap.high
    assert found["ce_score"].value is not None
    assert found["ce_score"].interval is None
    none = dataclasses.replace(
        measured(), nats=dict.fromkeys(("clean", "sae", "zero"), np.ones(40))
    )
    score = next(one for one in autoencoder_metrics(none, 0, 50) if one.name == "ce_score")
    assert (score.value, score.reasons) == (None, {NO_GAP: 1})


def test_paired_differences():
    one, other = [0.5 + i / 1000 for i in range(100)], [0.4 + i / 1000 for i in range(100)]
    assert paired_difference(one, other) == pytest.approx((0.1, 0.1))
    assert paired_difference(one, other[:50]) is None
    assert paired_difference(one, [None, *other[1:]]) is None
    assert paired_difference([], []) is None
