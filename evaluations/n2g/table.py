"""Table 2: what is measured of graphs, averaged over the units of a layer and of all layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluations.n2g.metrics import STRUCTURE, WORDS
from evaluations.n2g.scores import PREDICTORS
from evaluations.record import Direction, Metric

ALL = "all"


@dataclass(frozen=True)
class Row:
    """A row of Table 2; ``direction`` is the paper's arrow."""

    name: str
    title: str
    direction: Direction | None
    unit: str = ""


ROWS = (
    Row("density", "Graph density, directed: E / (N (N - 1))", "lower"),
    Row("density_undirected", "Graph density, undirected: 2 E / (N (N - 1))", "lower"),
    Row("transitivity", "Transitivity", "lower"),
    Row("edges_to_activation", "Edges to activating nodes", "lower", "edges"),
    Row("out_degree", "Out-degree, mean over nodes", None, "edges"),
    Row("entropy", "Neuron entropy", "lower", "bits"),
    Row("diversity", "Token diversity", "lower", "word classes"),
)
CONVENTIONS = {"": "empty graphs counted 0, as in the paper", "_nonempty": "of graphs with edges"}
SCORES = ("f1", "precision", "recall")


def figures(layers: Sequence[dict[str, Any]]) -> tuple[list[Metric], dict[str, Any]]:
    """The metrics of a record, over all layers (``density``) and of each (``density.layer3``).

    Each is a mean over units, with its standard error over units. A unit with no activating example
    has no graph: it is counted as failed, not as an empty graph.
    """
    metrics: list[Metric] = []
    parts = {ALL: [unit for layer in layers for unit in layer["neurons"]]}
    parts |= {str(layer["layer"]): layer["neurons"] for layer in layers}
    for part, units in parts.items():
        suffix, where = ("", "all layers") if part == ALL else (f".layer{part}", f"layer {part}")
        metrics += _of_part(units, suffix, where)
    metrics += _cost(layers, len(parts[ALL]))
    reasons = Counter(unit["reason"] for unit in parts[ALL] if unit["reason"])
    classes: Counter[str] = Counter()
    for unit in parts[ALL]:
        classes.update(unit.get("classes", {}))
    extra = {
        "layers": [layer["layer"] for layer in layers],
        "reasons": dict(reasons),
        "classes": dict(classes),
        "sensitivity": _sensitivity(layers),
        "cost": [{"layer": layer["layer"], **layer["cost"]} for layer in layers],
    }
    return metrics, extra


def _of_part(units: Sequence[dict[str, Any]], suffix: str, where: str) -> list[Metric]:
    alive = [unit for unit in units if "metrics" in unit]
    dead = Counter(unit["reason"] for unit in units if "metrics" not in unit)
    found = []
    for row in ROWS:
        for convention, told in CONVENTIONS.items():
            counted = [one for one in alive if not convention or one["metrics"]["edges"]]
            reasons = Counter(dead)
            if empty := len(alive) - len(counted):
                reasons["graph without edges"] = empty
            found.append(
                _mean(
                    [one["metrics"][row.name] for one in counted], reasons,
                    name=f"{row.name}{convention}{suffix}", title=f"{row.title}, {where}; {told}",
                    unit=row.unit, direction=row.direction,
                )
            )  # fmt: skip
    empty_share = [float(not one["metrics"]["edges"]) for one in alive]
    found.append(
        _mean(empty_share, dead, name=f"empty{suffix}", title=f"Graphs without edges, {where}",
              unit="share")
    )  # fmt: skip
    for predictor in PREDICTORS:
        for score in SCORES:
            found.append(_score(alive, dead, predictor, score, suffix, where))
    better = [
        one["scores"]["trie"]["f1"] - one["scores"]["lookup"]["f1"]
        for one in alive
        if one["scores"]["trie"]["f1"] is not None
    ]
    found.append(
        _mean(better, Counter(dead), name=f"f1_gain{suffix}", direction="higher",
              title=f"F1 of the graph less that of the lookup, {where}")
    )  # fmt: skip
    return found


def _score(
    alive: Sequence[dict[str, Any]],
    dead: Counter[str],
    predictor: str,
    score: str,
    suffix: str,
    where: str,
) -> Metric:
    """A predictor's mean score over the units for which it exists."""
    values = [one["scores"][predictor][score] for one in alive]
    reasons = Counter(dead)
    if missing := sum(value is None for value in values):
        nothing = "none predicted" if score == "precision" else "fires on no held-out token"
        reasons[nothing] = missing
    return _mean(
        [value for value in values if value is not None], reasons,
        name=f"{score}_{predictor}{suffix}", direction="higher",
        title=f"{score.capitalize()} of firing on held-out excerpts, {predictor}, {where}",
    )  # fmt: skip


def _mean(values: Sequence[float], reasons: Counter[str], **told: Any) -> Metric:
    """Mean over units and its standard error, SD / sqrt(n) with n - 1 degrees of freedom."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    failed = sum(reasons.values())
    return Metric(
        value=float(np.mean(values)) if n else None, standard_error=error, n=n, n_failed=failed,
        reasons=dict(reasons) or ({} if n else {"no unit": 1}), description="n counts units",
        **told,
    )  # fmt: skip


def _cost(layers: Sequence[dict[str, Any]], units: int) -> list[Metric]:
    """What the graphs cost, of the machine that made them."""
    costs = [layer["cost"] for layer in layers]
    tokens = sum(sum(cost["tokens"].values()) for cost in costs)
    values = {
        "tokens_per_unit": ("Tokens the model has read for each unit", tokens / max(1, units)),
        "seconds": ("Time of all steps after the gathering", _total(costs, "seconds")),
        "masked_model_seconds": (
            "Of it in the masked language model", _total(costs, "masked_model_seconds")
        ),
    }  # fmt: skip
    return [
        Metric(name, title, value, "tokens" if name.startswith("tokens") else "s", n=units)
        for name, (title, value) in values.items()
    ]


def _total(costs: Iterable[dict[str, Any]], name: str) -> float:
    return float(sum(cost[name] for cost in costs))


def _sensitivity(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting of the thresholds with the means of all layers, units weighing alike."""
    found = []
    for settings in zip(*(layer["sensitivity"] for layer in layers), strict=True):
        n = sum(one["n"] for one in settings)
        alive = [one for one in settings if one["n"]]
        means = {
            name: sum(one["metrics"][name] * one["n"] for one in alive) / n
            for name in (*STRUCTURE, *WORDS)
        } if n else {}  # fmt: skip
        found.append(
            {"importance": settings[0]["importance"], "activation": settings[0]["activation"],
             "n": n, "metrics": means}
        )  # fmt: skip
    return found
