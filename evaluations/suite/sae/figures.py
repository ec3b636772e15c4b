"""The figures of one autoencoder, from what was summed over each story.

With x the activation of a token, x^ its reconstruction:

- L0: features that are not zero, mean over tokens.
- CE loss score = (CE_zero - CE_sae) / (CE_zero - CE_clean), CE the mean cross-entropy of the next
  token with the activation replaced by 0, by x^, by itself. 1: nothing is lost; 0: no better than
  nothing at the hook point; it is bounded on neither side. It has no interval where that of its
  denominator holds 0: the interval of such a ratio is not bounded (Fieller 1954).
- CE gap = CE_zero - CE_clean, the score's denominator: what all of the score is a share of.
- Explained variance = 1 - sum |x - x^|^2 / sum |x - mean x|^2. MSE = mean of |x - x^|^2, summed
  over dimensions (SAELens' definitions). Both are summed in float64 (see ``spread``).
- Dead features: those active on no token of the text measured. More are dead on less text, so the
  record says on how much; features dead in training are another figure (see ``train``).
- Density of a feature: the share of tokens on which it is active.

Standard errors are clustered over stories; those of ratios by linearisation. Intervals are of a
bootstrap over stories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from evaluations.core.health import NOT_CONVERGED
from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap, ratio

NO_GAP = "zeroing the activation changes no loss"
CONSTANT = "the activation does not vary"
LEAST_EXPLAINED = 0.5
"""Explained variance below which an autoencoder is marked as not converged."""

PerStory = Float[np.ndarray, " stories"]


@dataclass(frozen=True)
class Measured:
    """Sums over the tokens of each story, and the features' counts.

    Attributes:
        tokens: per story.
        nats: cross-entropy of each story with the activation as it is, reconstructed, and zero.
        active: active features, summed over tokens.
        squares: |x - x^|^2, summed over tokens.
        variance: |x - mean x|^2, summed over tokens; the mean is that of the split.
        fired: tokens on which each feature was active.
    """

    tokens: Int[np.ndarray, " stories"]
    nats: dict[str, PerStory]
    active: PerStory
    squares: PerStory
    variance: PerStory
    fired: Int[np.ndarray, " d_sae"]

    @property
    def gained(self) -> PerStory:
        """The CE score's numerator: CE_zero - CE_sae of each story, in nats."""
        return self.nats["zero"] - self.nats["sae"]

    @property
    def possible(self) -> PerStory:
        """Its denominator: CE_zero - CE_clean of each story, in nats."""
        return self.nats["zero"] - self.nats["clean"]


def metrics(found: Measured, seed: int, resamples: int) -> list[Metric]:
    """The figures of one autoencoder, each with its error and interval over stories."""
    tokens, n = int(found.tokens.sum()), found.tokens

    def mean(
        name: str, title: str, sums: PerStory, unit: str, direction: Any, about: str,
        reasons: dict[str, int] | None = None,
    ) -> Metric:  # fmt: skip
        of = ratio(sums, n)
        interval = bootstrap(sums, n, resamples=resamples, seed=seed)
        return Metric(
            name, title, of.value, unit, direction, of.standard_error, interval, tokens,
            reasons=reasons or {}, description=f"{about}; n: tokens",
        )  # fmt: skip

    explained = _explained_variance(found, seed, resamples)
    is_fair = explained.value is not None and explained.value >= LEAST_EXPLAINED
    mark = {} if is_fair else {NOT_CONVERGED: 1}
    gap = mean("ce_gap", "CE, zeroed minus clean", found.possible, "nats/token", None,
               "what zeroing the activation costs: the CE score is a share of it")  # fmt: skip
    ce = "mean cross-entropy of the next token, the activation"
    return [
        mean("l0", "Active features of a token", found.active, "features", "lower",
             "mean number of features that are not zero", mark),
        _ce_score(found, gap, mark, seed, resamples),
        explained,
        mean("mse", "Squared error", found.squares, "", "lower",
             "|x - x^|^2 summed over dimensions, mean over tokens"),
        mean("loss_clean", "CE, clean", found.nats["clean"], "nats/token", "lower",
             f"{ce} as it is"),
        mean("loss_sae", "CE, reconstructed", found.nats["sae"], "nats/token", "lower",
             f"{ce} reconstructed"),
        mean("loss_zero", "CE, zeroed", found.nats["zero"], "nats/token", None,
             f"{ce} replaced by zero"),
        gap,
        *_feature_metrics(found.fired, tokens, len(n)),
    ]  # fmt: skip


def _explained_variance(found: Measured, seed: int, resamples: int) -> Metric:
    lost = ratio(found.squares, found.variance)
    has_value = bool(found.variance.sum() > 0)
    interval = bootstrap(
        found.squares, found.variance, resamples=resamples, seed=seed,
        transform=lambda values: 1 - values,
    )  # fmt: skip
    return Metric(
        "explained_variance", "Explained variance", 1 - lost.value if has_value else None, "",
        "higher", lost.standard_error, interval if has_value else None, int(found.tokens.sum()),
        n_failed=int(not has_value), reasons={} if has_value else {CONSTANT: 1},
        description="1 - squared error / variance, over the whole split; n: tokens",
    )  # fmt: skip


def _ce_score(
    found: Measured, gap: Metric, mark: dict[str, int], seed: int, resamples: int
) -> Metric:
    score = ratio(found.gained, found.possible)
    has_value = bool(gap.value)
    interval: Interval | None = None
    if gap.interval is not None and not gap.interval.low <= 0 <= gap.interval.high:
        interval = bootstrap(found.gained, found.possible, resamples=resamples, seed=seed)
    return Metric(
        "ce_score", "CE loss score", score.value if has_value else None, "", "higher",
        score.standard_error if has_value else None, interval, int(found.tokens.sum()),
        n_failed=int(not has_value), reasons=mark if has_value else {NO_GAP: 1},
        description="(CE zero - CE sae) / (CE zero - CE clean); not bounded to [0, 1]; n: tokens",
    )  # fmt: skip


def _feature_metrics(fired: Int[np.ndarray, " d_sae"], tokens: int, stories: int) -> list[Metric]:
    """Dead features and the density of the others; a dead one has no density on a log scale."""
    dead = int((fired == 0).sum())
    alive = fired[fired > 0] / tokens
    return [
        Metric(
            "dead_features", "Dead features on the text measured", dead / len(fired), "share",
            "lower", n=len(fired),
            description=f"active on none of the {tokens:,} tokens of the {stories:,} stories "
            f"measured: {dead}; n: features",
        ),
        Metric(
            "median_density", "Median density", float(np.median(alive)) if len(alive) else None,
            "share of tokens", n=len(alive), n_failed=dead,
            reasons={"dead feature": dead} if dead else {},
            description="share of tokens on which a feature is active; n: features alive",
        ),
    ]  # fmt: skip


def density_histogram(
    fired: Int[np.ndarray, " d_sae"], tokens: int, bins: int = 30
) -> dict[str, Any]:
    """Features by log10 of their density; dead ones are counted beside it, in no bin."""
    alive = np.log10(fired[fired > 0] / tokens)
    edges = np.linspace(np.floor(-np.log10(tokens)), 0.0, bins + 1)
    counts, _ = np.histogram(alive, edges)
    return {"log10_edges": edges, "features": counts, "dead": int((fired == 0).sum())}


def replicates(found: Measured, seed: int, resamples: int) -> dict[str, list[float]]:
    """(L0, CE score) of the same bootstrap resamples of stories, paired: what a front needs.

    Autoencoders and models measured on the same stories with the same seed share their resamples.
    A score is nan in a resample in which zeroing changes no loss.
    """
    draws = np.random.default_rng(seed)
    stories = len(found.tokens)
    pairs: dict[str, list[float]] = {"l0": [], "ce_score": []}
    for _ in range(resamples):
        drawn = draws.integers(stories, size=stories)
        gap = float(found.possible[drawn].sum())
        pairs["l0"].append(float(found.active[drawn].sum() / found.tokens[drawn].sum()))
        pairs["ce_score"].append(float(found.gained[drawn].sum()) / gap if gap else np.nan)
    return pairs


def paired_difference(
    one: Sequence[float | None], other: Sequence[float | None]
) -> tuple[float, float] | None:
    """The 95 % interval of one score minus another over the same resamples.

    Args:
        one, other: ``replicates`` of two autoencoders measured on the same stories.

    Returns:
        The interval, or None where the resamples are not the same number, or some have no value.
    """
    if len(one) != len(other) or not one:
        return None
    found = np.array([one, other], dtype=np.float64)
    if not np.isfinite(found).all():
        return None
    low, high = np.quantile(found[0] - found[1], [0.025, 0.975])
    return float(low), float(high)
