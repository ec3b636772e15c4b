"""Interface of examiners, which explain neurons and predict them from explanations.

Examiners take batches of questions, which they may send concurrently or compute together. Each
question is answered independently: a failure is returned as ``Unscored`` with its reason and does
not affect other questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

HIGHEST = 10
"""Maximum level; activations are shown as integers from 0 to this."""


@dataclass(frozen=True)
class ShownExcerpt:
    """An excerpt as shown to an examiner.

    Attributes:
        tokens: text of the tokens, including spaces.
        levels: min(10, floor(10 relu(a) / max)) of each token, where max is the unit's highest
            activation in the excerpts to explain from.
        start: position of the first token in its story, counted from 0.
    """

    tokens: tuple[str, ...]
    levels: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True)
class Question:
    """A unit to explain.

    Attributes:
        unit: name of the unit, such as ``3.117``.
        excerpts: excerpts to explain from, by decreasing peak.
    """

    unit: str
    excerpts: tuple[ShownExcerpt, ...]


@dataclass(frozen=True)
class Explanation:
    """An explanation of a unit.

    Attributes:
        text: description in one line.
        table: effects read by ``lookup``; empty for language models.
    """

    text: str
    table: Mapping[str, float] = field(default_factory=dict)


SPENDING_CAP = "spending cap"
"""Reason for questions that were not asked because of the spending cap."""


@dataclass(frozen=True)
class Unscored:
    """Reason for a missing answer, such as ``unparsable answer`` or ``no answer: 429``."""

    reason: str


@dataclass(frozen=True)
class Simulation:
    """An explanation, and the tokens of excerpts on which the unit is predicted.

    Attributes:
        starts: position of each excerpt's first token in its story; empty if all are 0.
    """

    explanation: Explanation
    excerpts: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Marked:
    """An excerpt with some tokens marked, correctly or not, as those on which the unit fires."""

    tokens: tuple[str, ...]
    marked: frozenset[int]
    start: int = 0


@dataclass(frozen=True)
class Trial:
    """An explanation, and marked excerpts whose markings are judged by it."""

    explanation: Explanation
    excerpts: tuple[Marked, ...]


@runtime_checkable
class Examiner(Protocol):
    """Explains units, and predicts them from explanations alone."""

    @property
    def name(self) -> str:
        """``lookup``, or the name of a language model."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe everything that determines the answers, without secrets, for the record."""
        ...

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """Explain each unit."""
        ...

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """Predict a level from 0 to 10 for every token of every excerpt."""
        ...

    def detect(self, simulations: Sequence[Simulation]) -> list[tuple[bool, ...] | Unscored]:
        """Judge whether the unit fires in each excerpt."""
        ...

    def fuzz(self, trials: Sequence[Trial]) -> list[tuple[bool, ...] | Unscored]:
        """Judge whether the marked tokens of each excerpt are those on which the unit fires."""
        ...
