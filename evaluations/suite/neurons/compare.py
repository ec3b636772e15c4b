"""Difference between the mean explanation scores of two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval
from evaluations.core.statistics import ENOUGH, LEVEL

CHUNK = 1 << 22
"""Resampled scores in memory at once."""


@dataclass(frozen=True)
class Difference:
    """Mean score of one model's neurons minus that of another's.

    It describes two models and does not generalise over seeds: the neurons of a model are not
    independent samples of what other seeds would give. Hence it is not tested; models that differ
    only in the seed also differ (p < .05 for 16 of 27 such pairs when neurons are permuted).

    Attributes:
        standard_error: Welch's, sqrt(var_1 / n_1 + var_2 / n_2).
        interval: percentile bootstrap over the neurons of each; None for fewer than `ENOUGH`.
        n: number of neurons of each model.
    """

    value: float
    standard_error: float | None
    interval: Interval | None
    n: int


def difference(
    first: Float[np.ndarray, " units"],
    second: Float[np.ndarray, " units"],
    seed: int,
    resamples: int,
) -> Difference | None:
    """Return the difference of the mean scores of the same units; None if there are none."""
    from scipy import stats

    n = len(first)
    if not n:
        return None
    value = float(first.mean() - second.mean())
    if n < ENOUGH or resamples < 2:
        return Difference(value, None, None, n)
    error = float(np.sqrt(first.var(ddof=1) / n + second.var(ddof=1) / n))
    resampled = stats.bootstrap(
        (first, second),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        n_resamples=resamples,
        batch=max(1, CHUNK // n),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled.bootstrap_distribution, [tail, 1 - tail])
    method = f"percentile bootstrap over the neurons of each, {resamples} resamples, seed {seed}"
    return Difference(value, error, Interval(float(low), float(high), LEVEL, method), n)
