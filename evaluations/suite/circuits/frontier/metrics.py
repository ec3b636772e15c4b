"""The figures of frontiers, as records hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluations.core.record import UPPER_BOUND, Direction, Interval, Metric
from evaluations.core.statistics import LEVEL
from evaluations.suite.circuits.frontier.config import (
    EDGE_FIGURES,
    FAITHFUL,
    OVERFITTED,
    REFERENCE,
    FrontierConfig,
)
from evaluations.suite.circuits.frontier.curves import (
    FLOOR,
    Estimate,
    estimate,
    resampled_means,
)
from evaluations.suite.circuits.frontier.data import FrontierData
from evaluations.suite.circuits.frontier.frontiers import Frontier
from evaluations.suite.circuits.frontier.results import Curve, Restored
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.metrics import ABLE
from evaluations.tasks.pairs import Competence

UNABLE = f"accuracy below {ABLE}"
NO_REFERENCE = f"no circuit with Delta <= {REFERENCE:g} I on the fit prompts"


@dataclass(frozen=True)
class _Figure:
    """What a figure of a curve is called and how it is to be read."""

    title: str
    unit: str
    direction: Direction | None
    description: str


_FIGURES: Mapping[str, _Figure] = {
    **{
        name: _Figure(
            f"E({share:g})",
            "edges",
            "lower",
            f"fewest edges with Delta <= {share:g} I on held-out prompts",
        )
        for name, share in EDGE_FIGURES.items()
    },
    "faithful": _Figure(
        f"Edges for faithfulness {FAITHFUL:g}",
        "edges",
        "lower",
        f"fewest edges with faithfulness >= {FAITHFUL:g} on held-out prompts",
    ),
    "area": _Figure(
        "Area",
        "nats",
        "lower",
        "mean of ln(Delta / I) over the logarithm of the number of edges, held-out prompts",
    ),
}
"""By the beginning of the metric's name; its end is that of the curve (``Curve.key``)."""


def ceiling_metrics(
    ceiling: float, null: float | None, data: FrontierData, no_null: str
) -> list[Metric]:
    """Return I of the task and of the null task."""
    n = sum(one.n for one in data.sample)
    about = "mean KL(p || mean of p), p the prediction at the last position: the cost of knowing"
    about += " nothing of the prompt; n: prompts, too few make it too small"
    missing = {no_null: 1} if null is None else {}
    return [
        Metric("ceiling", "Ceiling I", ceiling, "nats", n=n, description=about),
        Metric(
            "ceiling_null",
            "Ceiling I, null task",
            null,
            "nats",
            n=n,
            n_failed=len(missing),
            reasons=missing,
            description=about,
        ),
    ]


def curve_metrics(curves: Sequence[Curve], skill: Competence, no_null: str) -> list[Metric]:
    """Return E(s), edges for faithfulness 0.8 and the area of every curve.

    There are none of a model that fails the task, nor of one without a null task. E(.2) of all
    methods together under the first ablation is given once more, as ``e20`` and ``e20_null``.
    """
    why = UNABLE if skill.accuracy < ABLE else no_null
    made = [
        _metric(curve, name, found, why)
        for curve in curves
        for name, found in curve.frontier.summary.items()
    ]
    headlines = {f"e20_{curves[0].ablation}{end}": f"e20{end}" for end in ("", "_null")}
    return [
        *made,
        *(replace(one, name=headlines[one.name]) for one in made if one.name in headlines),
        *(_excess(curve) for curve in curves if curve.method != "random"),
    ]


def _excess(curve: Curve) -> Metric:
    """Return by how much a curve's reference circuit costs more on held-out prompts."""
    found = curve.frontier.excess
    missing = {} if found is not None else {NO_REFERENCE: 1}
    return Metric(
        f"excess_{curve.key}",
        f"Held-out cost above fitted: {curve.name}",
        found,
        "share",
        "lower",
        n=len(curve.frontier.whole),
        n_failed=len(missing),
        reasons=missing,
        description=f"Delta on held-out prompts over that on the fit prompts, minus 1, of the "
        f"smallest circuit with Delta <= {REFERENCE:g} I on the fit prompts; above "
        f"{OVERFITTED:g}: overfitted; n: held-out prompts",
    )


def _metric(curve: Curve, name: str, found: Estimate, why: str) -> Metric:
    figure, frontier = _FIGURES[name], curve.frontier
    n = len(frontier.whole)
    reason = why or _missing(name, found, frontier)
    about = [figure.description, f"{curve.name}; n: held-out prompts"]
    smallest = min((edges for edges, _ in frontier.tried if edges), default=None)
    if figure.unit == "edges" and found.value == smallest and smallest is not None:
        about.append(f"the smallest circuit that was tried: {UPPER_BOUND}")
    if found.missed and not reason:
        about.append(f"{100 * found.missed:.3g} % of the resamples never get there")
    return Metric(
        f"{name}_{curve.key}",
        f"{figure.title}: {curve.name}",
        None if reason else found.value,
        figure.unit,
        figure.direction,
        interval=None if reason else interval_of(found, n, frontier.resamples, frontier.seed),
        n=n,
        n_failed=int(bool(reason)),
        reasons={reason: 1} if reason else {},
        description="; ".join(about),
    )


def _missing(name: str, found: Estimate, frontier: Frontier) -> str:
    """Return why a curve has no such figure; "" where it has."""
    if not frontier.ceiling > FLOOR:
        return "predictions do not depend on the prompt"
    if found.value is not None:
        return ""
    if name == "faithful" and not frontier.is_defined:
        return "whole model and empty circuit do not differ in logit difference"
    return f"not reached by circuits of up to {int(frontier.edges[-1]):,} edges"


def interval_of(found: Estimate, n: int, resamples: int, seed: int) -> Interval | None:
    """Return the interval of an estimate; None where it has no upper end."""
    if found.low is None or found.high is None:
        return None
    method = f"percentile bootstrap over {n} prompts, {resamples} resamples, seed {seed}"
    return Interval(found.low, found.high, LEVEL, method)


def mean_of(values: Float[np.ndarray, " prompt"], config: FrontierConfig) -> Estimate:
    """Return the mean over prompts with its bootstrap interval."""
    draws = resampled_means(values[None], config.resamples, config.seed)
    return estimate(lambda rows: rows[..., 0], values.mean(keepdims=True), draws, len(values))


def restored_metrics(restored: Sequence[Restored], config: FrontierConfig) -> list[Metric]:
    """Return how much more each reference circuit costs once excluded edges are restored."""
    return [_restored_metric(one, config) for one in restored if one.curve.method != "all"]


def _restored_metric(one: Restored, config: FrontierConfig) -> Metric:
    frontier, n = one.curve.frontier, len(one.curve.frontier.whole)
    missing = "no restorations" if not config.restorations else ""
    if one.rise is None and not missing:
        missing = NO_REFERENCE
    return Metric(
        f"restored_{one.curve.key}",
        f"Rise with edges restored: {one.curve.name}",
        None if one.rise is None else one.rise.value,
        "nats",
        "lower",
        interval=None
        if one.rise is None
        else interval_of(one.rise, n, frontier.resamples, frontier.seed),
        n=n,
        n_failed=int(bool(missing)),
        reasons={missing: 1} if missing else {},
        description="Delta with every excluded edge restored with probability 1/2 minus Delta of "
        f"the smallest circuit with Delta <= {REFERENCE:g} I on the fit prompts, mean over "
        f"{config.restorations} draws; above 0: the circuit lives on harms that cancel out; "
        "n: held-out prompts",
    )


# What figures are drawn from --------------------------------------------------------------------


def curve_row(curve: Curve) -> dict[str, Any]:
    """Return a curve for the record: its circuits, and all that were tried."""
    frontier = curve.frontier
    low, high = frontier.intervals
    return {
        "ablation": curve.ablation,
        "method": curve.method,
        "null": curve.is_null,
        "points": [
            {
                "edges": point.n,
                "setting": point.candidate.setting,
                "fit": point.fit,
                "held": float(frontier.costs[place]),
                "low": float(low[place]),
                "high": float(high[place]),
                "difference": float(point.difference.mean()),
                "faithfulness": frontier.faithfulness[place],
            }
            for place, point in enumerate(frontier.points)
        ],
        "excess": frontier.excess,
        "overfitted": frontier.is_overfitted,
        "tried": [[edges, cost] for edges, cost in frontier.tried],
        "not_finite": frontier.not_finite,
        "not_converged": frontier.not_converged,
        "summary": {
            name: {key: _finite(value) for key, value in vars(found).items()}
            for name, found in frontier.summary.items()
        },
    }


def circuit_row(curve: Curve, graph: Graph) -> dict[str, Any] | None:
    """Return a method's reference circuit for the record; None where there is none to draw."""
    point = curve.frontier.reference(REFERENCE)
    if point is None or curve.method in ("all", "random"):
        return None
    return {
        "ablation": curve.ablation,
        "method": curve.method,
        "null": curve.is_null,
        "setting": point.candidate.setting,
        "fit": point.fit,
        "held": float(point.kl.mean()),
        "circuit": circuit_to_dict(graph, point.candidate.kept),
    }


def restored_row(one: Restored) -> dict[str, Any]:
    """Return what restoring edges did, for the record."""
    rise = None if one.rise is None else {k: _finite(v) for k, v in vars(one.rise).items()}
    return {"ablation": one.curve.ablation, "method": one.curve.method, "rise": rise}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
