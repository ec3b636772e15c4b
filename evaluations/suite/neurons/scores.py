"""How well an explanation predicts its unit, and what all units' scores come to.

- *Simulation* (Bills et al. 2023): Pearson correlation, over the tokens of all held-out excerpts of
  a unit, of its activations and the levels simulated from the explanation.
- *Detection* (Paulo et al. 2024): of each held-out excerpt an examiner says whether the unit fires
  anywhere in it; balanced accuracy, (share of the firing ones it finds + share of the others it
  rejects) / 2. Chance is 0.5.
- *Fuzzing* (the same): held-out excerpts in which the unit fires are shown with tokens marked. In
  half of them those it fires on are, in the other half as many drawn from those it does not fire
  on; an examiner says which markings are right; balanced accuracy.
- *Control*: the simulation score of another unit's explanation, of the same layer.

A unit without a score is counted with its reason and is in no mean. The share of units that have
each score is a metric of its own, and the record keeps which they are: models of which other units
are scored are compared on the units that both have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap, share_interval
from evaluations.suite.neurons.examiners.base import Marked, Unscored
from evaluations.suite.neurons.shown import HeldOut

TITLES = {
    "simulation": "Simulation score",
    "detection": "Detection, balanced accuracy",
    "fuzzing": "Fuzzing, balanced accuracy",
    "control": "Simulation score of another neuron's explanation",
}
MEANINGS = {
    "simulation": "Pearson correlation over the tokens of held-out excerpts",
    "detection": "which held-out excerpts hold a token at half the highest activation or above",
    "fuzzing": "which markings of firing tokens are right; half are wrong, drawn at random",
    "control": "the same, each explanation scored on another neuron of its layer",
}


@dataclass
class UnitScores:
    """What became of one unit; of each score its value, or why there is none."""

    layer: int
    index: int
    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: float | Unscored) -> None:
        if isinstance(value, Unscored):
            self.reasons[name] = value.reason
        else:
            self.values[name] = value

    def fail(self, names: Sequence[str], reason: str) -> None:
        """Nothing of this can be had."""
        self.reasons.update(dict.fromkeys(names, reason))


def correlation(
    activations: Sequence[Float[np.ndarray, " _"]], levels: Sequence[Sequence[float]]
) -> float | Unscored:
    """Pearson's, over the tokens of all excerpts together."""
    if lost := without_score(activations):
        return lost
    true = np.concatenate(activations).astype(np.float64)
    said = np.concatenate([np.asarray(row, dtype=np.float64) for row in levels])
    if not np.isfinite(said).all():
        return Unscored("prediction not finite")
    if np.ptp(said) == 0:
        return Unscored("constant prediction")
    true, said = true - true.mean(), said - said.mean()
    return float(np.clip(true @ said / np.sqrt((true @ true) * (said @ said)), -1, 1))


def without_score(activations: Sequence[Float[np.ndarray, " _"]]) -> Unscored | None:
    """Why no prediction of these could be scored; None where one could."""
    if not any(len(row) for row in activations):
        return Unscored("no held-out excerpt")
    if np.ptp(np.concatenate(activations)) == 0:
        return Unscored("constant activation")
    return None


def balanced_accuracy(
    truth: Bool[np.ndarray, " excerpts"], said: Sequence[bool]
) -> float | Unscored:
    """Mean of the shares of the true and of the false ones that are told right."""
    if truth.all() or not truth.any():
        return one_sided(truth)
    right = truth == np.asarray(said, dtype=bool)
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def one_sided(truth: Bool[np.ndarray, " excerpts"]) -> Unscored:
    """Why there is nothing to tell apart."""
    return Unscored("it fires in every excerpt" if truth.any() else "it fires in no excerpt")


def trial_of(
    held: HeldOut, draws: np.random.Generator
) -> tuple[tuple[Marked, ...], Bool[np.ndarray, " excerpts"]] | Unscored:
    """The excerpts in which a unit fires, half of them marked wrongly, and which are right.

    Those in which it fires on more tokens than not are left out: nothing could be marked wrongly.
    """
    usable = [place for place, fires in enumerate(held.fires) if 0 < fires.sum() <= (~fires).sum()]
    if len(usable) < 2:
        return Unscored("fewer than two excerpts to mark")
    wrong = set(draws.permutation(usable)[: len(usable) // 2].tolist())
    marked = []
    for place in usable:
        fires = held.fires[place]
        chosen = np.flatnonzero(fires)
        if place in wrong:
            chosen = draws.choice(np.flatnonzero(~fires), len(chosen), replace=False)
        marked.append(Marked(held.tokens[place], frozenset(chosen.tolist()), held.starts[place]))
    return tuple(marked), np.array([place not in wrong for place in usable])


def derangement(n: int, draws: np.random.Generator) -> Int[np.ndarray, " n"]:
    """To each of n things another one, each once; n must be at least 2."""
    order = draws.permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def metrics(
    units: Sequence[UnitScores], names: Sequence[str], seed: int, resamples: int
) -> list[Metric]:
    """The mean of each score over all units, and over those of each layer."""
    layers = sorted({unit.layer for unit in units})
    found = [_mean(units, name, name, "", seed, resamples) for name in names]
    for layer in layers:
        own = [unit for unit in units if unit.layer == layer]
        found += [
            _mean(own, name, f"{name}_layer_{layer}", f", layer {layer}", seed, resamples)
            for name in names
        ]
    dead = sum("dead" in unit.reasons.values() for unit in units)
    lost = [unit for unit in units if "simulation" in unit.reasons]
    reasons = dict(Counter(unit.reasons["simulation"] for unit in lost))
    return [
        *found,
        *(_scored(units, name) for name in names),
        Metric("dead", "Dead neurons", float(dead), "neurons", n=len(units),
               description="that never fire on the text; n: neurons looked at"),
        Metric("unscored", "Neurons without a simulation score", float(len(lost)), "neurons",
               n=len(units), reasons=reasons,
               description="dead ones included; by reason; n: neurons looked at"),
    ]  # fmt: skip


def _scored(units: Sequence[UnitScores], score: str) -> Metric:
    """The share of units that have a score: what its mean is about."""
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
        description="n: neurons looked at; reasons: why the others have none",
    )


def _mean(
    units: Sequence[UnitScores], score: str, name: str, of: str, seed: int, resamples: int
) -> Metric:
    values = np.array([unit.values[score] for unit in units if score in unit.values])
    reasons = Counter(unit.reasons[score] for unit in units if score in unit.reasons)
    failed = sum(reasons.values())
    n = len(values)
    return Metric(
        name,
        TITLES[score] + of,
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
    """Percentile bootstrap interval of their mean."""
    found = bootstrap(values, np.ones(len(values)), resamples=resamples, seed=seed)
    if found is None:
        return None
    return dataclasses.replace(found, method=found.method.replace("stories", "neurons"))


def columns(units: Sequence[UnitScores], names: Sequence[str]) -> dict[str, list[object]]:
    """Every unit, for a record: a list for each thing said of it, None where there is no score."""
    told: dict[str, list[object]] = {
        "layer": [unit.layer for unit in units],
        "index": [unit.index for unit in units],
    }
    for name in names:
        values = [unit.values.get(name) for unit in units]
        told[name] = [None if value is None else round(value, 6) for value in values]
    told["reason"] = [next(iter(unit.reasons.values()), None) for unit in units]
    return told


def unscored(units: Sequence[UnitScores], names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """By score and reason, which units have no such score: their places among ``units``."""
    found: dict[str, dict[str, list[int]]] = {name: {} for name in names}
    for name in names:
        for place, unit in enumerate(units):
            if name in unit.reasons:
                found[name].setdefault(unit.reasons[name], []).append(place)
    return found
