"""Methods compared over components, with bootstrap intervals paired over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval
from evaluations.core.statistics import ENOUGH, percentile_interval
from evaluations.suite.ablate.config import AblateConfig
from evaluations.suite.ablate.measure import Measured

LEAST_COMPONENTS = 4
"""Fewest components that a correlation is given for."""
SMALL = 1e-4
"""Costs below are rounding and sampling: their ranks say nothing."""

Means = Float[np.ndarray, "sample component"]
Statistic = Callable[[Means, Means], Float[np.ndarray, " sample"]]


@dataclass(frozen=True)
class Comparison:
    """A statistic of two methods over components.

    Attributes:
        value: None with fewer than ``LEAST_COMPONENTS`` components.
        n: components compared.
    """

    value: float | None
    interval: Interval | None
    n: int


def compare(
    measured: Sequence[Measured],
    methods: tuple[str, str],
    statistic: Statistic,
    config: AblateConfig,
) -> Comparison:
    """Compare two methods by their held-out costs.

    Args:
        statistic: of the mean costs by both methods, (sample, component) each.
    """
    known = [one for one in measured if all(one.held(method) is not None for method in methods)]
    if len(known) < LEAST_COMPONENTS:
        return Comparison(None, None, len(known))
    first, second = (costs(known, method) for method in methods)
    n = first.shape[1]
    value = float(statistic(*(resampled(one, np.ones((1, n))) for one in (first, second)))[0])
    counts = draw_counts(n, config.resamples, config.seed)
    samples = statistic(resampled(first, counts), resampled(second, counts))
    interval = percentile(samples, n, config)
    return Comparison(value if np.isfinite(value) else None, interval, len(known))


def costs(measured: Sequence[Measured], method: str) -> Float[np.ndarray, "component prompt"]:
    """Return a method's costs on held-out prompts; NaN where they could not be measured."""
    return np.array([one.kl[method] for one in measured], dtype=np.float64)


def draw_counts(n: int, resamples: int, seed: int) -> Float[np.ndarray, "sample prompt"]:
    """Return how often each prompt comes in each bootstrap sample."""
    draws = np.random.default_rng(seed)
    return draws.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def resampled(
    kl: Float[np.ndarray, "component prompt"], counts: Float[np.ndarray, "sample prompt"]
) -> Means:
    """Return the mean cost of each component in each sample."""
    known = np.isfinite(kl)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = counts @ np.where(known, kl, 0.0).T
        means: np.ndarray = sums / (counts @ known.T.astype(np.float64))
    return means


def percentile(
    samples: Float[np.ndarray, " sample"], n: int, config: AblateConfig
) -> Interval | None:
    """Return the percentile interval of bootstrap samples; None where most are not finite.

    Args:
        n: prompts or windows that were resampled.
    """
    finite = samples[np.isfinite(samples)]
    if len(finite) < max(ENOUGH, 0.9 * len(samples)):
        return None
    return percentile_interval(
        finite,
        f"percentile bootstrap over {n} {config.things}, {config.resamples} resamples, "
        f"seed {config.seed}",
    )


def spearman(first: Means, second: Means) -> Float[np.ndarray, " sample"]:
    """Return the rank correlation over components, ties at their average rank."""
    from scipy.stats import rankdata

    return _pearson(rankdata(first, axis=1), rankdata(second, axis=1))


def log_pearson(first: Means, second: Means) -> Float[np.ndarray, " sample"]:
    """Return the correlation of the logarithms over components."""
    return _pearson(np.log(np.maximum(first, 1e-12)), np.log(np.maximum(second, 1e-12)))


def mean_share(optimal: Means, other: Means) -> Float[np.ndarray, " sample"]:
    """Return the mean over components of min(1, optimal / other)."""
    share: np.ndarray = np.minimum(1, _ratio(optimal, other)).mean(1)
    return share


def median_share(optimal: Means, other: Means) -> Float[np.ndarray, " sample"]:
    """Return the median over components of min(1, optimal / other)."""
    share: np.ndarray = np.median(np.minimum(1, _ratio(optimal, other)), axis=1)
    return share


def total_share(optimal: Means, other: Means) -> Float[np.ndarray, " sample"]:
    """Return 1 - sum(optimal) / sum(other): the spoof share R for zero."""
    return 1 - _ratio(optimal.sum(1), other.sum(1))


def _ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = first / np.maximum(second, 1e-12)
    return ratio


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: np.ndarray = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return correlation
