"""Whether the neurons of one model are explained better than another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluations.record import Interval
from evaluations.statistics import LEVEL

CHUNK = 1 << 22
"""Resampled scores held at once."""


@dataclass(frozen=True)
class Difference:
    """Mean score of one model's neurons minus that of another's.

    Attributes:
        standard_error: Welch's, sqrt(var_1 / n_1 + var_2 / n_2).
        interval: percentile bootstrap over the neurons of each.
        p: two-sided permutation test: how often neurons dealt out to the two models at random
            differ in their means by at least as much, (1 + times) / (1 + resamples).
    """

    value: float
    standard_error: float | None
    interval: Interval | None
    p: float | None
    n: int


def difference(
    one: Float[np.ndarray, " units"],
    other: Float[np.ndarray, " others"],
    seed: int,
    resamples: int,
) -> Difference | None:
    """Of the means of two sets of scores; None where one of them is empty."""
    if not len(one) or not len(other):
        return None
    value, n = float(one.mean() - other.mean()), len(one) + len(other)
    if min(len(one), len(other)) < 2 or resamples < 1:
        return Difference(value, None, None, None, n)
    error = float(np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)))
    draws = np.random.default_rng(seed)
    drawn, dealt = [], []
    pooled = np.concatenate([one, other])
    total, rows = pooled.sum(), max(1, CHUNK // n)
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        means = [
            part[draws.integers(len(part), size=(count, len(part)))].mean(1)
            for part in (one, other)
        ]
        drawn.append(means[0] - means[1])
        sums = draws.permuted(np.tile(pooled, (count, 1)), axis=1)[:, : len(one)].sum(1)
        dealt.append(sums / len(one) - (total - sums) / len(other))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    method = f"percentile bootstrap over the neurons of each, {resamples} resamples, seed {seed}"
    slack = 1e-12 * max(1.0, float(np.abs(pooled).max()))  # the same split, summed otherwise
    as_far = int((np.abs(np.concatenate(dealt)) >= abs(value) - slack).sum())
    return Difference(
        value,
        error,
        Interval(float(low), float(high), LEVEL, method),
        (1 + as_far) / (1 + resamples),
        n,
    )
