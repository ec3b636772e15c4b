"""L0-CE fronts: the trade-off between sparsity and loss of each model's autoencoders.

A comparison at one L1 coefficient is confounded by the scale of a model's activations and their
effect on the loss. A sweep over coefficients gives a curve instead; models are compared by their L0
at a CE loss score that all curves reach, interpolated linearly between neighbouring points. The
interval is from bootstrap resamples of stories, which all points measured on the same stories
share. Autoencoders that did not converge are excluded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluations.core.health import NOT_CONVERGED
from evaluations.core.record import Interval, Metric, Record, model_ids
from evaluations.core.statistics import percentile_interval

OUTSIDE = "CE score outside the front"
LEAST = 0.9
"""Minimum share of resamples whose front reaches the score, for an interval to be given."""


@dataclass(frozen=True)
class Front:
    """Autoencoders of one model at one hook point that differ only in sparsity.

    Attributes:
        records: at least two, in ascending order of coefficient (or k).
    """

    model: str
    hook: str
    records: tuple[Record, ...]

    def values(self, name: str) -> list[float]:
        """Return a metric of each autoencoder; nan where undefined."""
        metrics = [record.metric(name) for record in self.records]
        return [_number(metric.value if metric else None) for metric in metrics]


def fronts(records: Sequence[Record]) -> list[Front]:
    """Return the fronts of some records, in order of their first record."""
    groups: dict[str, dict[float, Record]] = {}
    for record in records:
        is_trained = record.evaluation == "sae" and record.config.get("given") is None
        has_replicates = {"sae", "replicates"} <= set(record.extra)
        if is_trained and has_replicates and _sparsity(record) is not None and is_converged(record):
            groups.setdefault(_key(record), {})[coefficient(record)] = record
    return [
        Front(
            str(next(iter(group.values())).model["name"]),
            str(next(iter(group.values())).extra["sae"]["hook"]),
            tuple(group[value] for value in sorted(group)),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def coefficient(record: Record) -> float:
    """Return the coefficient (or k) of the training; 0 for an autoencoder trained elsewhere."""
    return float(_sparsity(record) or 0.0)


def _sparsity(record: Record) -> float | None:
    """Return the coefficient (or k), as configured or found by a search."""
    configured: float | None = record.config.get("sparsity")
    if configured is not None:
        return configured
    found: float | None = record.extra.get("sae", {}).get("sparsity")
    return found


def is_converged(record: Record) -> bool:
    """Whether the record is not marked 'not converged'."""
    l0 = record.metric("l0")
    return l0 is None or NOT_CONVERGED not in l0.reasons


def _key(record: Record) -> str:
    """Return a key that all points of a front share."""
    differing = ("sparsity", "target_l0")
    config = {name: value for name, value in record.config.items() if name not in differing}
    subject: list[Any] = [*model_ids([record]), record.model["name"], record.data.get("content")]
    return json.dumps([subject, config], sort_keys=True)


def common_score(fronts: Sequence[Front]) -> float | None:
    """Return the midpoint of the CE loss scores that every front covers; None if there are none."""
    if not fronts:
        return None
    low = np.max([np.min(front.values("ce_score")) for front in fronts])
    high = np.min([np.max(front.values("ce_score")) for front in fronts])
    return float((low + high) / 2) if low <= high else None  # also None if either is nan


def l0_at(front: Front, score: float) -> Metric:
    """Return the L0 at which the front reaches a CE loss score, with its 95 % interval."""
    value = _interpolated(front.values("ce_score"), front.values("l0"), score)
    points = [record.extra["replicates"] for record in front.records]
    resamples = min(len(point["l0"]) for point in points)
    resampled = [
        _interpolated(
            [_number(point["ce_score"][i]) for point in points],
            [_number(point["l0"][i]) for point in points],
            score,
        )
        for i in range(resamples)
    ]
    reached = [l0 for l0 in resampled if l0 is not None]
    return Metric(
        "l0_at_score",
        f"L0 at CE score {score:.3f}",
        value,
        "features",
        "lower",
        interval=_interval(reached, resamples) if value is not None else None,
        n=len(front.records),
        n_failed=int(value is None),
        reasons={} if value is not None else {OUTSIDE: 1},
        description=f"interpolated between points of the front; n: points; "
        f"{resamples - len(reached)} of {resamples} resamples do not reach the score",
    )


def _interpolated(scores: Sequence[float], l0: Sequence[float], score: float) -> float | None:
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(l0, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not x.min() <= score <= x.max():
        return None
    order = np.argsort(x, kind="stable")
    return float(np.interp(score, x[order], y[order]))


def _interval(values: Sequence[float], resamples: int) -> Interval | None:
    if not values or len(values) < LEAST * resamples:
        return None
    method = f"percentile bootstrap over stories, {len(values)} resamples of the whole front"
    return percentile_interval(values, method)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
