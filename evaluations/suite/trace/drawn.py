"""What a record keeps for figures: curves, knock-outs, heat maps, certificates of constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluations.suite.trace.curves import SMALLEST, Value
from evaluations.suite.trace.figures import Curve, Figures
from evaluations.suite.trace.fit import Constants
from evaluations.suite.trace.measure import HEAT_METHODS, ROLES, TRUTH, Plan
from evaluations.suite.trace.run import positions


def extra(figures: Figures) -> dict[str, Any]:
    """Return curves, knock-outs, heat maps and certificates as a record keeps them."""
    traced = figures.traced
    return {
        "n_fit": traced.n_fit,
        "n_held": figures.n,
        "n_layers": figures.n_layers,
        "curves": [
            _curve(figures, method, curve) for method in figures.effects for curve in figures.curves
        ],
        "knock_out": [_knocked(figures, c) for c in figures.curves if c[1] not in TRUTH],
        "heat": _heat(figures),
        "constants": _certificates(traced.plan, traced.constants),
    }


def _curve(figures: Figures, method: str, curve: Curve) -> dict[str, Any]:
    found = [figures.resamples.value(one) for one in figures.of(method, curve)]
    losses = figures.held(method, curve)
    rows = figures.rows(figures.traced.plan, curve)
    below = float(losses.logit[0].nanmean())
    logit = 1 - losses.logit[rows].nanmean(1) / below if below >= SMALLEST else [None] * len(rows)
    fitted = figures.fitted(method, curve)
    return {
        "method": method,
        **_named(curve),
        **_values(found),
        "fit": [float(one) if np.isfinite(one) else None for one in fitted],
        "logit": [None if one is None else float(one) for one in logit],
    }


def _named(curve: Curve) -> dict[str, Any]:
    return dict(zip(("kind", "tokens", "window"), curve, strict=True))


def _values(found: Sequence[Value]) -> dict[str, Any]:
    return {name: [getattr(one, name) for one in found] for name in ("value", "low", "high")}


def _knocked(figures: Figures, curve: Curve) -> dict[str, Any]:
    assert figures.traced.knocked is not None
    rows = figures.rows(figures.traced.plan, curve)
    resampled = figures.resamples.means(figures.traced.knocked.p[rows].numpy())
    return {**_named(curve), **_values([figures.resamples.value(one) for one in resampled])}


def _heat(figures: Figures) -> list[dict[str, Any]]:
    """Layers down, tokens across: each over the facts that have such a token, n of them."""
    traced = figures.traced
    plan = traced.heat_plan
    assert plan is not None
    places = [positions(fact) for fact in traced.held_facts]
    has_role = {role: torch.tensor([bool(one[role]) for one in places]) for role in ROLES}
    n = [int(has_role[role].sum()) for role in ROLES]
    kinds = sorted({kind for kind, *_ in plan.at})
    maps = []
    for method in HEAT_METHODS:
        if method not in traced.heat:
            continue
        effects = {
            role: figures.effects_of(traced.heat[method].of(has_role[role]))[:, 0] for role in ROLES
        }
        for kind in kinds:
            grid = [
                [_finite(effects[role][plan.at[kind, role, 1, layer]]) for role in ROLES]
                for layer in range(figures.n_layers)
            ]
            one = {"method": method, "kind": kind, "tokens": list(ROLES), "n": n, "value": grid}
            maps.append(one)
    return maps


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _certificates(plan: Plan, fitted: Constants | None) -> list[dict[str, Any]]:
    if fitted is None:
        return []
    return [
        {
            "kind": problem.kind if problem.layers else "nothing",
            "tokens": problem.tokens if problem.layers else "",
            "layers": list(problem.layers),
            "loss": float(fitted.loss[number]),
            "gradient": float(fitted.gradient[number]),
            "gap": float(fitted.gap[number]),
            "converged": bool(fitted.converged[number]),
        }
        for number, problem in enumerate(plan.problems[: len(fitted.vectors)])
    ]
