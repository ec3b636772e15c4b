from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluations.suite.neurons.compare import difference

ONE = np.array([0.9, 0.8, 0.7, 0.75, 0.6])
OTHER = np.array([0.1, 0.3, 0.72, 0.2, 0.5])


def test_the_difference_and_its_error_are_the_textbooks():
    found = difference(ONE, OTHER, seed=0, resamples=200)
    assert found.value == pytest.approx(ONE.mean() - OTHER.mean())
    error = stats.ttest_ind(ONE, OTHER, equal_var=False)
    assert found.value / found.standard_error == pytest.approx(error.statistic)
    assert found.n == 5
    assert not hasattr(found, "p")  # neurons of one model are no draws over seeds


def test_the_interval_is_near_scipys_at_size():
    draws = np.random.default_rng(0)
    one, other = draws.normal(0.46, 0.25, 400), draws.normal(0.42, 0.25, 400)
    found = difference(one, other, seed=1, resamples=5000)

    def gap(x, y, axis=-1):
        return x.mean(axis) - y.mean(axis)

    theirs = stats.bootstrap((one, other), gap, method="percentile", rng=0, n_resamples=5000)
    assert found.interval.low == pytest.approx(theirs.confidence_interval.low, abs=0.004)
    assert found.interval.high == pytest.approx(theirs.confidence_interval.high, abs=0.004)


def test_it_is_seeded_and_clear_sets_differ():
    assert difference(ONE, ONE.copy(), seed=0, resamples=500).value == 0
    clear = difference(np.linspace(0.8, 0.9, 50), np.linspace(0.1, 0.2, 50), 0, 500)
    assert clear.interval.low > 0.6
    assert difference(ONE, OTHER, 3, 100) == difference(ONE, OTHER, 3, 100)


def test_too_few_have_no_interval():
    assert difference(ONE[:0], ONE[:0], 0, 100) is None
    assert difference(ONE[:4], OTHER[:4], 0, 100).interval is None
