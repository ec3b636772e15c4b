"""Scores of explanations, and metrics over all units.

- *Simulation* (Bills et al. 2023): Pearson correlation between a unit's activations and the levels
  simulated from its explanation, over the tokens of all held-out excerpts.
- *Detection* (Paulo et al. 2024): an examiner judges for each held-out excerpt whether the unit
  fires in it. Balanced accuracy: (true positive rate + true negative rate) / 2; chance is 0.5.
- *Fuzzing* (Paulo et al. 2024): held-out excerpts in which the unit fires are shown with marked
  tokens. In half of them the firing tokens are marked, in the others as many random tokens on which
  it does not fire. An examiner judges which markings are correct; balanced accuracy.
- *Control*: the simulation score with the explanation of another unit of the same layer.

Units without a score are counted with their reason and excluded from the mean. The share of units
with each score is a metric of its own. The record lists these units, so that two models can be
compared on the units that are scored in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap, share_interval
from evaluations.suite.neurons.examiners.base import Marked, Unscored
from evaluations.suite.neurons.excerpts import HeldOut

TITLES = {
    "simulation": "Simulation score",
    "detection": "Detection, balanced accuracy",
    "fuzzing": "Fuzzing, balanced accuracy",
    "control": "Control: shuffled explanations",
}
MEANINGS = {
    "simulation": "Pearson correlation over the tokens of held-out excerpts",
    "detection": "judging which held-out excerpts reach half of the highest activation",
    "fuzzing": "judging which markings of firing tokens are correct; half are random",
    "control": "simulation score with the explanation of another neuron of the same layer",
}


@dataclass
class UnitScores:
    """Scores of one unit: the value of each, or the reason why it is missing."""

    layer: int
    index: int
    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: float | Unscored) -> None:
        """Set a score."""
        if isinstance(value, Unscored):
            self.reasons[name] = value.reason
        else:
            self.values[name] = value

    def fail(self, names: Sequence[str], reason: str) -> None:
        """Set the reason why some scores are missing."""
        self.reasons.update(dict.fromkeys(names, reason))


def correlation(
    activations: Sequence[Float[np.ndarray, " _"]], levels: Sequence[Sequence[float]]
) -> float | Unscored:
    """Return Pearson's correlation over the tokens of all excerpts."""
    if unscored := undefined_correlation(activations):
        return unscored
    true = np.concatenate(activations).astype(np.float64)
    simulated = np.concatenate([np.asarray(row, dtype=np.float64) for row in levels])
    if not np.isfinite(simulated).all():
        return Unscored("prediction not finite")
    if np.ptp(simulated) == 0:
        return Unscored("constant prediction")
    true, simulated = true - true.mean(), simulated - simulated.mean()
    norm = np.sqrt((true @ true) * (simulated @ simulated))
    return float(np.clip(true @ simulated / norm, -1, 1))


def undefined_correlation(activations: Sequence[Float[np.ndarray, " _"]]) -> Unscored | None:
    """Return why no prediction of these activations has a correlation; None if one can have."""
    if not any(len(row) for row in activations):
        return Unscored("no held-out excerpt")
    if np.ptp(np.concatenate(activations)) == 0:
        return Unscored("constant activation")
    return None


def balanced_accuracy(
    truth: Bool[np.ndarray, " excerpts"], verdicts: Sequence[bool]
) -> float | Unscored:
    """Return the mean of the true positive and the true negative rate."""
    if truth.all() or not truth.any():
        return one_sided(truth)
    right = truth == np.asarray(verdicts, dtype=bool)
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def one_sided(truth: Bool[np.ndarray, " excerpts"]) -> Unscored:
    """Return the reason why only one answer is correct."""
    return Unscored("it fires in every excerpt" if truth.any() else "it fires in no excerpt")


def fuzzing_trial(
    held_out: HeldOut, draws: np.random.Generator
) -> tuple[tuple[Marked, ...], Bool[np.ndarray, " excerpts"]] | Unscored:
    """Return marked excerpts in which a unit fires, and which markings are correct.

    Half of the excerpts are marked wrongly. Excerpts in which the unit fires on most tokens are
    excluded, as they have too few other tokens to mark.
    """
    usable = [
        place for place, fires in enumerate(held_out.fires) if 0 < fires.sum() <= (~fires).sum()
    ]
    if len(usable) < 2:
        return Unscored("fewer than two excerpts to mark")
    wrong = set(draws.permutation(usable)[: len(usable) // 2].tolist())
    marked = []
    for place in usable:
        fires = held_out.fires[place]
        chosen = np.flatnonzero(fires)
        if place in wrong:
            chosen = draws.choice(np.flatnonzero(~fires), len(chosen), replace=False)
        tokens, start = held_out.tokens[place], held_out.starts[place]
        marked.append(Marked(tokens, frozenset(chosen.tolist()), start))
    return tuple(marked), np.array([place not in wrong for place in usable])


def derangement(n: int, draws: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Return a permutation of n >= 2 elements that moves each of them."""
    order = draws.permutation(n)
    moved = np.empty(n, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def metrics(
    units: Sequence[UnitScores], names: Sequence[str], seed: int, resamples: int
) -> list[Metric]:
    """Return the mean of each score over all units and over those of each layer."""
    layers = sorted({unit.layer for unit in units})
    means = [_mean(units, name, name, "", seed, resamples) for name in names]
    for layer in layers:
        own = [unit for unit in units if unit.layer == layer]
        means += [
            _mean(own, name, f"{name}_layer_{layer}", f", layer {layer}", seed, resamples)
            for name in names
        ]
    dead = sum("dead" in unit.reasons.values() for unit in units)
    without = [unit for unit in units if "simulation" in unit.reasons]
    reasons = dict(Counter(unit.reasons["simulation"] for unit in without))
    return [
        *means,
        *(_scored(units, name) for name in names),
        Metric(
            "dead",
            "Dead neurons",
            float(dead),
            "neurons",
            n=len(units),
            description="neurons that never fire on the text; n: neurons examined",
        ),
        Metric(
            "unscored",
            "Neurons without a simulation score",
            float(len(without)),
            "neurons",
            n=len(units),
            reasons=reasons,
            description="including dead neurons; n: neurons examined",
        ),
    ]


def _scored(units: Sequence[UnitScores], score: str) -> Metric:
    """Return the share of units that have a score."""
    n, reasons = len(units), Counter(unit.reasons.get(score) for unit in units)
    hits = reasons.pop(None, 0)
    return Metric(
        f"{score}_scored",
        f"Share of neurons with a score: {TITLES[score][0].lower()}{TITLES[score][1:]}",
        hits / n if n else None,
        interval=share_interval(hits, n, "neurons"),
        n=n,
        reasons={str(reason): count for reason, count in reasons.items()}
        or ({} if n else {"no neuron": 1}),
        description="n: neurons examined; reasons: those of neurons without a score",
    )


def _mean(
    units: Sequence[UnitScores], score: str, name: str, part: str, seed: int, resamples: int
) -> Metric:
    values = np.array([unit.values[score] for unit in units if score in unit.values])
    reasons = Counter(unit.reasons[score] for unit in units if score in unit.reasons)
    failed = sum(reasons.values())
    n = len(values)
    return Metric(
        name,
        TITLES[score] + part,
        float(values.mean()) if n else None,
        "",
        None if score == "control" else "higher",
        float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        interval_over_units(values, seed, resamples),
        n,
        failed,
        dict(reasons) if failed or n else {"no neuron": 1},
        f"{MEANINGS[score]}; mean over neurons; n: neurons scored",
    )


def interval_over_units(
    values: Float[np.ndarray, " units"], seed: int, resamples: int
) -> Interval | None:
    """Return the percentile bootstrap interval of the mean over units."""
    ones = np.ones(len(values))
    return bootstrap(values, ones, resamples=resamples, seed=seed, things="neurons")


def columns(units: Sequence[UnitScores], names: Sequence[str]) -> dict[str, list[object]]:
    """Return columns over all units for a record, with None for missing scores."""
    table: dict[str, list[object]] = {
        "layer": [unit.layer for unit in units],
        "index": [unit.index for unit in units],
    }
    for name in names:
        values = [unit.values.get(name) for unit in units]
        table[name] = [None if value is None else round(value, 6) for value in values]
    table["reason"] = [next(iter(unit.reasons.values()), None) for unit in units]
    return table


def unscored(units: Sequence[UnitScores], names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Return the indices of units without a score, by score and reason."""
    indices: dict[str, dict[str, list[int]]] = {name: {} for name in names}
    for name in names:
        for place, unit in enumerate(units):
            if name in unit.reasons:
                indices[name].setdefault(unit.reasons[name], []).append(place)
    return indices
