"""The examiner that needs no model: which tokens, and which tokens before them, predict a unit.

A token's level is predicted as a sum of effects of its contexts (``contexts.py``). The effects are
shrunken means (ridge regression on indicators, fitted by going over them in turn, from the least
specific on): with r what the other effects leave unexplained on the n tokens in a context, its
effect is sum(r) / (n + shrinkage). A context that was seen often is believed, one that was seen
once only in part, and one never seen adds nothing. The explanation in words names the contexts that
cover most of the tokens on which the unit fires; its table holds the effects.

Nothing here is random, and an answer does not depend on what else is asked in the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from evaluations.suite.neurons.examiners.base import (
    HIGHEST,
    Explanation,
    Question,
    Simulation,
    Trial,
    Unscored,
)
from evaluations.suite.neurons.examiners.contexts import Numbered, Occurrences, numbered
from evaluations.suite.neurons.examiners.phrases import phrase

# Chosen by benchmarks/lookup.py on two small models trained for that, and their training stories.
SHRINKAGE = {
    "token": 0.25,
    "place": 2.0,
    "after": 2.0,
    "2 after": 4.0,
    "3 after": 4.0,
    "pair": 2.0,
    "triple": 2.0,
}
ROUNDS = 3
SMALLEST = 0.1
"""Effects below this many levels are left out of the table."""
SAYS_FIRES = 4.0
"""An excerpt is said to hold a token the unit fires on where a level above this is predicted."""
GROUP = 128
"""Units worked on at once; the code of three tokens and a unit fits into 64 bits."""
MEAN = "mean"
SEPARATOR = "\x1f"
Levels = tuple[tuple[float, ...], ...]


class LookupExaminer:
    """Explains by counting and predicts by looking up."""

    name = "lookup"

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], tuple[Simulation, Levels]] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shrinkage": SHRINKAGE,
            "rounds": ROUNDS,
            "smallest": SMALLEST,
            "says_fires": SAYS_FIRES,
        }

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """A table of effects for each unit, and the most telling contexts in words."""
        found: list[Explanation | Unscored] = []
        for first in range(0, len(questions), GROUP):
            found += _explain(questions[first : first + GROUP])
        return found

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """Levels by the table."""
        return [*self._levels(simulations)]

    def _levels(self, simulations: Sequence[Simulation]) -> list[Levels]:
        """The same, but what was asked last is known: ``detect`` asks what ``simulate`` did."""
        missing = [one for one in simulations if _identity(one) not in self._last]
        for first in range(0, len(missing), GROUP):
            some = missing[first : first + GROUP]
            for one, levels in zip(some, _simulate(some), strict=True):
                self._last[_identity(one)] = (one, levels)
        # the simulations themselves are held, so that no other gets their identities
        self._last = {_identity(one): self._last[_identity(one)] for one in simulations}
        return [self._last[_identity(one)][1] for one in simulations]

    def detect(self, simulations: Sequence[Simulation]) -> list[tuple[bool, ...] | Unscored]:
        """Whether a level is predicted that is high enough."""
        return [
            tuple(max(excerpt, default=0) > SAYS_FIRES for excerpt in levels)
            for levels in self._levels(simulations)
        ]

    def fuzz(self, trials: Sequence[Trial]) -> list[tuple[bool, ...] | Unscored]:
        """Whether the marked tokens are predicted higher, on average, than the others."""
        asked = [
            Simulation(
                trial.explanation,
                tuple(excerpt.tokens for excerpt in trial.excerpts),
                tuple(excerpt.start for excerpt in trial.excerpts),
            )
            for trial in trials
        ]
        return [
            tuple(
                _higher(excerpt, marked.marked)
                for excerpt, marked in zip(levels, trial.excerpts, strict=True)
            )
            for levels, trial in zip(self._levels(asked), trials, strict=True)
        ]


def _higher(levels: Sequence[float], marked: frozenset[int]) -> bool:
    inside = [level for place, level in enumerate(levels) if place in marked]
    outside = [level for place, level in enumerate(levels) if place not in marked]
    return bool(inside) and sum(inside) / len(inside) > sum(outside) / max(len(outside), 1)


def _identity(asked: Simulation) -> tuple[int, ...]:
    return (id(asked.explanation), id(asked.excerpts), *asked.starts)


def _explain(questions: Sequence[Question]) -> list[Explanation | Unscored]:
    text = numbered(
        [[shown.tokens for shown in question.excerpts] for question in questions],
        [[shown.start for shown in question.excerpts] for question in questions],
    )
    levels = np.fromiter(
        chain.from_iterable(shown.levels for one in questions for shown in one.excerpts),
        dtype=np.float64,
    )
    tables = _fit(text, levels, len(questions))
    return [
        Explanation(words, table) if table else Unscored("nothing to explain from")
        for words, table in zip(phrase(text, levels, len(questions)), tables, strict=True)
    ]


def _fit(
    text: Numbered, levels: Float[np.ndarray, " tokens"], units: int
) -> list[dict[str, float]]:
    """The effects of each unit, and what is predicted where none is known."""
    counts = np.maximum(np.bincount(text.unit, minlength=units), 1)
    mean = np.zeros(units)
    rest = levels
    effects = {kind: np.zeros(len(text.occurrences[kind].units)) for kind in SHRINKAGE}
    for _ in range(ROUNDS):
        more = np.bincount(text.unit, rest, units) / counts
        mean, rest = mean + more, rest - more[text.unit]
        for kind, shrinkage in SHRINKAGE.items():
            effects[kind] = _refit(effects[kind], rest, text.occurrences[kind], shrinkage)
    tables: list[dict[str, float]] = [{} for _ in range(units)]
    for unit in np.unique(text.unit).tolist():
        tables[unit][MEAN] = float(mean[unit])
    for kind, values in effects.items():
        chosen = np.flatnonzero(np.abs(values) >= SMALLEST)
        found = text.occurrences[kind]
        names = text.names(kind, found.codes[chosen])
        for unit, name, value in zip(
            found.units[chosen].tolist(), names, values[chosen].tolist(), strict=True
        ):
            tables[unit][SEPARATOR.join((kind, *name))] = value
    return tables


def _refit(
    effects: Float[np.ndarray, " contexts"],
    rest: Float[np.ndarray, " tokens"],
    found: Occurrences,
    shrinkage: float,
) -> Float[np.ndarray, " contexts"]:
    """New effects of one kind; ``rest``, what nothing explains so far, is changed in place."""
    own = rest[found.tokens] + effects[found.which]
    effects = np.bincount(found.which, own, len(effects)) / (found.counts + shrinkage)
    rest[found.tokens] = own - effects[found.which]
    return effects


def _simulate(simulations: Sequence[Simulation]) -> list[Levels]:
    text = numbered(
        [one.excerpts for one in simulations],
        [one.starts or (0,) * len(one.excerpts) for one in simulations],
    )
    tables = [one.explanation.table for one in simulations]
    levels = np.array([table.get(MEAN, 0.0) for table in tables])[text.unit]
    entries: dict[str, tuple[list[int], list[float]]] = {kind: ([], []) for kind in SHRINKAGE}
    spans = {kind: text.span(kind) for kind in SHRINKAGE}
    for unit, table in enumerate(tables):
        for key, value in table.items():
            kind, *names = key.split(SEPARATOR)
            if kind != MEAN and (code := text.code(kind, names)) is not None:
                keys, values = entries[kind]
                keys.append(unit * spans[kind] + code)
                values.append(value)
    for kind, (keys, values) in entries.items():
        tokens, wanted = text.keys(kind)
        levels[tokens] += _look_up(keys, values, wanted)
    flat = iter(np.clip(levels, 0, HIGHEST).tolist())
    return [
        tuple(tuple(next(flat) for _ in excerpt) for excerpt in one.excerpts) for one in simulations
    ]


def _look_up(
    keys: list[int], values: list[float], wanted: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, " tokens"]:
    """The value of each key that is wanted; 0 for those without."""
    if not keys:
        return np.zeros(len(wanted))
    order = np.argsort(keys)
    ordered = np.asarray(keys)[order]
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, np.asarray(values)[order][place], 0.0)
