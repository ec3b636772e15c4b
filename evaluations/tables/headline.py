"""The question of an evaluation, and the one metric that answers it in the report's summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluations.core.record import Direction


@dataclass(frozen=True)
class Headline:
    """What the report's summary says of an evaluation: ``HEADLINE`` in its module ``report``.

    Attributes:
        question: as a reader would ask it of a model.
        metric, title, digits, direction: of the metric that answers it.
        compared_with: the baseline; or zero, where the metric is itself a difference.
    """

    question: str
    metric: str
    title: str
    digits: int
    direction: Direction | None = None
    compared_with: Literal["baseline", "zero"] = "baseline"
