"""Warnings about an autoencoder's results, shown in every table.

A record holds them as ``extra["health"]`` (see ``evaluations.core.health``).
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.health import NOT_CONVERGED
from evaluations.core.record import Metric
from evaluations.suite.sae.metrics import CONSTANT, LEAST_EXPLAINED

MOST_DEAD = 0.5
"""Share of dead features above which an autoencoder is marked."""
GAP_ERRORS = 5.0
"""Minimum CE gap, in standard errors."""
WIDEST_SCORE = 0.5
"""Maximum width of the interval of a CE score."""
MOST_PASSES = 20
"""Maximum number of passes over the training text for the budget of a preset."""


def health_warnings(metrics: Sequence[Metric], passes: float | None = None) -> list[str]:
    """Return the warnings about an autoencoder's results.

    Args:
        metrics: those of ``autoencoder_metrics``, and ``dead_in_training`` where known.
        passes: number of passes over the training text.
    """
    by_name = {metric.name: metric for metric in metrics}
    warnings = [
        _dead(by_name["dead_features"], by_name.get("dead_in_training")),
        _not_converged(by_name["explained_variance"]),
        _gap(by_name["ce_gap"]),
        _wide(by_name["ce_score"]),
        "no feature is ever active" if by_name["l0"].value == 0 else "",
    ]
    if passes is not None and passes > MOST_PASSES:
        warnings.append(f"trained on {passes:.0f} passes over a small text")
    return [warning for warning in warnings if warning]


def is_mostly_dead(metrics: Sequence[Metric]) -> bool:
    """Whether more than half of the features are active on no token of the evaluation text."""
    dead = next((metric.value for metric in metrics if metric.name == "dead_features"), None)
    return dead is not None and dead > MOST_DEAD


def _dead(measured: Metric, in_training: Metric | None) -> str:
    if not is_mostly_dead([measured]):
        return ""
    warning = f"{measured.value:.0%} of the features are dead on the evaluation text"
    if in_training is None or in_training.value is None:
        return warning
    return f"{warning}, {in_training.value:.0%} in training"


def _not_converged(explained: Metric) -> str:
    if CONSTANT in explained.reasons:
        return f"{CONSTANT}: explained variance is undefined"
    if explained.value is not None and explained.value >= LEAST_EXPLAINED:
        return ""
    return f"{NOT_CONVERGED}: explains less than half of the variance"


def _gap(gap: Metric) -> str:
    if gap.value is None:
        return ""
    if gap.value <= 0:
        return "zeroing the activation does not increase the loss: the CE score is not meaningful"
    if gap.standard_error is None or gap.value >= GAP_ERRORS * gap.standard_error:
        return ""
    return (
        f"zeroing the activation costs {gap.value:.2g} nats, with a standard error of "
        f"{gap.standard_error:.1g}: the CE score divides by almost nothing"
    )


def _wide(score: Metric) -> str:
    interval = score.interval
    if interval is None or interval.high - interval.low <= WIDEST_SCORE:
        return ""
    return f"the interval of the CE score is [{interval.low:.2g}, {interval.high:.2g}]"
