"""When the figures of an autoencoder are not to be relied on, as phrases for every table.

A record carries them as ``extra["health"]`` (``evaluations.core.health``).
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.health import NOT_CONVERGED
from evaluations.core.record import Metric
from evaluations.suite.sae.figures import CONSTANT, LEAST_EXPLAINED

MOST_DEAD = 0.5
"""Above this share of dead features an autoencoder is little of what it was meant to be."""
GAP_ERRORS = 5.0
"""Standard errors that the zero-to-clean gap must be above 0: its error is then under a fifth."""
WIDEST_SCORE = 0.5
"""Widest interval of a CE score, whose scale from nothing to everything is 1."""
MOST_PASSES = 20
"""Times over that a text may be read in training; no preset's budget takes more."""


def phrases(metrics: Sequence[Metric], passes: float | None = None) -> list[str]:
    """What is wrong with an autoencoder's figures; an empty list where nothing is.

    Args:
        metrics: of ``figures.metrics``, with ``dead_in_training`` where that is known.
        passes: how many times over its training text was read.
    """
    by_name = {metric.name: metric for metric in metrics}
    found = [
        _dead(by_name["dead_features"], by_name.get("dead_in_training")),
        _not_converged(by_name["explained_variance"]),
        _gap(by_name["ce_gap"]),
        _wide(by_name["ce_score"]),
        "no feature is ever active" if by_name["l0"].value == 0 else "",
    ]
    if passes is not None and passes > MOST_PASSES:
        found.append(f"its training read a small text {passes:.0f} times over")
    return [phrase for phrase in found if phrase]


def is_mostly_dead(metrics: Sequence[Metric]) -> bool:
    """Whether more than half of the features are active on no token of the text measured."""
    dead = next((metric.value for metric in metrics if metric.name == "dead_features"), None)
    return dead is not None and dead > MOST_DEAD


def _dead(measured: Metric, in_training: Metric | None) -> str:
    if not is_mostly_dead([measured]):
        return ""
    told = f"{measured.value:.0%} of the features are dead on the text measured"
    if in_training is None or in_training.value is None:
        return told
    return f"{told}, {in_training.value:.0%} in training"


def _not_converged(explained: Metric) -> str:
    if CONSTANT in explained.reasons:
        return f"{CONSTANT}: there is nothing to explain"
    if explained.value is not None and explained.value >= LEAST_EXPLAINED:
        return ""
    return f"{NOT_CONVERGED}: explains less than half of the variance"


def _gap(gap: Metric) -> str:
    if gap.value is None:
        return ""
    if gap.value <= 0:
        return "zeroing the activation does not raise the loss: the CE score says nothing"
    if gap.standard_error is None or gap.value >= GAP_ERRORS * gap.standard_error:
        return ""
    return (
        f"zeroing the activation costs {gap.value:.2g} nats, with a standard error of "
        f"{gap.standard_error:.1g}: the CE score is a share of next to nothing"
    )


def _wide(score: Metric) -> str:
    interval = score.interval
    if interval is None or interval.high - interval.low <= WIDEST_SCORE:
        return ""
    return f"the interval of the CE score is [{interval.low:.2g}, {interval.high:.2g}]"
