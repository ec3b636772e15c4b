"""How much of what a model does its circuit does, and how good a method's circuits are.

Faithfulness of a circuit: f = (m(circuit) - m(empty)) / (m(full) - m(empty)), m the mean logit
difference over prompts, 'empty' the model with every edge replaced. It is 0 for the empty circuit,
1 for the whole model, bounded by neither; where the whole model and the empty circuit do not
differ, it does not exist.

Of a METHOD, which ranks edges (MIB: Mueller et al. 2025, arXiv 2504.13151, section 3): with f(k)
the faithfulness of its first k of all edges, CPR is the area under f and CMD the area of |1 - f|
over the shares 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100 %, by the trapezoidal rule, linear in the
share; k is rounded down, as there. A perfect method has CPR 0.999 and CMD 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from evaluations.circuits.attribution import first
from evaluations.circuits.case import Case, Outcome
from evaluations.circuits.find import Found
from evaluations.record import Interval
from evaluations.statistics import Ratio, bootstrap, ratio
from sat_interp import progress

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNDEFINED = "whole and fully corrupted model do not differ in logit difference"


@dataclass(frozen=True)
class Faithfulness:
    """A circuit's faithfulness; value None where it does not exist."""

    value: float | None
    standard_error: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Point:
    """A circuit on a method's curve: the first ``edges`` of its ranking."""

    share: float
    edges: int
    faithfulness: float | None
    kl: float


def is_defined(case: Case) -> bool:
    """Whether whole and empty model differ: their mean gap is over twice its standard error."""
    gap = (case.full.difference - case.empty.difference).numpy()
    mean = abs(float(gap.mean()))
    error = float(gap.std(ddof=1)) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
    return mean > max(2 * error, 1e-6)


def faithfulness(case: Case, circuit: Outcome, resamples: int = 0, seed: int = 0) -> Faithfulness:
    """A circuit's faithfulness, its standard error and bootstrap interval over prompts."""
    if not is_defined(case):
        return Faithfulness(None)
    gained = (circuit.difference - case.empty.difference).numpy()
    whole = (case.full.difference - case.empty.difference).numpy()
    found: Ratio = ratio(gained, whole)
    interval = bootstrap(gained, whole, resamples=resamples, seed=seed)
    return Faithfulness(found.value, found.standard_error, over_prompts(interval))


def mean_over_prompts(
    values: Tensor, resamples: int, seed: int
) -> tuple[float, float | None, Interval | None]:
    """Mean, standard error and bootstrap interval of one value per prompt."""
    numbers, ones = values.numpy(), np.ones(len(values))
    found = ratio(numbers, ones)
    interval = bootstrap(numbers, ones, resamples=resamples, seed=seed)
    return found.value, found.standard_error, over_prompts(interval)


def over_prompts(interval: Interval | None) -> Interval | None:
    """The interval, saying what was resampled here: prompts."""
    if interval is None:
        return None
    return dataclasses.replace(interval, method=interval.method.replace("stories", "prompts"))


def tau_ranking(sweep: Mapping[float, Found]) -> Int[Tensor, "edge"]:
    """Edges by the tau at which each falls: the largest one of the sweep at which it is kept.

    Edges of one tau by their KL step there, largest first; those never kept by their step at the
    smallest tau, untested ones (their step is 0) last but for negative steps. Equal ones come in
    ACDC's order.
    """
    rising = sorted(sweep)
    lowest = sweep[rising[0]]
    falls = torch.zeros(len(lowest.kept), dtype=torch.float64)
    steps = lowest.scores.double().clone()
    for tau in rising:
        kept = sweep[tau].kept
        falls[kept] = tau
        steps[kept] = sweep[tau].scores.double()[kept]
    keys = list(zip(falls.tolist(), steps.tolist(), strict=True))
    return torch.tensor(
        sorted(range(len(keys)), key=lambda edge: (-keys[edge][0], -keys[edge][1], -edge))
    )


def curve(case: Case, order: Int[Tensor, "edge"], shares: Sequence[float] = SHARES) -> list[Point]:
    """The circuits of the first edges of a ranking, at shares of all edges."""
    points = []
    for share in progress.bar(shares, desc="curve", unit="circuit"):
        n = int(share * len(order) + 1e-9)
        outcome = case.outcome(first(order, n))
        points.append(Point(share, n, faithfulness(case, outcome).value, float(outcome.kl.mean())))
    return points


def areas(points: Sequence[Point]) -> tuple[float, float] | None:
    """CPR and CMD of a curve; None where faithfulness does not exist."""
    values = [point.faithfulness for point in points]
    if any(value is None for value in values):
        return None
    shares, found = [point.share for point in points], np.array(values, dtype=float)
    return float(np.trapezoid(found, shares)), float(np.trapezoid(np.abs(1 - found), shares))
