from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from evaluations.neurons.compare import difference

ONE, OTHER = np.array([0.9, 0.8, 0.7, 0.75]), np.array([0.1, 0.3, 0.72])


def test_the_p_value_is_that_of_all_ways_to_deal_the_neurons_out():
    found = difference(ONE, OTHER, seed=0, resamples=20_000)
    pooled = np.concatenate([ONE, OTHER])
    as_far, ways = 0, list(combinations(range(7), 4))
    for chosen in ways:
        mine = np.isin(np.arange(7), chosen)
        as_far += abs(pooled[mine].mean() - pooled[~mine].mean()) >= abs(found.value) - 1e-12
    assert found.p == pytest.approx(as_far / len(ways), abs=0.01)
    assert found.value == pytest.approx(ONE.mean() - OTHER.mean())
    error = stats.ttest_ind(ONE, OTHER, equal_var=False)
    assert found.value / found.standard_error == pytest.approx(error.statistic)
    assert found.n == 7


def test_the_interval_and_p_are_near_scipys_at_size():
    draws = np.random.default_rng(0)
    one, other = draws.normal(0.46, 0.25, 300), draws.normal(0.42, 0.25, 500)
    found = difference(one, other, seed=1, resamples=5000)

    def gap(x, y, axis=-1):
        return x.mean(axis) - y.mean(axis)

    test = stats.permutation_test((one, other), gap, n_resamples=5000, rng=0)
    assert found.p == pytest.approx(test.pvalue, abs=0.02)
    theirs = stats.bootstrap((one, other), gap, method="percentile", rng=0, n_resamples=5000)
    assert found.interval.low == pytest.approx(theirs.confidence_interval.low, abs=0.004)
    assert found.interval.high == pytest.approx(theirs.confidence_interval.high, abs=0.004)


def test_equal_sets_do_not_differ_and_clear_ones_do():
    same = difference(ONE, ONE.copy(), seed=0, resamples=500)
    assert (same.value, same.p) == (0, 1)
    clear = difference(np.linspace(0.8, 0.9, 50), np.linspace(0.1, 0.2, 50), 0, 500)
    assert clear.p == pytest.approx(1 / 501)
    assert clear.interval.low > 0.6
    assert difference(ONE, OTHER, 3, 100) == difference(ONE, OTHER, 3, 100)


def test_too_few_have_no_interval():
    assert difference(ONE, ONE[:0], 0, 100) is None
    one = difference(ONE, ONE[:1], 0, 100)
    assert (one.interval, one.p) == (None, None)
