"""L0-CE fronts: what each model's autoencoders pay in features for the loss they keep.

One L1 coefficient is confounded by how large a model's activations are and how much of the loss
hangs on them. A sweep gives a curve instead, and on it the L0 at a CE loss score that the curves
have in common: linear between neighbouring points, ordered by their score. Its interval comes from
bootstrap resamples of stories, shared by all points (and models) measured on the same stories.
Autoencoders that did not converge are no points of a front.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluations.core.health import NOT_CONVERGED
from evaluations.core.record import Interval, Metric, Record, model_ids
from evaluations.core.statistics import LEVEL

OUTSIDE = "CE score outside the front"
LEAST = 0.9
"""Share of the resamples whose front must reach the score, for an interval to be given."""


@dataclass(frozen=True)
class Front:
    """The autoencoders of one model at one hook point that differ in their sparsity alone.

    Attributes:
        records: by rising coefficient (or k), at least two.
    """

    model: str
    hook: str
    records: tuple[Record, ...]

    def values(self, name: str) -> list[float]:
        """A figure of each autoencoder; nan where it has no value."""
        found = [record.metric(name) for record in self.records]
        return [np.nan if one is None or one.value is None else one.value for one in found]


def fronts(records: Sequence[Record]) -> list[Front]:
    """The fronts among the records, in the order in which their first record comes."""
    groups: dict[str, dict[float, Record]] = {}
    for record in records:
        is_trained = record.evaluation == "sae" and record.config.get("given") is None
        found = (record.config.get("sparsity"), record.extra.get("sae", {}).get("sparsity"))
        is_whole = {"sae", "replicates"} <= set(record.extra) and found != (None, None)
        if is_trained and is_whole and is_converged(record):
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
    """The coefficient (or k) the autoencoder was trained with, named or found by a search.

    0 for an autoencoder that was given.
    """
    found = record.config.get("sparsity")
    if found is None:
        found = record.extra.get("sae", {}).get("sparsity")
    return float(found or 0.0)


def is_converged(record: Record) -> bool:
    """Whether the record carries no mark 'not converged'."""
    l0 = record.metric("l0")
    return l0 is None or NOT_CONVERGED not in l0.reasons


def _key(record: Record) -> str:
    """What all points of a front share."""
    own_point = ("sparsity", "target_l0")
    config = {name: value for name, value in record.config.items() if name not in own_point}
    own: list[Any] = [*model_ids([record]), record.model["name"], record.data["content"]]
    return json.dumps([own, config], sort_keys=True)


def common_score(found: Sequence[Front]) -> float | None:
    """The CE loss score in the middle of the stretch that every front covers; None without one."""
    if not found:
        return None
    low = np.max([np.min(front.values("ce_score")) for front in found])
    high = np.min([np.max(front.values("ce_score")) for front in found])
    return float((low + high) / 2) if low <= high else None  # nan is in no order


def l0_at(front: Front, score: float) -> Metric:
    """The L0 at which the front reaches a CE loss score, with its 95 % interval."""
    value = _interpolated(front.values("ce_score"), front.values("l0"), score)
    drawn = [record.extra["replicates"] for record in front.records]
    resamples = min(len(one["l0"]) for one in drawn)
    found = [
        _interpolated(
            [_number(one["ce_score"][place]) for one in drawn],
            [_number(one["l0"][place]) for one in drawn],
            score,
        )
        for place in range(resamples)
    ]
    reached = [one for one in found if one is not None]
    return Metric(
        "l0_at_score", f"L0 at CE score {score:.3f}", value, "features", "lower",
        interval=_interval(reached, resamples) if value is not None else None,
        n=len(front.records), n_failed=int(value is None),
        reasons={} if value is not None else {OUTSIDE: 1},
        description=f"linear between the points of the front; n: points; {resamples - len(reached)}"
        f" of {resamples} resamples do not reach the score",
    )  # fmt: skip


def _interpolated(scores: Sequence[float], l0: Sequence[float], score: float) -> float | None:
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(l0, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not x.min() <= score <= x.max():
        return None
    order = np.argsort(x, kind="stable")
    return float(np.interp(score, x[order], y[order]))


def _interval(values: Sequence[float], resamples: int) -> Interval | None:
    if not values or len(values) < LEAST * resamples:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    method = f"percentile bootstrap over stories, {len(values)} resamples of the whole front"
    return Interval(float(low), float(high), LEVEL, method)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
