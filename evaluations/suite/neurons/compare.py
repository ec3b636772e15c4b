"""By how much the neurons of one model are explained better than another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval
from evaluations.core.statistics import ENOUGH, LEVEL

CHUNK = 1 << 22
"""Resampled scores held at once."""


@dataclass(frozen=True)
class Difference:
    """Mean score of one model's neurons minus that of another's.

    It is of these two models, not over seeds: neurons of one model are not independent draws of
    what another seed would give, so there is no test of it here. Models that differ in the seed
    alone differ by this measure, too (16 of 27 such pairs had p < .05 when neurons were permuted).

    Attributes:
        standard_error: Welch's, sqrt(var_1 / n_1 + var_2 / n_2).
        interval: percentile bootstrap over the neurons of each; none of fewer than `ENOUGH`.
        n: neurons of each model.
    """

    value: float
    standard_error: float | None
    interval: Interval | None
    n: int


def difference(
    one: Float[np.ndarray, " units"],
    other: Float[np.ndarray, " units"],
    seed: int,
    resamples: int,
) -> Difference | None:
    """Of the means of two sets of scores of the same units; None where there are none."""
    from scipy import stats

    n = len(one)
    if not n:
        return None
    value = float(one.mean() - other.mean())
    if n < ENOUGH or resamples < 2:
        return Difference(value, None, None, n)
    error = float(np.sqrt(one.var(ddof=1) / n + other.var(ddof=1) / n))
    drawn = stats.bootstrap(
        (one, other),
        lambda mine, theirs, axis: mine.mean(axis) - theirs.mean(axis),
        n_resamples=resamples,
        batch=max(1, CHUNK // n),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn.bootstrap_distribution, [tail, 1 - tail])
    method = f"percentile bootstrap over the neurons of each, {resamples} resamples, seed {seed}"
    return Difference(value, error, Interval(float(low), float(high), LEVEL, method), n)
