"""Explain units, predict their activations, score the predictions and collect the details."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from evaluations.core.excerpts import Gathered
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.details import Details, Simulated
from evaluations.suite.neurons.examiners.base import Explanation, Simulation, Trial, Unscored
from evaluations.suite.neurons.excerpts import ExcerptBatch, HeldOut, excerpt_batch
from evaluations.suite.neurons.scores import (
    UnitScores,
    balanced_accuracy,
    correlation,
    derangement,
    fuzzing_trial,
    one_sided,
    undefined_correlation,
)

log = logging.getLogger(__name__)


@dataclass
class Case:
    """A unit that can be explained and scored."""

    place: int
    unit: UnitScores
    held_out: HeldOut
    draws: np.random.Generator
    explanation: Explanation = field(default_factory=lambda: Explanation(""))
    simulated: Simulated = field(default_factory=dict)

    def simulation(self, explanation: Explanation | None = None) -> Simulation:
        """Return the held-out excerpts with an explanation, by default the unit's own."""
        excerpts = self.held_out
        return Simulation(explanation or self.explanation, excerpts.tokens, excerpts.starts)


@dataclass
class ExplanationRun:
    """Explanation and scoring of units, with the results so far."""

    data: NeuronsData
    config: NeuronsConfig
    gathered: Gathered
    names: list[str]
    units: list[UnitScores] = field(default_factory=list)

    @cached_property
    def details(self) -> Details:
        """Details of the units so far."""
        return Details(self.names)

    def estimate(self, chosen: Sequence[tuple[int, np.ndarray]]) -> Any:
        """Return and log the estimated cost, if the examiner can estimate it."""
        estimator = getattr(self.config.examiner, "estimate", None)
        if estimator is None:
            return None
        questions = [
            batch.question(case.place, self.names)
            for layer, numbers in chosen
            for batch in [self._batch(layer, numbers)]
            for case in self._cases(batch)[1]
        ]
        each, scores = self.config.scored.total, self.config.scores
        estimate = estimator(
            questions,
            simulated=each * (1 + ("control" in scores)),
            detected=each * ("detection" in scores),
            fuzzed=each * ("fuzzing" in scores),
        )
        log.warning("%s: %s neurons: %s", self.data.name, f"{len(questions):,}", estimate)
        return estimate

    def examine(self, layer: int, numbers: np.ndarray) -> None:
        """Explain and score some units of one layer."""
        batch = self._batch(layer, numbers)
        units, cases = self._cases(batch)
        answers = self.config.examiner.explain(
            [batch.question(case.place, self.names) for case in cases]
        )
        explained = []
        for case, answer in zip(cases, answers, strict=True):
            if isinstance(answer, Unscored):
                case.unit.fail(self.config.scores, answer.reason)
            else:
                case.explanation = answer
                explained.append(case)
        self._simulate(explained)
        for name, score in (("detection", self._detect), ("fuzzing", self._fuzz)):
            if name in self.config.scores:
                score(explained)
        if "control" in self.config.scores:
            self._control(cases, layer)
        self._store(batch, units, {case.place: case for case in cases})

    def _batch(self, layer: int, numbers: np.ndarray) -> ExcerptBatch:
        config = self.config
        return excerpt_batch(self.gathered, layer, numbers, config.shown, config.scored)

    def _cases(self, batch: ExcerptBatch) -> tuple[list[UnitScores], list[Case]]:
        """Return all units, and the cases to explain and score; other units get their reasons."""
        dead = self.gathered.statistics[batch.layer].dead.numpy()
        units, cases = [], []
        for place, index in enumerate(batch.units.tolist()):
            unit = UnitScores(batch.layer, index)
            units.append(unit)
            draws = np.random.default_rng([self.config.seed, batch.layer, index])
            held_out = batch.held_out_excerpts(place, self.names, draws)
            if dead[index]:
                unit.fail(self.config.scores, "dead")
            elif not batch.highest[place] > 0:
                unit.fail(self.config.scores, "fires in no story to explain from")
            elif unscored := undefined_correlation(held_out.activations):
                unit.fail(self.config.scores, unscored.reason)
            else:
                cases.append(Case(place, unit, held_out, draws))
        return units, cases

    def _simulate(self, cases: Sequence[Case]) -> None:
        answers = self.config.examiner.simulate([case.simulation() for case in cases])
        for case, levels in zip(cases, answers, strict=True):
            if isinstance(levels, Unscored):
                case.unit.take("simulation", levels)
            else:
                case.unit.take("simulation", correlation(case.held_out.activations, levels))
                case.simulated = dict(zip(case.held_out.ranks, levels, strict=True))

    def _detect(self, cases: Sequence[Case]) -> None:
        trials = []
        for case in cases:
            truth = np.array([fires.any() for fires in case.held_out.fires])
            if truth.any() and not truth.all():
                trials.append((case, truth))
            else:
                case.unit.take("detection", one_sided(truth))
        answers = self.config.examiner.detect([case.simulation() for case, _ in trials])
        for (case, truth), verdicts in zip(trials, answers, strict=True):
            case.unit.take("detection", _accuracy(truth, verdicts))

    def _fuzz(self, cases: Sequence[Case]) -> None:
        trials = []
        for case in cases:
            trial = fuzzing_trial(case.held_out, case.draws)
            if isinstance(trial, Unscored):
                case.unit.take("fuzzing", trial)
            else:
                trials.append((case, *trial))
        answers = self.config.examiner.fuzz(
            [Trial(case.explanation, marked) for case, marked, _ in trials]
        )
        for (case, _, truth), verdicts in zip(trials, answers, strict=True):
            case.unit.take("fuzzing", _accuracy(truth, verdicts))

    def _control(self, cases: Sequence[Case], layer: int) -> None:
        """Score each explanation on another unit, whose choice does not depend on any answer."""
        if len(cases) < 2:
            for case in cases:
                case.unit.take("control", Unscored("no other neuron"))
            return
        draws = np.random.default_rng([self.config.seed, layer, cases[0].unit.index])
        others = [cases[other] for other in derangement(len(cases), draws)]
        pairs = []
        for case, other in zip(cases, others, strict=True):
            if other.explanation.text:
                pairs.append((case, other))
            else:
                case.unit.take("control", Unscored("no explanation to borrow"))
        answers = self.config.examiner.simulate(
            [case.simulation(other.explanation) for case, other in pairs]
        )
        for (case, _), levels in zip(pairs, answers, strict=True):
            if isinstance(levels, Unscored):
                case.unit.take("control", levels)
            else:
                case.unit.take("control", correlation(case.held_out.activations, levels))

    def _store(self, batch: ExcerptBatch, units: list[UnitScores], cases: dict[int, Case]) -> None:
        statistics = self.gathered.statistics[batch.layer]
        for place, unit in enumerate(units):
            case = cases.get(place)
            self.details.add(
                batch,
                place,
                unit,
                case.explanation.text if case else "",
                case.simulated if case else {},
                float(statistics.density[unit.index]),
                float(statistics.maximum[unit.index]),
            )
        self.units += units


def _accuracy(truth: np.ndarray, verdicts: Sequence[bool] | Unscored) -> float | Unscored:
    return verdicts if isinstance(verdicts, Unscored) else balanced_accuracy(truth, verdicts)
