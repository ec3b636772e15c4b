"""Uncertainty of the figures: standard errors and bootstrap intervals over stories.

Tokens of one story are no independent draws, so the story is the unit that is resampled and the
cluster of the standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from evaluations.record import Interval

LEVEL = 0.95
CHUNK = 1 << 21  # resampled entries held at once: memory does not grow with stories x resamples


@dataclass(frozen=True)
class Ratio:
    """A mean per token (or per byte): ``sum(sums) / sum(counts)`` over stories.

    Attributes:
        value: the ratio; nan where nothing was counted.
        standard_error: clustered over stories, by linearisation; None with fewer than two stories.
    """

    value: float
    standard_error: float | None


def ratio(sums: Num[np.ndarray, " stories"], counts: Num[np.ndarray, " stories"]) -> Ratio:
    """The ratio of two totals over stories, and its standard error.

    With R the ratio and n stories: se = sqrt(n / (n - 1) * sum_i (s_i - R c_i)^2) / sum_i c_i
    (Cochran, Sampling Techniques, section 6.4, without the finite-population factor).
    """
    total = float(np.sum(counts, dtype=np.float64))
    if total == 0:
        return Ratio(float("nan"), None)
    value = float(np.sum(sums, dtype=np.float64)) / total
    n = len(sums)
    if n < 2:
        return Ratio(value, None)
    squares = float(np.sum((sums - value * counts) ** 2))
    return Ratio(value, float(np.sqrt(n / (n - 1) * squares)) / total)


def bootstrap(
    sums: Num[np.ndarray, " stories"],
    counts: Num[np.ndarray, " stories"],
    *,
    resamples: int,
    seed: int,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratios: ratios,
) -> Interval | None:
    """Percentile bootstrap interval of ``transform(sum(sums) / sum(counts))`` over stories.

    The same seed draws the same stories for every model that reads them, so two models' resamples
    are paired.

    Returns:
        The interval, or None with fewer than two stories or with sums that are not finite.
    """
    if len(sums) < 2 or resamples < 1 or not np.isfinite(sums).all() or not counts.any():
        return None
    ratios = transform(_resampled_ratios(sums, counts, resamples, seed))
    ratios = ratios[~np.isnan(ratios)]
    if not len(ratios):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    method = f"percentile bootstrap over {len(sums)} stories, {resamples} resamples, seed {seed}"
    return Interval(float(low), float(high), LEVEL, method)


def _resampled_ratios(
    sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int
) -> Float[np.ndarray, " resamples"]:
    draws = np.random.default_rng(seed)
    n = len(sums)
    rows = max(1, CHUNK // n)
    ratios = []
    for first in range(0, resamples, rows):
        drawn = draws.integers(n, size=(min(rows, resamples - first), n))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(ratios)
