"""Table 2: what is measured of graphs, averaged over the units of a layer and of all layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluations.core.record import Direction, Metric
from evaluations.core.statistics import mean_interval, share_interval
from evaluations.suite.n2g.metrics import STRUCTURE, WORDS
from evaluations.suite.n2g.predictors import LOOKUPS, PREDICTORS

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
DEFINED = ("f1", "recall")
"""Scores that a predictor has where it fires nowhere, too."""
PREDICTING = "_predicting"


def figures(layers: Sequence[dict[str, Any]]) -> tuple[list[Metric], dict[str, Any]]:
    """The metrics of a record, over all layers (``density``) and of each (``density.layer3``).

    Means over units have Student's t interval over units, shares of units Wilson's; of fewer than
    five units there is none (``core.statistics``). A unit with no activating example has no
    graph: it is counted as failed, not as an empty graph.
    """
    metrics: list[Metric] = []
    parts = {ALL: [unit for layer in layers for unit in layer["neurons"]]}
    parts |= {str(layer["layer"]): layer["neurons"] for layer in layers}
    for part, units in parts.items():
        suffix, where = ("", "all layers") if part == ALL else (f".layer{part}", f"layer {part}")
        graphs, scores = _graphs(units, where), _scores(units, where)
        metrics += [replace(one, name=one.name + suffix) for one in (*graphs, *scores)]
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


def _graphs(units: Sequence[dict[str, Any]], where: str) -> list[Metric]:
    """Table 2, the share of empty graphs, and how many units have excerpts without a short context.

    ``empty``: share of units whose graph has no edge. ``unfaithful``: share of units of which no
    excerpt keeps its peak in any window.
    """
    alive, dead = _explained(units)
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
                    name=f"{row.name}{convention}", title=f"{row.title}, {where}; {told}",
                    unit=row.unit, direction=row.direction,
                )
            )  # fmt: skip
    return [
        *found,
        _share([not one["metrics"]["edges"] for one in alive], dead, name="empty",
               title=f"Graphs without edges, {where}"),
        _share([one["unfaithful"] == one["excerpts"] for one in alive], dead, name="unfaithful",
               title=f"Units that keep the peak of no excerpt in a window, {where}"),
    ]  # fmt: skip


def _scores(units: Sequence[dict[str, Any]], where: str) -> list[Metric]:
    """How well each predictor tells where units fire, over two sets of units, the same for all.

    - All units that fire on a held-out token: F1 and recall (``f1_trie``, ``recall_trie``). Where a
      predictor fires nowhere it misses every token, and both are 0. Where the unit fires nowhere
      they are undefined: the unit is counted as failed.
    - Of these, the units for which the graph, and every lookup, fires somewhere: precision, recall
      and F1 (``f1_trie_predicting``), all three defined for all of them.

    ``f1_gain``, ``f1_gain_windows`` and ``f1_gain_published`` are the mean differences of F1
    between the graph and each lookup over the same units. ``predicts`` is the share of the units
    that fire on a held-out token whose graph fires somewhere.
    """
    alive, dead = _explained(units)
    scored = [one for one in alive if one["scores"]["trie"]["f1"] is not None]
    missing = Counter(dead)
    if silent := len(alive) - len(scored):
        missing["fires on no held-out token"] = silent
    graph = [one for one in scored if _predicts(one, "trie")]
    both = [one for one in graph if all(_predicts(one, lookup) for lookup in LOOKUPS)]
    fewer = Counter(missing)
    for reason, count in (("graph predicts nothing", len(scored) - len(graph)),
                          ("a lookup predicts nothing", len(graph) - len(both))):  # fmt: skip
        if count:
            fewer[reason] = count
    return [
        *_score_means(scored, missing, "", f"{where}; units that fire on a held-out token"),
        *_score_means(both, fewer, PREDICTING, f"{where}; units whose graph and lookups predict"),
        _share([_predicts(one, "trie") for one in scored], missing, name="predicts",
               title=f"Units whose graph predicts firing on a held-out token, {where}"),
    ]  # fmt: skip


def _score_means(
    units: Sequence[dict[str, Any]], reasons: Counter[str], suffix: str, where: str
) -> list[Metric]:
    found = []
    for predictor in PREDICTORS:
        for score in SCORES if suffix else DEFINED:
            found.append(
                _mean(
                    [one["scores"][predictor][score] for one in units], reasons,
                    name=f"{score}_{predictor}{suffix}", direction="higher",
                    title=f"{score.capitalize()} of firing on held-out excerpts, {predictor}, "
                          f"{where}",
                )
            )  # fmt: skip
    for lookup in LOOKUPS:
        gains = [one["scores"]["trie"]["f1"] - one["scores"][lookup]["f1"] for one in units]
        found.append(
            _mean(gains, reasons, name=f"f1_gain{lookup.removeprefix('lookup')}{suffix}",
                  direction="higher", title=f"F1 of the graph less that of {lookup}, {where}")
        )  # fmt: skip
    return found


def _explained(units: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The units that have a graph, and why the others have none."""
    alive = [unit for unit in units if "metrics" in unit]
    return alive, Counter(unit["reason"] for unit in units if "metrics" not in unit)


def _predicts(unit: dict[str, Any], predictor: str) -> bool:
    counts = unit["scores"][predictor]
    return bool(counts["hits"] + counts["false"])


def _mean(values: Sequence[float], reasons: Counter[str], **told: Any) -> Metric:
    """Mean over units, its standard error, SD / sqrt(n) with n - 1, and Student's t interval."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    value = float(np.mean(values)) if n else None
    interval = mean_interval(values, "units")
    return _metric(value, n, reasons, standard_error=error, interval=interval, **told)


def _share(hits: Sequence[bool], reasons: Counter[str], **told: Any) -> Metric:
    """A share of units with Wilson's interval."""
    n = len(hits)
    interval = share_interval(sum(hits), n, "units")
    return _metric(sum(hits) / n if n else None, n, reasons, interval=interval, unit="share",
                   **told)  # fmt: skip


def _metric(value: float | None, n: int, reasons: Counter[str], **told: Any) -> Metric:
    return Metric(
        value=value, n=n, n_failed=sum(reasons.values()),
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
