"""The coefficient of the loss that gives a wanted L0, found by short trainings.

An L1 coefficient says nothing by itself: on one text the same 5 leaves 4 active features of 1,024,
on another it kills 94 % of them. The search trains several coefficients in one pass over a fifth of
the budget, takes the one that gives the wanted L0 by interpolation (log L0 over log coefficient),
and trains it on the whole budget. A longer training ends at another L0, so that step is repeated
with a corrected coefficient, at most twice, until the L0 of the last tenth of the steps is within
15 % of the one wanted. What comes out is a plain coefficient, and an autoencoder that ``--l1`` with
that number gives, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.suite.sae.config import SaeConfig
from sat_interp._util.errors import UserError

VERSION = 1
"""Of the search: raised when it would come to another coefficient."""

PILOT = 0.2
"""Share of the budget that a short training has."""
STEPS_AT_LEAST = 200
FACTOR = 3.0
"""Between neighbouring coefficients of the short trainings."""
FIRST = (-3, -2, -1, 0, 1)
"""The first of them, as powers of that factor times the architecture's usual coefficient."""
USUAL = {"jumprelu": 1.0}
WIDENINGS = 2
NEAR = 1.15
CORRECTIONS = 2

Train = Callable[[Sequence[SaeConfig], bool], list[float]]
"""(configurations, whether they are short trainings) -> the L0 that each ends with."""


@dataclass(frozen=True)
class Point:
    """One training of the search."""

    coefficient: float
    l0: float
    tokens: float


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        coefficient: of the full training whose L0 is nearest to the one wanted.
        points: all trainings, in their order.
    """

    coefficient: float
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "points": list(map(vars, self.points))}


def read_found(file: Path) -> Found | None:
    """What an earlier search came to; None where its file is missing or damaged."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        points = tuple(Point(**{name: float(value) for name, value in one.items()})
                       for one in told["points"])  # fmt: skip
        coefficient = float(told["coefficient"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return Found(coefficient, points) if 0 < coefficient < math.inf else None


def find_coefficient(config: SaeConfig, train: Train) -> Found:
    """Search for the coefficient that gives ``config.target_l0``.

    Raises:
        UserError: no coefficient within reach gives such an L0.
    """
    assert config.target_l0 is not None
    target = math.log(config.target_l0)
    short = _pilots(config, train)
    coefficient = _interpolated(short, target)
    full: list[Point] = []
    for _ in range(CORRECTIONS + 1):
        (l0,) = train([with_coefficient(config, coefficient)], False)
        full.append(Point(coefficient, l0, config.tokens))
        if abs(_log(l0) - target) <= math.log(NEAR):
            break
        coefficient = _corrected(full, short, target)
        if any(coefficient == point.coefficient for point in full):
            break
    best = min(full, key=lambda point: abs(_log(point.l0) - target))
    return Found(best.coefficient, (*short, *full))


def with_coefficient(config: SaeConfig, coefficient: float) -> SaeConfig:
    """The configuration with a coefficient in place of the wanted L0."""
    return dataclasses.replace(config, sparsity=coefficient, target_l0=None)


def _pilots(config: SaeConfig, train: Train) -> list[Point]:
    """Short trainings whose L0 lie on both sides of the one wanted."""
    budget = max(round(PILOT * config.tokens), STEPS_AT_LEAST * config.batch_tokens)
    least = config.buffer_prompts * config.context
    short = dataclasses.replace(config, tokens=min(config.tokens, max(budget, least)))
    usual = USUAL.get(config.architecture, 5.0)
    powers: Sequence[int] = FIRST
    points: list[Point] = []
    target = config.target_l0
    assert target is not None
    for _ in range(WIDENINGS + 1):
        tried = [_rounded(usual * FACTOR**power) for power in powers]
        found = train([with_coefficient(short, one) for one in tried], True)
        points += map(Point, tried, found, [short.tokens] * len(tried))
        points.sort(key=lambda point: point.coefficient)
        low, high = min(one.l0 for one in points), max(one.l0 for one in points)
        if low <= target <= high:
            return points
        lowest = round(math.log(points[0].coefficient / usual, FACTOR))
        highest = round(math.log(points[-1].coefficient / usual, FACTOR))
        sparser = range(highest + 1, highest + 4)
        powers = sparser if target < low else range(lowest - 3, lowest)
    raise UserError(
        f"no coefficient from {points[0].coefficient:g} to {points[-1].coefficient:g} gives an L0 "
        f"of {target:g}: short trainings ended at {low:.3g} to {high:.3g} active features; ask for "
        "another --target-l0, or --tokens for a longer training"
    )


def _interpolated(points: Sequence[Point], target: float) -> float:
    """Linear in log coefficient over log L0, between the neighbours of the wanted L0."""
    ordered = sorted(points, key=lambda point: _log(point.l0))
    return _rounded(
        math.exp(
            np.interp(
                target,
                [_log(point.l0) for point in ordered],
                [math.log(point.coefficient) for point in ordered],
            )
        )
    )


def _corrected(full: Sequence[Point], short: Sequence[Point], target: float) -> float:
    """A secant step: through the last two full trainings, or with the short ones' slope."""
    last = full[-1]
    if len(full) > 1:
        slope = _slope(full[-2], last)
    else:
        above = [point for point in short if point.coefficient > last.coefficient]
        below = [point for point in short if point.coefficient <= last.coefficient]
        slope = _slope(below[-1], above[0]) if above and below else -1.0
    step = (target - _log(last.l0)) / min(slope, -0.3)  # a flat or rising one leads nowhere
    return _rounded(last.coefficient * math.exp(float(np.clip(step, -1.5, 1.5))))


def _slope(one: Point, other: Point) -> float:
    """Of log L0 over log coefficient."""
    run = math.log(other.coefficient / one.coefficient)
    return (_log(other.l0) - _log(one.l0)) / run if run else -1.0


def _log(l0: float) -> float:
    return math.log(max(l0, 1e-3))


def _rounded(coefficient: float) -> float:
    return float(f"{coefficient:.3g}")
