"""Metrics of a record: means of Table 2 and of scores over the units of a layer and of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluations.core.record import Direction, Metric
from evaluations.core.statistics import mean_interval, share_interval
from evaluations.suite.n2g.metrics import LOOKUPS, PREDICTORS, STRUCTURE, WORDS

ALL = "all"


@dataclass(frozen=True)
class GraphMetric:
    """A row of Table 2; ``direction`` is that of the paper's arrow."""

    name: str
    title: str
    direction: Direction | None
    unit: str = ""


ROWS = (
    GraphMetric("density", "Graph density, directed: E / (N (N - 1))", "lower"),
    GraphMetric("density_undirected", "Graph density, undirected: 2 E / (N (N - 1))", "lower"),
    GraphMetric("transitivity", "Transitivity", "lower"),
    GraphMetric("edges_to_activation", "Edges to activating nodes", "lower", "edges"),
    GraphMetric("out_degree", "Out-degree, mean over nodes", None, "edges"),
    GraphMetric("entropy", "Neuron entropy", "lower", "bits"),
    GraphMetric("diversity", "Token diversity", "lower", "word classes"),
)
CONVENTIONS = {
    "": "empty graphs counted as 0, as in the paper",
    "_nonempty": "graphs with edges only",
}
SCORES = ("f1", "precision", "recall")
DEFINED = ("f1", "recall")
"""Scores that are defined for a predictor that predicts no firing."""
PREDICTING = "_predicting"


def graph_metrics(layers: Sequence[dict[str, Any]]) -> tuple[list[Metric], dict[str, Any]]:
    """Return the metrics of a record, over all layers (``density``) and each (``density.layer3``).

    Means over units have Student's t interval, shares of units Wilson's; fewer than five units
    have none (``core.statistics``). A unit without activating examples has no graph: it is counted
    as failed, not as an empty graph.
    """
    metrics: list[Metric] = []
    parts = {ALL: [unit for layer in layers for unit in layer["neurons"]]}
    parts |= {str(layer["layer"]): layer["neurons"] for layer in layers}
    for part, units in parts.items():
        suffix, where = ("", "all layers") if part == ALL else (f".layer{part}", f"layer {part}")
        graphs, scores = _graphs(units, where), _scores(units, where)
        metrics += [replace(metric, name=metric.name + suffix) for metric in (*graphs, *scores)]
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
    """Return the rows of Table 2 and the shares of empty and of unfaithful graphs.

    ``empty``: share of units whose graph has no edge. ``unfaithful``: share of units for which no
    excerpt has a faithful window.
    """
    explained, unexplained = _explained(units)
    metrics = []
    for row in ROWS:
        for convention, description in CONVENTIONS.items():
            counted = [unit for unit in explained if not convention or unit["metrics"]["edges"]]
            reasons = Counter(unexplained)
            if empty := len(explained) - len(counted):
                reasons["graph without edges"] = empty
            metrics.append(
                _mean(
                    [unit["metrics"][row.name] for unit in counted],
                    reasons,
                    name=f"{row.name}{convention}",
                    title=f"{row.title}, {where}; {description}",
                    unit=row.unit,
                    direction=row.direction,
                )
            )
    return [
        *metrics,
        _share(
            [not unit["metrics"]["edges"] for unit in explained],
            unexplained,
            name="empty",
            title=f"Graphs without edges, {where}",
        ),
        _share(
            [unit["unfaithful"] == unit["excerpts"] for unit in explained],
            unexplained,
            name="unfaithful",
            title=f"Units without a faithful window, {where}",
        ),
    ]


def _scores(units: Sequence[dict[str, Any]], where: str) -> list[Metric]:
    """Return the scores of each predictor over two sets of units, the same for all predictors.

    - All units that fire on a held-out token: F1 and recall (``f1_trie``, ``recall_trie``). Both
      are 0 if a predictor predicts no firing. Units that do not fire on a held-out token are
      counted as failed.
    - The subset for which the graph and every lookup predict some firing: precision, recall and F1
      (``f1_trie_predicting``), which are all defined there.

    ``f1_gain``, ``f1_gain_windows`` and ``f1_gain_published`` are the mean differences of F1
    between the graph and each lookup over the same units. ``predicts`` is the share of the units
    that fire on a held-out token whose graph predicts some firing.
    """
    explained, unexplained = _explained(units)
    scored = [unit for unit in explained if unit["scores"]["trie"]["f1"] is not None]
    missing = Counter(unexplained)
    if silent := len(explained) - len(scored):
        missing["fires on no held-out token"] = silent
    by_graph = [unit for unit in scored if _predicts(unit, "trie")]
    by_all = [unit for unit in by_graph if all(_predicts(unit, lookup) for lookup in LOOKUPS)]
    more_missing = Counter(missing)
    if without_graph := len(scored) - len(by_graph):
        more_missing["graph predicts nothing"] = without_graph
    if without_lookup := len(by_graph) - len(by_all):
        more_missing["a lookup predicts nothing"] = without_lookup
    fires, predicted = (
        "units that fire on a held-out token",
        "units whose graph and lookups predict",
    )
    return [
        *_score_means(scored, missing, "", f"{where}; {fires}"),
        *_score_means(by_all, more_missing, PREDICTING, f"{where}; {predicted}"),
        _share(
            [_predicts(unit, "trie") for unit in scored],
            missing,
            name="predicts",
            title=f"Units whose graph predicts firing on a held-out token, {where}",
        ),
    ]


def _score_means(
    units: Sequence[dict[str, Any]], reasons: Counter[str], suffix: str, where: str
) -> list[Metric]:
    means = [
        _mean(
            [unit["scores"][predictor][score] for unit in units],
            reasons,
            name=f"{score}_{predictor}{suffix}",
            direction="higher",
            title=f"{score.capitalize()} of predicted firing on held-out excerpts, {predictor}, "
            f"{where}",
        )
        for predictor in PREDICTORS
        for score in (SCORES if suffix else DEFINED)
    ]
    for lookup in LOOKUPS:
        gains = [unit["scores"]["trie"]["f1"] - unit["scores"][lookup]["f1"] for unit in units]
        means.append(
            _mean(
                gains,
                reasons,
                name=f"f1_gain{lookup.removeprefix('lookup')}{suffix}",
                direction="higher",
                title=f"F1 of the graph minus F1 of {lookup}, {where}",
            )
        )
    return means


def _explained(units: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the units that have a graph, and the reasons why others have none."""
    explained = [unit for unit in units if "metrics" in unit]
    return explained, Counter(unit["reason"] for unit in units if "metrics" not in unit)


def _predicts(unit: dict[str, Any], predictor: str) -> bool:
    counts = unit["scores"][predictor]
    return bool(counts["hits"] + counts["false"])


def _mean(values: Sequence[float], reasons: Counter[str], **fields: Any) -> Metric:
    """Return a mean over units with its standard error and Student's t interval."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    value = float(np.mean(values)) if n else None
    interval = mean_interval(values, "units")
    return _metric(value, n, reasons, standard_error=error, interval=interval, **fields)


def _share(hits: Sequence[bool], reasons: Counter[str], **fields: Any) -> Metric:
    """Return a share of units with Wilson's interval."""
    n = len(hits)
    interval = share_interval(sum(hits), n, "units")
    value = sum(hits) / n if n else None
    return _metric(value, n, reasons, interval=interval, unit="share", **fields)


def _metric(value: float | None, n: int, reasons: Counter[str], **fields: Any) -> Metric:
    return Metric(
        value=value,
        n=n,
        n_failed=sum(reasons.values()),
        reasons=dict(reasons) or ({} if n else {"no unit": 1}),
        description="n: units",
        **fields,
    )


def _cost(layers: Sequence[dict[str, Any]], units: int) -> list[Metric]:
    """Return the cost of the graphs on the machine that made them."""
    costs = [layer["cost"] for layer in layers]
    tokens = sum(sum(cost["tokens"].values()) for cost in costs)
    seconds, masked = _total(costs, "seconds"), _total(costs, "masked_model_seconds")
    return [
        Metric(
            "tokens_per_unit", "Tokens read per unit", tokens / max(1, units), "tokens", n=units
        ),
        Metric("seconds", "Time after gathering excerpts", seconds, "s", n=units),
        Metric("masked_model_seconds", "Time in the masked language model", masked, "s", n=units),
    ]


def _total(costs: Iterable[dict[str, Any]], name: str) -> float:
    return float(sum(cost[name] for cost in costs))


def _sensitivity(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean metrics over the units of all layers for each setting of the thresholds."""
    settings = []
    for by_layer in zip(*(layer["sensitivity"] for layer in layers), strict=True):
        n = sum(setting["n"] for setting in by_layer)
        counted = [setting for setting in by_layer if setting["n"]]
        settings.append(
            {
                "importance": by_layer[0]["importance"],
                "activation": by_layer[0]["activation"],
                "n": n,
                "metrics": {
                    name: sum(setting["metrics"][name] * setting["n"] for setting in counted) / n
                    for name in (*STRUCTURE, *WORDS)
                    if n
                },
            }
        )
    return settings
