"""Curves with their names, and what restoring edges does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluations.suite.circuits.frontier.candidates import Candidate
from evaluations.suite.circuits.frontier.curves import Estimate
from evaluations.suite.circuits.frontier.frontiers import Frontier


@dataclass(frozen=True)
class Curve:
    """A frontier with what it is of.

    Attributes:
        method: a method; ``all`` for the circuits of all methods together; or ``random``.
        is_null: whether it is of the null task.
        drawn: of ``random``, the circuits by size.
    """

    ablation: str
    method: str
    is_null: bool
    frontier: Frontier
    drawn: Sequence[Sequence[Candidate]] = ()

    @property
    def key(self) -> str:
        """The end of the names of its metrics: ``cf_eap_ig``, ``cf_null``."""
        parts = [self.ablation, "" if self.method == "all" else self.method.replace("-", "_")]
        return "_".join(filter(None, [*parts, "null" if self.is_null else ""]))

    @property
    def name(self) -> str:
        """The curve in words: ``cf, eap-ig, null task``."""
        method = "all methods" if self.method == "all" else self.method
        return ", ".join([self.ablation, method, *(["null task"] if self.is_null else [])])


@dataclass(frozen=True)
class Restored:
    """How much more a curve's reference circuit costs with excluded edges restored, in nats.

    Attributes:
        rise: None where there is no such circuit, or nothing was restored.
    """

    curve: Curve
    rise: Estimate | None
