"""Effects and what is read off them, against sums worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluations.suite.trace.curves import (
    Resamples,
    effective_layers,
    peak_over_mean,
    rank_correlation,
)


def test_an_effect_is_what_is_left_of_the_loss():
    corrupted = np.array([0.4, 0.2, 0.0, 0.6, 0.8])
    losses = np.stack([corrupted / 4, corrupted, 2 * corrupted, np.zeros(5)])
    resamples = Resamples(5, 200, 0)
    found = resamples.effects(losses, corrupted)
    assert found[:, 0] == pytest.approx([0.75, 0, -1, 1])  # below 0 where things get worse
    assert found[0] == pytest.approx(np.full(201, 0.75))
    uneven = resamples.effects(np.array([[0.4, 0, 0, 0, 0]]), corrupted)[0]
    value = resamples.value(uneven)
    assert value.value == pytest.approx(1 - 0.4 / 2.0)
    assert value.low < value.value < value.high
    counts = resamples.counts[1:]
    by_hand = 1 - counts[:, 0] * 0.4 / (counts @ corrupted)
    assert value.low == pytest.approx(np.nanquantile(by_hand, 0.025))


def test_facts_that_do_not_apply_are_left_out():
    corrupted = np.array([0.5, np.nan, 0.5, np.nan, 0.3])
    losses = np.array([[0.25, np.nan, 0.25, np.nan, 0.15]])
    assert Resamples(5, 10, 0).effects(losses, corrupted)[0, 0] == pytest.approx(0.5)


def test_with_next_to_no_damage_there_is_no_effect():
    corrupted = np.full(6, 0.019)
    resamples = Resamples(6, 20, 0)
    found = resamples.effects(corrupted[None] / 2, corrupted)
    assert np.isnan(found).all()
    assert resamples.value(found[0]).value is None
    assert resamples.value(resamples.effects(corrupted[None] / 2, corrupted + 0.002)[0]).value


def test_an_interval_needs_damage_in_nearly_all_resamples():
    """Where one fact has it all, a third of the resamples is without it: no interval."""
    corrupted = np.array([0.6, 0.0, 0.0, 0.0, 0.0, 0.0])
    resamples = Resamples(6, 400, 0)
    found = resamples.effects(corrupted[None] / 4, corrupted)[0]
    without = resamples.counts[:, 0] == 0
    assert 0.2 < without.mean() < 0.5
    assert np.isnan(found[without]).all()
    assert found[~without] == pytest.approx(0.75)
    value = resamples.value(found)
    assert (value.value, value.low, value.high) == (pytest.approx(0.75), None, None)

    some = np.array([0.6] * 5 + [0.0] * 15)
    losses = np.where(np.arange(20) < 3, 0.1, 0.0)
    resamples = Resamples(20, 2000, 1)
    found = resamples.effects(losses[None], some)[0]
    assert 0 < np.isnan(found).sum() < 40
    with np.errstate(all="ignore"):
        by_hand = (1 - resamples.counts @ losses / (resamples.counts @ some))[1:]
    by_hand = by_hand[resamples.counts[1:] @ some / 20 >= 0.02]
    assert resamples.value(found).low == pytest.approx(np.quantile(by_hand, 0.025))


def test_precision_of_even_and_of_peaked_curves():
    curves = np.array([[1.0, 1.0, 0.5, -2.0], [0.0, 1.0, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0]])
    found = effective_layers(curves)
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx(2)
    assert found[2] == pytest.approx(2)
    assert math.isnan(found[3])
    assert peak_over_mean(curves)[:3] == pytest.approx([3, 1.5, 1.5])


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (2, 9, 4)).astype(float)
    found = rank_correlation(one, other)
    for column in range(4):
        assert found[column] == pytest.approx(spearmanr(one[:, column], other[:, column]).statistic)
    one[0, 1] = np.nan
    assert math.isnan(rank_correlation(one, other)[1])


def test_effects_that_are_zero_but_for_rounding_are_tied():
    """Their order would decide half of the correlation; by hand, without the noise."""
    clean = np.array([0.0, 0.0, 0.0, 0.0, 0.3, 0.5])[:, None]
    other = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])[:, None]
    noise = 1e-6 * np.random.default_rng(0).standard_normal((6, 20))
    found = rank_correlation(clean + noise, np.repeat(other, 20, 1))
    assert found == pytest.approx(spearmanr(clean[:, 0], other[:, 0]).statistic)
