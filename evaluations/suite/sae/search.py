"""Search for the sparsity coefficient that reaches a target L0, by short trainings.

The effect of an L1 coefficient depends on the text: a coefficient of 5 can leave 4 of 1,024
features active on one text and kill 94 % of them on another. The search trains several
coefficients together on a fifth of the budget, interpolates the coefficient for the target L0
(log L0 over log coefficient), and trains it on the full budget. Since a longer training reaches a
different L0, this step is repeated with a corrected coefficient, at most twice, until the L0 of the
last tenth of the steps is within 15 % of the target. ``--l1`` with the resulting coefficient gives
the same autoencoder.
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
"""Version of the search, raised whenever a change alters its result."""

PILOT = 0.2
"""Share of the budget used by a short training."""
STEPS_AT_LEAST = 200
FACTOR = 3.0
"""Ratio of neighbouring coefficients of the short trainings."""
FIRST = (-3, -2, -1, 0, 1)
"""Exponents of ``FACTOR``: the first coefficients relative to the architecture's default."""
USUAL = {"jumprelu": 1.0}
WIDENINGS = 2
NEAR = 1.15
CORRECTIONS = 2

Train = Callable[[Sequence[SaeConfig], bool], list[float]]
"""(configurations, whether they are short trainings) -> the L0 at the end of each."""


@dataclass(frozen=True)
class Point:
    """One training of the search."""

    coefficient: float
    l0: float
    tokens: float


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        coefficient: that of the full training whose L0 is nearest to the target.
        points: all trainings in order.
    """

    coefficient: float
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as it is written to a file."""
        return {"coefficient": self.coefficient, "points": list(map(vars, self.points))}


def read_search(file: Path) -> SearchResult | None:
    """Read the result of an earlier search; None if its file is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        points = tuple(
            Point(**{name: float(value) for name, value in point.items()})
            for point in content["points"]
        )
        coefficient = float(content["coefficient"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return SearchResult(coefficient, points) if 0 < coefficient < math.inf else None


def find_coefficient(config: SaeConfig, train: Train) -> SearchResult:
    """Search for the coefficient that reaches ``config.target_l0``.

    Raises:
        UserError: no coefficient in the range of the search reaches it.
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
    return SearchResult(best.coefficient, (*short, *full))


def with_coefficient(config: SaeConfig, coefficient: float) -> SaeConfig:
    """Return the configuration with a coefficient in place of the target L0."""
    return dataclasses.replace(config, sparsity=coefficient, target_l0=None)


def _pilots(config: SaeConfig, train: Train) -> list[Point]:
    """Run short trainings until their L0 enclose the target."""
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
        l0s = train([with_coefficient(short, coefficient) for coefficient in tried], True)
        points += map(Point, tried, l0s, [short.tokens] * len(tried))
        points.sort(key=lambda point: point.coefficient)
        low, high = min(point.l0 for point in points), max(point.l0 for point in points)
        if low <= target <= high:
            return points
        lowest = round(math.log(points[0].coefficient / usual, FACTOR))
        highest = round(math.log(points[-1].coefficient / usual, FACTOR))
        sparser = range(highest + 1, highest + 4)
        powers = sparser if target < low else range(lowest - 3, lowest)
    raise UserError(
        f"no coefficient from {points[0].coefficient:g} to {points[-1].coefficient:g} gives an L0 "
        f"of {target:g}: short trainings ended at {low:.3g} to {high:.3g} active features; use "
        "another --target-l0, or a longer training (--tokens)"
    )


def _interpolated(points: Sequence[Point], target: float) -> float:
    """Interpolate the log coefficient linearly over log L0."""
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
    """Take a secant step with the slope of the last two full trainings, or of the short ones."""
    last = full[-1]
    if len(full) > 1:
        slope = _slope(full[-2], last)
    else:
        above = [point for point in short if point.coefficient > last.coefficient]
        below = [point for point in short if point.coefficient <= last.coefficient]
        slope = _slope(below[-1], above[0]) if above and below else -1.0
    step = (target - _log(last.l0)) / min(slope, -0.3)  # a flat or rising slope gives no direction
    return _rounded(last.coefficient * math.exp(float(np.clip(step, -1.5, 1.5))))


def _slope(first: Point, second: Point) -> float:
    """Return the slope of log L0 over log coefficient."""
    change = math.log(second.coefficient / first.coefficient)
    return (_log(second.l0) - _log(first.l0)) / change if change else -1.0


def _log(l0: float) -> float:
    return math.log(max(l0, 1e-3))


def _rounded(coefficient: float) -> float:
    return float(f"{coefficient:.3g}")
