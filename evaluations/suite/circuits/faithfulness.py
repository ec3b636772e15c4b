"""Faithfulness of circuits, and CPR and CMD of methods.

Faithfulness of a circuit: f = (m(circuit) - m(empty)) / (m(full) - m(empty)), with m the mean logit
difference over prompts and 'empty' the model with every edge replaced. It is 0 for the empty
circuit and 1 for the whole model, but bounded by neither. It is undefined if the whole model and
the empty circuit do not differ.

CPR and CMD evaluate a method that ranks edges (MIB: Mueller et al. 2025, arXiv 2504.13151,
section 3). Let f(k) be the faithfulness of the first k edges. CPR is the area under f with edges
ranked by signed score. CMD is the area of |1 - f| with edges ranked by absolute score. Both are
computed over the shares 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100 % by the trapezoidal rule, linear
in the share. k is rounded down, as in MIB's code, so in a small graph the first shares are the
empty circuit. A perfect method has CPR 0.999 and CMD 0. Both are computed on held-out prompts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.core.record import Interval
from evaluations.core.statistics import Ratio, bootstrap, percentile_interval, ratio
from evaluations.suite.circuits.case import Case, CircuitOutcome
from evaluations.suite.circuits.graph import on_paths
from evaluations.suite.circuits.methods.eap import first
from evaluations.suite.circuits.methods.find import FoundCircuit
from sat_interp._util import progress

Area = Literal["cpr", "cmd"]
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNDEFINED = "whole and fully corrupted model do not differ in logit difference"


@dataclass(frozen=True)
class Faithfulness:
    """A circuit's faithfulness; the value is None if it is undefined."""

    value: float | None
    standard_error: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Point:
    """A circuit on a method's curve: the first edges of its ranking.

    Attributes:
        share: share of all edges.
        edges: number of edges.
        faithfulness: None if it is undefined.
        kl: mean KL(whole model || circuit) in nats; None if it is not finite.
        edges_on_paths: number of edges on a path from the embedding to the output.
        gained: m(circuit) - m(empty) on each prompt, in nats.
    """

    share: float
    edges: int
    faithfulness: float | None
    kl: float | None
    edges_on_paths: int | None = None
    gained: Float[Tensor, "prompt"] | None = field(default=None, repr=False, compare=False)


def is_defined(case: Case) -> bool:
    """Return whether whole and empty model differ by more than twice the standard error."""
    return is_apart(case.full.difference.numpy(), case.empty.difference.numpy())


def is_apart(whole: Float[np.ndarray, " prompt"], empty: Float[np.ndarray, " prompt"]) -> bool:
    """Return whether logit differences differ by more than twice the standard error."""
    gap = whole - empty
    mean = abs(float(gap.mean()))
    error = float(gap.std(ddof=1)) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
    return mean > max(2 * error, 1e-6)


def faithfulness(
    case: Case, circuit: CircuitOutcome, resamples: int = 0, seed: int = 0
) -> Faithfulness:
    """Return a circuit's faithfulness, its standard error and bootstrap interval over prompts."""
    if not is_defined(case):
        return Faithfulness(None)
    gained = (circuit.difference - case.empty.difference).numpy()
    whole = (case.full.difference - case.empty.difference).numpy()
    estimate: Ratio = ratio(gained, whole)
    interval = bootstrap(gained, whole, resamples=resamples, seed=seed, things="prompts")
    return Faithfulness(estimate.value, estimate.standard_error, interval)


def mean_over_prompts(
    values: Tensor, resamples: int, seed: int
) -> tuple[float, float | None, Interval | None]:
    """Return mean, standard error and bootstrap interval of one value per prompt."""
    numbers, ones = values.numpy(), np.ones(len(values))
    mean = ratio(numbers, ones)
    interval = bootstrap(numbers, ones, resamples=resamples, seed=seed, things="prompts")
    return mean.value, mean.standard_error, interval


def tau_ranking(sweep: Mapping[float, FoundCircuit], signed: bool = True) -> Int[Tensor, "edge"]:
    """Rank edges by the largest tau of the sweep at which ACDC keeps them.

    Edges of equal tau are ranked by their KL step at that tau, largest first. Edges that are kept
    at no tau come last, by their step at the smallest tau (0 for untested edges). Ties are broken
    by ACDC's visiting order.

    Args:
        sweep: circuits by tau.
        signed: rank by signed KL step; else by absolute step.
    """
    rising = sorted(sweep)
    lowest = sweep[rising[0]]
    falls = torch.zeros(len(lowest.kept), dtype=torch.float64)
    steps = lowest.scores.double().clone()
    for tau in rising:
        kept = sweep[tau].all_chosen
        falls[kept] = tau
        steps[kept] = sweep[tau].scores.double()[kept]
    keys = list(zip(falls.tolist(), (steps if signed else steps.abs()).tolist(), strict=True))
    return torch.tensor(
        sorted(range(len(keys)), key=lambda edge: (-keys[edge][0], -keys[edge][1], -edge))
    )


def curve(case: Case, order: Int[Tensor, "edge"], shares: Sequence[float] = SHARES) -> list[Point]:
    """Evaluate the circuits of the first edges of a ranking, at shares of all edges.

    Edges on no path are removed, which changes nothing but under constants.
    """
    points: list[Point] = []
    sizes = [int(share * len(order) + 1e-9) for share in shares]
    circuits = {n: on_paths(case.graph, first(order, n)) for n in sizes}
    case.fit(list(circuits.values()))
    for share, n in zip(progress.bar(shares, desc="curve", unit="circuit"), sizes, strict=True):
        if points and points[-1].edges == n:
            points.append(dataclasses.replace(points[-1], share=share))
            continue
        kept = circuits[n]
        outcome = case.outcome(kept)
        kl = float(outcome.kl.mean())
        point = Point(
            share,
            n,
            faithfulness(case, outcome).value,
            kl if math.isfinite(kl) else None,
            int(kept.sum()),
            outcome.difference - case.empty.difference,
        )
        points.append(point)
    return points


def cpr(points: Sequence[Point]) -> float | None:
    """Return the area under the faithfulness of a curve; None if it is undefined."""
    values = _values(points)
    return None if values is None else _area(values, points)


def cmd(points: Sequence[Point]) -> float | None:
    """Return the area of |1 - faithfulness| of a curve; None if it is undefined."""
    values = _values(points)
    return None if values is None else _area(np.abs(1 - values), points)


def _area(values: np.ndarray, points: Sequence[Point]) -> float:
    return float(np.trapezoid(values, [point.share for point in points]))


def _values(points: Sequence[Point]) -> np.ndarray | None:
    values = [point.faithfulness for point in points]
    return None if None in values or not values else np.array(values, dtype=float)


def area_interval(
    case: Case, points: Sequence[Point], area: Area, resamples: int, seed: int
) -> Interval | None:
    """Compute a percentile bootstrap interval of CPR or CMD over the prompts of the curve.

    Returns:
        The interval; None with fewer than two prompts, or if a difference is not finite.
    """
    gained = [point.gained for point in points if point.gained is not None]
    whole = (case.full.difference - case.empty.difference).numpy()
    n = len(whole)
    if n < 2 or len(gained) < len(points) or resamples < 1:
        return None
    table = torch.stack(gained).numpy()
    if not (np.isfinite(table).all() and np.isfinite(whole).all()):
        return None
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    scale = whole[drawn].mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = np.stack([row[drawn].mean(1) / scale for row in table])
    curves = curves if area == "cpr" else np.abs(1 - curves)
    areas = np.trapezoid(curves, [point.share for point in points], axis=0)
    areas = areas[np.isfinite(areas)]
    if not len(areas):
        return None
    method = f"percentile bootstrap over {n} prompts, {resamples} resamples, seed {seed}"
    return percentile_interval(areas, method)
