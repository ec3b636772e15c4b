"""Examiner without a language model: predicts a unit from tokens and preceding tokens.

A token's level is predicted as the sum of the effects of its contexts (``contexts.py``). The
effects are shrunken means (ridge regression on indicators, fitted by backfitting from the least
specific kind on): with r the residuals of the other effects on the n tokens in a context, its
effect is sum(r) / (n + shrinkage). Rare contexts are shrunk more; unseen contexts have no effect.
The explanation in words names the contexts that cover most of the firing tokens; its table holds
the effects.

Answers are deterministic and independent of other questions in the same call.
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
from evaluations.suite.neurons.examiners.contexts import (
    EncodedExcerpts,
    Occurrences,
    encode_excerpts,
)
from evaluations.suite.neurons.examiners.phrases import describe_contexts

# Chosen by benchmarks/lookup.py on two small models trained for this purpose.
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
"""Minimum effect in levels of an entry of the table."""
SAYS_FIRES = 4.0
"""A unit is predicted to fire in an excerpt with a predicted level above this."""
GROUP = 128
"""Units per batch; the code of a unit and three tokens fits into 64 bits."""
MEAN = "mean"
SEPARATOR = "\x1f"
Levels = tuple[tuple[float, ...], ...]


class LookupExaminer:
    """Explains by counting and predicts by looking up."""

    name = "lookup"

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], tuple[Simulation, Levels]] = {}

    def describe(self) -> dict[str, Any]:
        """Describe everything that determines the answers."""
        return {
            "name": self.name,
            "shrinkage": SHRINKAGE,
            "rounds": ROUNDS,
            "smallest": SMALLEST,
            "says_fires": SAYS_FIRES,
        }

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """Explain each unit by a table of effects and its main contexts in words."""
        explanations: list[Explanation | Unscored] = []
        for first in range(0, len(questions), GROUP):
            explanations += _explain(questions[first : first + GROUP])
        return explanations

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """Predict levels from the table."""
        return [*self._levels(simulations)]

    def _levels(self, simulations: Sequence[Simulation]) -> list[Levels]:
        """Predict levels, reusing those of the last call: ``detect`` repeats ``simulate``."""
        keys = [_identity(simulation) for simulation in simulations]
        missing = [s for s, key in zip(simulations, keys, strict=True) if key not in self._last]
        for first in range(0, len(missing), GROUP):
            some = missing[first : first + GROUP]
            for simulation, levels in zip(some, _simulate(some), strict=True):
                self._last[_identity(simulation)] = (simulation, levels)
        # keeps the simulations alive, so that their ids are not reused
        self._last = {key: self._last[key] for key in keys}
        return [self._last[key][1] for key in keys]

    def detect(self, simulations: Sequence[Simulation]) -> list[tuple[bool, ...] | Unscored]:
        """Judge by the highest predicted level of each excerpt."""
        return [
            tuple(max(excerpt, default=0) > SAYS_FIRES for excerpt in levels)
            for levels in self._levels(simulations)
        ]

    def fuzz(self, trials: Sequence[Trial]) -> list[tuple[bool, ...] | Unscored]:
        """Judge whether the mean predicted level of marked tokens exceeds that of the others."""
        simulations = [
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
            for levels, trial in zip(self._levels(simulations), trials, strict=True)
        ]


def _higher(levels: Sequence[float], marked: frozenset[int]) -> bool:
    inside = [level for place, level in enumerate(levels) if place in marked]
    outside = [level for place, level in enumerate(levels) if place not in marked]
    return bool(inside) and sum(inside) / len(inside) > sum(outside) / max(len(outside), 1)


def _identity(simulation: Simulation) -> tuple[int, ...]:
    return (id(simulation.explanation), id(simulation.excerpts), *simulation.starts)


def _explain(questions: Sequence[Question]) -> list[Explanation | Unscored]:
    text = encode_excerpts(
        [[shown.tokens for shown in question.excerpts] for question in questions],
        [[shown.start for shown in question.excerpts] for question in questions],
    )
    levels = np.fromiter(
        chain.from_iterable(shown.levels for question in questions for shown in question.excerpts),
        dtype=np.float64,
    )
    tables = _fit(text, levels, len(questions))
    return [
        Explanation(words, table) if table else Unscored("nothing to explain from")
        for words, table in zip(
            describe_contexts(text, levels, len(questions)), tables, strict=True
        )
    ]


def _fit(
    text: EncodedExcerpts, levels: Float[np.ndarray, " tokens"], units: int
) -> list[dict[str, float]]:
    """Return the table of each unit: its mean level and the effects of contexts."""
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
        contexts = text.occurrences[kind]
        names = text.names(kind, contexts.codes[chosen])
        for unit, name, value in zip(
            contexts.units[chosen].tolist(), names, values[chosen].tolist(), strict=True
        ):
            tables[unit][SEPARATOR.join((kind, *name))] = value
    return tables


def _refit(
    effects: Float[np.ndarray, " contexts"],
    rest: Float[np.ndarray, " tokens"],
    contexts: Occurrences,
    shrinkage: float,
) -> Float[np.ndarray, " contexts"]:
    """Fit the effects of one kind again; the residuals ``rest`` are changed in place."""
    own = rest[contexts.tokens] + effects[contexts.which]
    effects = np.bincount(contexts.which, own, len(effects)) / (contexts.counts + shrinkage)
    rest[contexts.tokens] = own - effects[contexts.which]
    return effects


def _simulate(simulations: Sequence[Simulation]) -> list[Levels]:
    text = encode_excerpts(
        [simulation.excerpts for simulation in simulations],
        [s.starts or (0,) * len(s.excerpts) for s in simulations],
    )
    tables = [simulation.explanation.table for simulation in simulations]
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
        tuple(tuple(next(flat) for _ in excerpt) for excerpt in simulation.excerpts)
        for simulation in simulations
    ]


def _look_up(
    keys: list[int], values: list[float], wanted: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, " tokens"]:
    """Return the value of each wanted key; 0 if it has none."""
    if not keys:
        return np.zeros(len(wanted))
    order = np.argsort(keys)
    ordered = np.asarray(keys)[order]
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, np.asarray(values)[order][place], 0.0)
