"""What explains a neuron and predicts it from the explanation: a table, or a language model.

An examiner is asked in batches, so that one that waits for answers may ask many at once and one
that computes may do so in one go. It answers each question by itself: one that fails comes back
``Unscored``, with the reason, and costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

HIGHEST = 10
"""Activations are shown as whole numbers from 0 to this."""


@dataclass(frozen=True)
class Shown:
    """An excerpt as an examiner is shown it.

    Attributes:
        tokens: their text, spaces included.
        levels: min(10, floor(10 relu(a) / max)) for each token, max being the unit's highest
            activation in what is shown to explain from.
        start: place of the first token in its story; 0 is the story's beginning.
    """

    tokens: tuple[str, ...]
    levels: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True)
class Question:
    """A unit to explain.

    Attributes:
        unit: its name, ``3.117``.
        excerpts: of the half to explain from; those that fire most come first.
    """

    unit: str
    excerpts: tuple[Shown, ...]


@dataclass(frozen=True)
class Explanation:
    """What a unit is said to respond to.

    Attributes:
        text: for people, one line.
        table: what a simulator that is no language model reads; empty for the others.
    """

    text: str
    table: Mapping[str, float] = field(default_factory=dict)


SPENDING_CAP = "spending cap"
"""The reason of what was not asked because the money did not suffice."""


@dataclass(frozen=True)
class Unscored:
    """Why there is no answer: ``unparsable answer``, ``no answer: 429`` and the like; counted."""

    reason: str


@dataclass(frozen=True)
class Simulation:
    """An explanation, and the excerpts on which it is to predict the unit, as their tokens.

    Attributes:
        starts: place of each excerpt's first token in its story; empty where all are 0.
    """

    explanation: Explanation
    excerpts: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Marked:
    """An excerpt with some tokens marked as those the unit fires on, rightly or wrongly."""

    tokens: tuple[str, ...]
    marked: frozenset[int]
    start: int = 0


@dataclass(frozen=True)
class Trial:
    """An explanation and the marked excerpts it is to tell right from wrong."""

    explanation: Explanation
    excerpts: tuple[Marked, ...]


@runtime_checkable
class Examiner(Protocol):
    """Explains units, and predicts them from an explanation alone."""

    @property
    def name(self) -> str:
        """``lookup``, or which language model."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the answers, for the record; never a key."""
        ...

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """An explanation of each unit."""
        ...

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """For each, a level from 0 to 10 for every token of every excerpt."""
        ...

    def detect(self, simulations: Sequence[Simulation]) -> list[tuple[bool, ...] | Unscored]:
        """For each, whether the unit fires anywhere in each excerpt."""
        ...

    def fuzz(self, trials: Sequence[Trial]) -> list[tuple[bool, ...] | Unscored]:
        """For each, whether the marked tokens of each excerpt are those the unit fires on."""
        ...
