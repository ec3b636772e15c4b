"""Effects made of losses: curves over layers with their intervals, and what is read off them.

The average indirect effect of restoring something is

    AIE = 1 - mean of (p_clean - p_restored)_+ / mean of (p_clean - p_corrupted)_+

over facts: 1 where it brings every answer back, 0 where it changes nothing; below 0 where it makes
things worse (Li and Janson 2024, arXiv 2409.09951, section 4). Facts are resampled with
replacement, the same for all figures, for 95 % intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from evaluations.core.record import Interval
from evaluations.core.statistics import ENOUGH, LEVEL, TAILS

SMALLEST = 0.02
"""Least mean loss of the corrupted answers with which an effect is defined."""
DECIMALS = 4
"""Of values that are ranked: below that, order is rounding."""
TOO_SMALL = f"the corruption costs the answers less than {SMALLEST}"


@dataclass(frozen=True)
class Value:
    """A figure with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Resamples:
    """Facts drawn with replacement: how often each comes in each resample.

    Its first row is the facts themselves.
    """

    def __init__(self, n: int, resamples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
        self.n, self.seed, self.resamples = n, seed, resamples
        self.counts = np.concatenate([np.ones((1, n), dtype=np.int64), drawn]).astype(np.float64)

    def means(self, values: Float[np.ndarray, "_ fact"]) -> Float[np.ndarray, "_ resample"]:
        """Return each row's mean over the facts of every resample; nan entries are left out."""
        known = np.isfinite(values)
        counted = known.astype(np.float64) @ self.counts.T
        with np.errstate(divide="ignore", invalid="ignore"):
            means: np.ndarray = (np.where(known, values, 0.0) @ self.counts.T) / counted
        return means

    def effects(
        self, losses: Float[np.ndarray, "_ fact"], corrupted: Float[np.ndarray, " fact"]
    ) -> Float[np.ndarray, "_ resample"]:
        """Return the AIE of each row in every resample.

        Not a number in resamples that the corruption costs less than ``SMALLEST``, and in all of
        them where it costs the facts themselves less.
        """
        below = self.means(corrupted[None])
        is_defined = (below >= SMALLEST) & (below[0, 0] >= SMALLEST)
        effects: np.ndarray = 1 - self.means(losses) / np.where(is_defined, below, np.nan)
        return effects

    def interval(self, low: float, high: float) -> Interval:
        """Return an interval as a record states it."""
        method = f"percentile bootstrap over {self.n} facts, {self.resamples} resamples"
        return Interval(low, high, LEVEL, f"{method}, seed {self.seed}")

    def value(self, resampled: Float[np.ndarray, " resample"]) -> Value:
        """Return a figure and the percentiles of its resamples.

        No percentiles where the figure is not defined in more than 5 % of the resamples.
        """
        if not np.isfinite(resampled[0]):
            return Value(None)
        drawn = resampled[1:][np.isfinite(resampled[1:])]
        if self.n < ENOUGH or len(drawn) < LEVEL * (len(resampled) - 1) or not len(drawn):
            return Value(float(resampled[0]))
        low, high = np.quantile(drawn, TAILS)
        return Value(float(resampled[0]), float(low), float(high))


def effective_layers(
    effects: Float[np.ndarray, "layer resample"],
) -> Float[np.ndarray, " resample"]:
    """Return exp of the entropy over layers of the effects above 0, as shares of their sum.

    1 where one layer has it all, the number of layers where all have the same; nan without any.
    """
    above = effects.clip(min=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = above / above.sum(0)
        terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0)
        found: np.ndarray = np.exp(-terms.sum(0))
    return np.where(np.isfinite(share).all(0), found, np.nan)


def peak_over_mean(effects: Float[np.ndarray, "layer resample"]) -> Float[np.ndarray, " resample"]:
    """Return the largest effect over the mean of all layers, those below 0 taken as 0."""
    above = effects.clip(min=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = above.max(0) / above.mean(0)
    return ratio


def rank_correlation(
    one: Float[np.ndarray, "point resample"], other: Float[np.ndarray, "point resample"]
) -> Float[np.ndarray, " resample"]:
    """Return Spearman's correlation over points in every resample, ties at their mean rank.

    Values are rounded to ``DECIMALS``: outputs that cannot reach the prediction have effects of 0
    but for rounding, and are tied.
    """
    ranks = [rankdata(values.round(DECIMALS), axis=0) for values in (one, other)]
    first, second = (rank - rank.mean(0) for rank in ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = (first * second).sum(0) / np.sqrt(
            (first**2).sum(0) * (second**2).sum(0)
        )
    return np.where(np.isfinite(one).all(0) & np.isfinite(other).all(0), found, np.nan)
