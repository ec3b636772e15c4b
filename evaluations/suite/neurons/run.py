"""One run over units: explain some of them, predict, score, and keep what people want to see."""

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
from evaluations.suite.neurons.scores import (
    UnitScores,
    balanced_accuracy,
    correlation,
    derangement,
    one_sided,
    trial_of,
    without_score,
)
from evaluations.suite.neurons.shown import HeldOut, Sight, see

log = logging.getLogger(__name__)


@dataclass
class Case:
    """A unit that can be explained and scored."""

    place: int
    unit: UnitScores
    held: HeldOut
    draws: np.random.Generator
    explanation: Explanation = field(default_factory=lambda: Explanation(""))
    simulated: Simulated = field(default_factory=dict)

    def simulation(self, explanation: Explanation | None = None) -> Simulation:
        """Its excerpts, to be predicted from an explanation; its own by default."""
        return Simulation(explanation or self.explanation, self.held.tokens, self.held.starts)


@dataclass
class Run:
    """One run over units, as far as it has come."""

    data: NeuronsData
    config: NeuronsConfig
    gathered: Gathered
    names: list[str]
    units: list[UnitScores] = field(default_factory=list)

    @cached_property
    def details(self) -> Details:
        return Details(self.names)

    def estimate(self, chosen: Sequence[tuple[int, np.ndarray]]) -> Any:
        """What it will take, of an examiner that can tell; logged before anything is asked."""
        ask = getattr(self.data.examiner, "estimate", None)
        if ask is None:
            return None
        questions = [
            sight.question(case.place, self.names)
            for layer, numbers in chosen
            for sight in [self._see(layer, numbers)]
            for case in self._cases(sight)[1]
        ]
        each, scores = self.config.scored.total, self.config.scores
        found = ask(
            questions,
            simulated=each * (1 + ("control" in scores)),
            detected=each * ("detection" in scores),
            fuzzed=each * ("fuzzing" in scores),
        )
        log.warning("%s: %s neurons: %s", self.data.name, f"{len(questions):,}", found)
        return found

    def examine(self, layer: int, numbers: np.ndarray) -> None:
        """Explain and score some units of one layer."""
        sight = self._see(layer, numbers)
        units, cases = self._cases(sight)
        answers = self.data.examiner.explain(
            [sight.question(case.place, self.names) for case in cases]
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
        self._keep(sight, units, {case.place: case for case in cases})

    def _see(self, layer: int, numbers: np.ndarray) -> Sight:
        return see(self.gathered, layer, numbers, self.config.shown, self.config.scored)

    def _cases(self, sight: Sight) -> tuple[list[UnitScores], list[Case]]:
        """All units, and those that can be explained and scored; the others know why not."""
        dead = self.gathered.statistics[sight.layer].dead.numpy()
        units, cases = [], []
        for place, index in enumerate(sight.units.tolist()):
            unit = UnitScores(sight.layer, index)
            units.append(unit)
            draws = np.random.default_rng([self.config.seed, sight.layer, index])
            held = sight.held_out_of(place, self.names, draws)
            if dead[index]:
                unit.fail(self.config.scores, "dead")
            elif not sight.highest[place] > 0:
                unit.fail(self.config.scores, "fires in no story to explain from")
            elif lost := without_score(held.activations):  # so nothing is asked about it
                unit.fail(self.config.scores, lost.reason)
            else:
                cases.append(Case(place, unit, held, draws))
        return units, cases

    def _simulate(self, cases: Sequence[Case]) -> None:
        answers = self.data.examiner.simulate([case.simulation() for case in cases])
        for case, levels in zip(cases, answers, strict=True):
            if isinstance(levels, Unscored):
                case.unit.take("simulation", levels)
            else:
                case.unit.take("simulation", correlation(case.held.activations, levels))
                case.simulated = dict(zip(case.held.ranks, levels, strict=True))

    def _detect(self, cases: Sequence[Case]) -> None:
        asked = []
        for case in cases:
            truth = np.array([fires.any() for fires in case.held.fires])
            if truth.any() and not truth.all():
                asked.append((case, truth))
            else:
                case.unit.take("detection", one_sided(truth))
        answers = self.data.examiner.detect([case.simulation() for case, _ in asked])
        for (case, truth), said in zip(asked, answers, strict=True):
            case.unit.take("detection", _accuracy(truth, said))

    def _fuzz(self, cases: Sequence[Case]) -> None:
        asked = []
        for case in cases:
            trial = trial_of(case.held, case.draws)
            if isinstance(trial, Unscored):
                case.unit.take("fuzzing", trial)
            else:
                asked.append((case, *trial))
        answers = self.data.examiner.fuzz(
            [Trial(case.explanation, marked) for case, marked, _ in asked]
        )
        for (case, _, truth), said in zip(asked, answers, strict=True):
            case.unit.take("fuzzing", _accuracy(truth, said))

    def _control(self, cases: Sequence[Case], layer: int) -> None:
        """Each explanation on another unit's excerpts; which, hangs on no answer."""
        if len(cases) < 2:
            for case in cases:
                case.unit.take("control", Unscored("no other neuron"))
            return
        draws = np.random.default_rng([self.config.seed, layer, cases[0].unit.index])
        others = [cases[other] for other in derangement(len(cases), draws)]
        asked = []
        for case, other in zip(cases, others, strict=True):
            if other.explanation.text:
                asked.append((case, other))
            else:
                case.unit.take("control", Unscored("no explanation to borrow"))
        answers = self.data.examiner.simulate(
            [case.simulation(other.explanation) for case, other in asked]
        )
        for (case, _), levels in zip(asked, answers, strict=True):
            if isinstance(levels, Unscored):
                case.unit.take("control", levels)
            else:
                case.unit.take("control", correlation(case.held.activations, levels))

    def _keep(self, sight: Sight, units: list[UnitScores], cases: dict[int, Case]) -> None:
        statistics = self.gathered.statistics[sight.layer]
        for place, unit in enumerate(units):
            case = cases.get(place)
            self.details.add(
                sight,
                place,
                unit,
                case.explanation.text if case else "",
                case.simulated if case else {},
                float(statistics.density[unit.index]),
                float(statistics.maximum[unit.index]),
            )
        self.units += units


def _accuracy(truth: np.ndarray, said: Sequence[bool] | Unscored) -> float | Unscored:
    return said if isinstance(said, Unscored) else balanced_accuracy(truth, said)
