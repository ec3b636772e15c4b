"""How much the circuits of different methods, ablations and tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluations.suite.circuits.controls import jaccard
from evaluations.suite.circuits.frontier.candidates import Candidate
from evaluations.suite.circuits.frontier.config import REFERENCE
from evaluations.suite.circuits.frontier.results import Curve


def overlaps(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the Jaccard overlap of the curves' reference circuits, all with all.

    The reference circuit is the smallest whose cost on the fit prompts is at most a fifth of I.
    Random circuits of a method's ablation and of nearly its size stand for chance.

    Returns:
        ``names`` of the circuits with their number of ``edges``, the matrix ``jaccard`` (None where
        both circuits are empty), and ``random``: each one's mean overlap with random circuits.
    """
    known: list[tuple[Curve, Candidate]] = []
    for curve in curves:
        point = curve.frontier.reference(REFERENCE)
        if curve.method not in ("all", "random") and point is not None:
            known.append((curve, point.candidate))
    return {
        "names": [curve.name for curve, _ in known],
        "edges": [one.n for _, one in known],
        "jaccard": [[jaccard(one.kept, other.kept) for _, other in known] for _, one in known],
        "random": [_by_chance(one, curve.ablation, curves) for curve, one in known],
    }


def _by_chance(found: Candidate, ablation: str, curves: Sequence[Curve]) -> float | None:
    drawn = [
        several
        for curve in curves
        if curve.method == "random" and curve.ablation == ablation
        for several in curve.drawn
    ]
    if not drawn or not found.n:
        return None
    nearest = min(drawn, key=lambda several: abs(np.log(several[0].n / found.n)))
    values = [jaccard(found.kept, one.kept) for one in nearest]
    return float(np.mean([value for value in values if value is not None]))
