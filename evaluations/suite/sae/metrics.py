"""Metrics of one autoencoder, computed from sums over each story.

With x the activation of a token, x^ its reconstruction:

- L0: number of non-zero features, mean over tokens.
- CE loss score = (CE_zero - CE_sae) / (CE_zero - CE_clean), where CE is the mean cross-entropy of
  the next token with the activation replaced by 0, by x^ and by itself. 1 if no loss is incurred,
  0 if the reconstruction is no better than zero; it is not bounded. No interval is given where
  that of the denominator includes 0, since the interval of the ratio is then unbounded (Fieller
  1954).
- CE gap = CE_zero - CE_clean, the denominator of the CE loss score.
- Explained variance = 1 - sum |x - x^|^2 / sum |x - mean x|^2. MSE = mean of |x - x^|^2, summed
  over dimensions (SAELens' definitions). Both are summed in float64.
- Dead features: features active on no token of the evaluation text. Their number decreases with
  the size of the text, which is recorded. Features dead in training are a separate metric (see
  ``train``).
- Density of a feature: the share of tokens on which it is active.

Standard errors are clustered over stories; those of ratios by linearisation. Intervals are from a
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
from evaluations.core.statistics import TAILS, bootstrap, ratio

NO_GAP = "zeroing the activation does not change the loss"
CONSTANT = "the activation does not vary"
LEAST_EXPLAINED = 0.5
"""Explained variance below which an autoencoder is marked as not converged."""

PerStory = Float[np.ndarray, " stories"]


@dataclass(frozen=True)
class AutoencoderSums:
    """Sums over the tokens of each story, and counts of the features.

    Attributes:
        tokens: number of tokens.
        nats: cross-entropy with the activation unchanged, reconstructed and zeroed.
        active: number of active features, summed over tokens.
        squares: |x - x^|^2, summed over tokens.
        variance: |x - mean x|^2, summed over tokens; the mean is that of the split.
        fired: number of tokens on which each feature is active.
    """

    tokens: Int[np.ndarray, " stories"]
    nats: dict[str, PerStory]
    active: PerStory
    squares: PerStory
    variance: PerStory
    fired: Int[np.ndarray, " d_sae"]

    @property
    def recovered(self) -> PerStory:
        """Numerator of the CE score: CE_zero - CE_sae of each story, in nats."""
        difference: PerStory = self.nats["zero"] - self.nats["sae"]
        return difference

    @property
    def gap(self) -> PerStory:
        """Denominator of the CE score: CE_zero - CE_clean of each story, in nats."""
        difference: PerStory = self.nats["zero"] - self.nats["clean"]
        return difference


def autoencoder_metrics(sums: AutoencoderSums, seed: int, resamples: int) -> list[Metric]:
    """Return the metrics of one autoencoder, with errors and intervals over stories."""
    tokens, n = int(sums.tokens.sum()), sums.tokens

    def mean(
        name: str,
        title: str,
        totals: PerStory,
        unit: str,
        direction: Any,
        about: str,
        reasons: dict[str, int] | None = None,
    ) -> Metric:
        per_token = ratio(totals, n)
        interval = bootstrap(totals, n, resamples=resamples, seed=seed)
        return Metric(
            name,
            title,
            per_token.value,
            unit,
            direction,
            per_token.standard_error,
            interval,
            tokens,
            reasons=reasons or {},
            description=f"{about}; n: tokens",
        )

    explained = _explained_variance(sums, seed, resamples)
    is_converged = explained.value is not None and explained.value >= LEAST_EXPLAINED
    mark = {} if is_converged else {NOT_CONVERGED: 1}
    gap = mean(
        "ce_gap",
        "CE gap, zeroed minus clean",
        sums.gap,
        "nats/token",
        None,
        "loss increase when the activation is zeroed; denominator of the CE score",
    )
    ce = "mean cross-entropy of the next token with the activation"
    return [
        mean(
            "l0",
            "L0 (active features per token)",
            sums.active,
            "features",
            "lower",
            "mean number of non-zero features",
            mark,
        ),
        _ce_score(sums, gap, mark, seed, resamples),
        explained,
        mean(
            "mse",
            "Squared error",
            sums.squares,
            "",
            "lower",
            "|x - x^|^2 summed over dimensions, mean over tokens",
        ),
        *(
            mean(f"loss_{name}", f"CE, {state}", sums.nats[name], "nats/token", direction, about)
            for name, state, direction, about in (
                ("clean", "clean", "lower", f"{ce} unchanged"),
                ("sae", "reconstructed", "lower", f"{ce} reconstructed"),
                ("zero", "zeroed", None, f"{ce} replaced by zero"),
            )
        ),
        gap,
        *_feature_metrics(sums.fired, tokens, len(n)),
    ]


def _explained_variance(sums: AutoencoderSums, seed: int, resamples: int) -> Metric:
    lost = ratio(sums.squares, sums.variance)
    has_value = bool(sums.variance.sum() > 0)
    interval = bootstrap(
        sums.squares,
        sums.variance,
        resamples=resamples,
        seed=seed,
        transform=lambda values: 1 - values,
    )
    return Metric(
        "explained_variance",
        "Explained variance",
        1 - lost.value if has_value else None,
        "",
        "higher",
        lost.standard_error,
        interval if has_value else None,
        int(sums.tokens.sum()),
        n_failed=int(not has_value),
        reasons={} if has_value else {CONSTANT: 1},
        description="1 - squared error / variance over the whole split; n: tokens",
    )


def _ce_score(
    sums: AutoencoderSums, gap: Metric, mark: dict[str, int], seed: int, resamples: int
) -> Metric:
    score = ratio(sums.recovered, sums.gap)
    has_value = bool(gap.value)
    interval: Interval | None = None
    if gap.interval is not None and not gap.interval.low <= 0 <= gap.interval.high:
        interval = bootstrap(sums.recovered, sums.gap, resamples=resamples, seed=seed)
    return Metric(
        "ce_score",
        "CE loss score",
        score.value if has_value else None,
        "",
        "higher",
        score.standard_error if has_value else None,
        interval,
        int(sums.tokens.sum()),
        n_failed=int(not has_value),
        reasons=mark if has_value else {NO_GAP: 1},
        description="(CE zero - CE sae) / (CE zero - CE clean); not bounded to [0, 1]; n: tokens",
    )


def _feature_metrics(fired: Int[np.ndarray, " d_sae"], tokens: int, stories: int) -> list[Metric]:
    """Return the share of dead features and the median density of the others."""
    dead = int((fired == 0).sum())
    alive = fired[fired > 0] / tokens
    return [
        Metric(
            "dead_features",
            "Dead features on the evaluation text",
            dead / len(fired),
            "share",
            "lower",
            n=len(fired),
            description=f"active on none of the {tokens:,} tokens of the {stories:,} evaluation "
            f"stories: {dead}; n: features",
        ),
        Metric(
            "median_density",
            "Median feature density",
            float(np.median(alive)) if len(alive) else None,
            "share of tokens",
            n=len(alive),
            n_failed=dead,
            reasons={"dead feature": dead} if dead else {},
            description="share of tokens on which a feature is active; n: features not dead",
        ),
    ]


def density_histogram(
    fired: Int[np.ndarray, " d_sae"], tokens: int, bins: int = 30
) -> dict[str, Any]:
    """Return the histogram of log10 densities; dead features are counted separately."""
    alive = np.log10(fired[fired > 0] / tokens)
    edges = np.linspace(np.floor(-np.log10(tokens)), 0.0, bins + 1)
    counts, _ = np.histogram(alive, edges)
    return {"log10_edges": edges, "features": counts, "dead": int((fired == 0).sum())}


def replicates(sums: AutoencoderSums, seed: int, resamples: int) -> dict[str, list[float]]:
    """Return paired L0 and CE scores of bootstrap resamples of the stories.

    Autoencoders measured on the same stories with the same seed share their resamples. The score is
    nan in resamples where zeroing does not change the loss.
    """
    draws = np.random.default_rng(seed)
    stories = len(sums.tokens)
    pairs: dict[str, list[float]] = {"l0": [], "ce_score": []}
    for _ in range(resamples):
        drawn = draws.integers(stories, size=stories)
        gap = float(sums.gap[drawn].sum())
        pairs["l0"].append(float(sums.active[drawn].sum() / sums.tokens[drawn].sum()))
        pairs["ce_score"].append(float(sums.recovered[drawn].sum()) / gap if gap else np.nan)
    return pairs


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None]
) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of two scores over the same resamples.

    Args:
        first, second: scores of ``replicates`` of two autoencoders measured on the same stories.

    Returns:
        The interval, or None if the numbers of resamples differ or a score is undefined.
    """
    if len(first) != len(second) or not first:
        return None
    scores = np.array([first, second], dtype=np.float64)
    if not np.isfinite(scores).all():
        return None
    low, high = np.quantile(scores[0] - scores[1], TAILS)
    return float(low), float(high)
