from __future__ import annotations

import numpy as np
import pytest

from evaluations.core import statistics
from evaluations.core.statistics import (
    bootstrap,
    interval_of_mean,
    mean_interval,
    ratio,
    share_interval,
    t_quantile,
)


def test_ratio_by_hand():
    # totals 6 and 4; residuals 1 - 1.5, 5 - 4.5; sqrt(2 * 0.5) / 4
    found = ratio(np.array([1.0, 5.0]), np.array([1, 3]))
    assert found.value == 1.5
    assert found.standard_error == pytest.approx(0.25, rel=1e-12)


def test_ratio_of_one_story_has_no_error_and_of_none_no_value():
    assert ratio(np.array([3.0]), np.array([2])).standard_error is None
    assert np.isnan(ratio(np.array([0.0]), np.array([0])).value)


def test_standard_error_of_plain_means_is_the_textbooks():
    values = np.random.default_rng(0).normal(size=50)
    found = ratio(values, np.ones(50))
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 50**0.5, rel=1e-12)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    draws = np.random.default_rng(1)
    hits, widths, errors = 0, [], []
    for trial in range(300):
        counts = draws.integers(20, 60, size=60)
        sums = counts * (2.0 + draws.normal(scale=0.5, size=60))
        interval = bootstrap(sums, counts, resamples=300, seed=trial)
        hits += interval.low <= 2.0 <= interval.high
        widths.append(interval.high - interval.low)
        errors.append(ratio(sums, counts).standard_error)
    assert 0.90 <= hits / 300 <= 0.985
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.mean(errors), rel=0.08)


def test_bootstrap_is_seeded_and_chunks_change_nothing(monkeypatch):
    sums, counts = np.arange(10.0), np.arange(1, 11)
    whole = bootstrap(sums, counts, resamples=50, seed=3)
    monkeypatch.setattr(statistics, "CHUNK", 70)
    assert bootstrap(sums, counts, resamples=50, seed=3) == whole
    assert bootstrap(sums, counts, resamples=50, seed=4) != whole


def test_bootstrap_matches_a_loop():
    sums, counts = np.array([1.0, 4.0, 2.0, 3.0, 0.5]), np.array([1, 2, 2, 1, 3])
    draws = np.random.default_rng(5)
    loop = []
    for _ in range(40):
        chosen = draws.integers(5, size=5)
        loop.append(np.exp(sum(sums[i] for i in chosen) / sum(counts[i] for i in chosen)))
    found = bootstrap(sums, counts, resamples=40, seed=5, transform=np.exp)
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), rel=1e-12)


@pytest.mark.parametrize(
    ("sums", "counts"),
    [
        ([1.0], [1]),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1]),
        ([1.0, 2.0, 3.0, 4.0, np.nan], [1] * 5),
        ([0.0] * 5, [0] * 5),
    ],
)
def test_no_interval_where_none_can_be(sums, counts):
    assert bootstrap(np.array(sums), np.array(counts), resamples=10, seed=0) is None


def test_a_means_interval_is_students():
    assert t_quantile(2) == pytest.approx(4.30265, rel=1e-5)
    # 1..5: s = sqrt(2.5), t(0.975, 4) = 2.77645
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0], "neurons")
    assert (found.low, found.high) == pytest.approx((3 - 1.96324, 3 + 1.96324), rel=1e-5)
    assert found.method == "Student's t over 5 neurons"
    assert interval_of_mean(3.0, (2.5 / 5) ** 0.5, 5, "neurons") == found


@pytest.mark.parametrize(
    "values", [[], [1.0], [6.0, 7.0], [1.0, 2.0, 3.0, 4.0], [1.0] * 9, [1.0] * 5 + [np.nan]]
)
def test_a_mean_of_few_or_equal_values_has_no_interval(values):
    assert mean_interval(values) is None


def test_a_shares_interval_is_wilsons_and_stays_a_share():
    # 9 of 10 by hand: (p + z2/2n -+ z sqrt(p q / n + z2/4n2)) / (1 + z2/n), z = 1.959964
    found = share_interval(9, 10, "graphs")
    assert (found.low, found.high) == pytest.approx((0.59585, 0.98212), abs=1e-5)
    assert found.method == "Wilson, 10 graphs"
    assert share_interval(10, 10).high == 1.0
    assert share_interval(0, 10).low == 0.0
    assert share_interval(2, 4) is None
    with pytest.raises(ValueError, match="k"):
        share_interval(6, 5)
