"""A weight that changes over training: a constant, or a ramp such as ``0.03@0.65:1.0@0.95``.

A ramp is a list of WEIGHT@SHARE points: at that share of the steps the weight is that number. It is
constant before the first point and after the last, and linear between two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from sat_interp._util.errors import UserError, shown

EXAMPLE = "0.03@0.65:1.0@0.95"


@dataclass(frozen=True)
class Schedule:
    """A weight as a function of the share of the steps that are done.

    Attributes:
        points: (share, weight) pairs, shares rising from 0 to 1; one point is a constant.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, share: float) -> float:
        """The weight when ``share`` of the steps are done, from 0 to 1."""
        before = [point for point in self.points if point[0] <= share]
        after = [point for point in self.points if point[0] > share]
        if not before:
            return after[0][1]
        if not after:
            return before[-1][1]
        (start, low), (end, high) = before[-1], after[0]
        return low + (high - low) * (share - start) / (end - start)

    def is_settled(self, share: float) -> bool:
        """Whether the weight no longer changes once ``share`` of the steps are done."""
        return share >= self.points[-1][0]

    @property
    def is_constant(self) -> bool:
        """Whether the weight never changes."""
        return len(self.points) == 1

    @property
    def lowest(self) -> float:
        """The smallest weight it takes."""
        return min(weight for _, weight in self.points)

    def canonical(self) -> float | str:
        """A number, or the ramp as text in its one spelling; :func:`read_schedule` reads both."""
        if self.is_constant:
            return self.points[0][1]
        return ":".join(f"{weight!r}@{share!r}" for share, weight in self.points)


def read_schedule(name: str, value: object) -> Schedule:
    """A schedule from a number or from text.

    Args:
        name: of the setting, for messages.

    Raises:
        UserError: neither a number nor a ramp, a negative or infinite weight, a share outside
            [0, 1], shares that do not rise, or fewer than two points.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Schedule(((0.0, _weight(name, float(value), value)),))
    if not isinstance(value, str):
        raise UserError(f"{name} must be a number or a ramp such as {EXAMPLE}, not {shown(value)}")
    if "@" not in value:
        return Schedule(((0.0, _weight(name, _number(name, value, value), value)),))
    points = []
    for point in value.split(":"):
        weight, _, share = point.partition("@")
        at = _number(name, share, value)
        if not 0 <= at <= 1:
            raise UserError(
                f"{name}: a share of the steps is from 0 to 1, not {at:g} in {shown(value)}"
            )
        points.append((at, _weight(name, _number(name, weight, value), value)))
    if len(points) < 2:
        raise UserError(
            f"{name}: a ramp has at least two points, such as {EXAMPLE}, not {shown(value)}"
        )
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(points)):
        raise UserError(
            f"{name}: shares of the steps must rise from point to point in {shown(value)}"
        )
    return Schedule(tuple(points))


def _number(name: str, text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{name} must be a number or a ramp such as {EXAMPLE}, not {shown(whole)}"
        ) from None


def _weight(name: str, weight: float, given: object) -> float:
    if not 0 <= weight < math.inf:
        raise UserError(f"{name} must be >= 0 and finite, not {shown(given)}")
    return weight + 0.0  # -0.0 is 0
