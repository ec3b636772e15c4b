"""Uncertainty of the figures: standard errors and intervals, the same for all evaluations.

Every figure is shown with an interval, never with a standard error: ``[low, high]`` at 95 %.

- A ratio over stories (a mean per token): `bootstrap`. Tokens of one story are not independent, so
  the story is what is resampled, and the cluster of the standard error (`ratio`).
- A mean over neurons, prompts or graphs: `mean_interval` (Student's t).
- A share of them: `share_interval` (Wilson).

None of them gives an interval of fewer than `ENOUGH` values: it would be as wide as the scale, or
no wider than luck, and say nothing of other values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Num

from evaluations.core.record import Interval, Metric

LEVEL = 0.95
TAILS = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
"""Quantiles that an interval of ``LEVEL`` lies between."""
ENOUGH = 5
"""Fewest values that an interval is given for."""
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

    With R the ratio and n stories: se = sqrt(n / (n - 1) * sum_i (s_i - R c_i)^2) / |sum_i c_i|
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
    return Ratio(value, float(np.sqrt(n / (n - 1) * squares)) / abs(total))


@cache
def t_quantile(degrees: int) -> float:
    """The two-sided 95 % point of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, degrees))


def mean_interval(
    values: Sequence[float] | Num[np.ndarray, " values"], things: str = "values"
) -> Interval | None:
    """Interval of the mean of independent values: mean -+ t(0.975, n - 1) * s / sqrt(n).

    Args:
        things: what the values are of, for the interval's method: ``neurons``.

    Returns:
        The interval; None with fewer than `ENOUGH` values, with values that are not finite, or
        where all are equal (their spread is then not known to be 0).
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < ENOUGH or not np.isfinite(array).all() or (array == array[0]).all():
        return None
    return interval_of_mean(float(array.mean()), float(array.std(ddof=1)) / math.sqrt(n), n, things)


def interval_of_mean(
    mean: float, standard_error: float | None, n: int | None, things: str = "values"
) -> Interval | None:
    """As `mean_interval`, from the mean, its standard error and the number of values."""
    if not standard_error or not math.isfinite(standard_error) or n is None or n < ENOUGH:
        return None
    reach = t_quantile(n - 1) * standard_error
    return Interval(mean - reach, mean + reach, LEVEL, f"Student's t over {n:,} {things}")


def interval_of(metric: Metric) -> Interval | None:
    """A metric's own interval; of older records that have none, what its values give.

    That is Wilson's of a share, else Student's t from the standard error; none of fewer than
    `ENOUGH` values.
    """
    if metric.interval is not None or metric.value is None or metric.n is None:
        return metric.interval if metric.value is not None else None
    hits = metric.value * metric.n
    if metric.unit == "share" and 0 <= hits <= metric.n and abs(hits - round(hits)) < 1e-6:
        return share_interval(round(hits), metric.n)
    return interval_of_mean(metric.value, metric.standard_error, metric.n)


def share_interval(hits: int, n: int, things: str = "values") -> Interval | None:
    """Wilson's interval of a share, ``hits`` of ``n``; it stays within 0 and 1.

    Args:
        things: what is counted, for the interval's method: ``neurons``.

    Returns:
        The interval; None with fewer than `ENOUGH` values.

    Raises:
        ValueError: more hits than values, or fewer than none.
    """
    from scipy.stats import binomtest

    if n < ENOUGH:
        return None
    found = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high), LEVEL, f"Wilson, {n:,} {things}")


def bootstrap(
    sums: Num[np.ndarray, " stories"],
    counts: Num[np.ndarray, " stories"],
    *,
    resamples: int,
    seed: int,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratios: ratios,
    things: str = "stories",
) -> Interval | None:
    """Percentile bootstrap interval of ``transform(sum(sums) / sum(counts))`` over stories.

    The same seed draws the same stories for every model that reads them, so two models' resamples
    are paired.

    Args:
        things: what is resampled, for the record.

    Returns:
        The interval, or None with fewer than `ENOUGH` stories, fewer than two resamples, or sums
        that are not finite.
    """
    from scipy import stats

    if len(sums) < ENOUGH or resamples < 2 or not np.isfinite(sums).all() or not counts.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = stats.bootstrap(
            (sums, counts),
            lambda some, of, axis: some.sum(axis) / of.sum(axis),
            n_resamples=resamples,
            batch=max(1, CHUNK // len(sums)),
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    ratios = transform(drawn.bootstrap_distribution)
    ratios = ratios[~np.isnan(ratios)]
    if not len(ratios):
        return None
    method = f"percentile bootstrap over {len(sums)} {things}, {resamples} resamples, seed {seed}"
    return percentile_interval(ratios, method)


def percentile_interval(values: Sequence[float] | np.ndarray, method: str) -> Interval:
    """Return the interval that holds the middle 95 % of some values, such as resampled means.

    Args:
        values: the values, all finite, at least one.
        method: what they are, for the record.
    """
    low, high = np.quantile(values, TAILS)
    return Interval(float(low), float(high), LEVEL, method)
