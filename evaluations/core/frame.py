"""Results as one tidy pandas DataFrame: a row for each metric of each record."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluations.core import health
from evaluations.core.record import Metric, Record
from evaluations.core.records import collect

log = logging.getLogger(__name__)

TYPES = {
    "model": "string",
    "weights": "string",
    "control": "string",
    "seed": "Int64",
    "variant": "string",
    "k": "Int64",
    "gates": "string",
    "evaluation": "string",
    "version": "Int64",
    "metric": "string",
    "title": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "level": "float64",
    "interval": "string",
    "standard_error": "float64",
    "unit": "string",
    "direction": "string",
    "n": "Int64",
    "n_failed": "Int64",
    "reasons": "object",
    "health": "object",
    "data": "string",
    "config": "object",
    "config_hash": "string",
    "commit": "string",
    "started": "string",
    "seconds": "float64",
}
"""The columns in order, and their pandas types."""


def results_frame(results: str | Path | Sequence[Record] = "results") -> pd.DataFrame:
    """Return every metric of the records as a row.

    A metric without a value is a row whose ``value`` is missing; its ``reasons`` say why, with a
    count of each. Of several records of the same evaluation, model, configuration and text, the
    newest is used. Files that are not records are skipped, with a warning.

    Args:
        results: a directory that ``sat-eval`` wrote to, or records.

    Returns:
        The columns of ``TYPES``. ``seed``, ``variant``, ``k`` and ``gates`` are those the model was
        trained with (missing where unknown, or for models without gates); ``low`` and
        ``high`` are the ends of the interval at ``level``, ``interval`` is its method;
        ``direction`` is ``lower`` or ``higher``, whichever is better; ``config`` is the
        evaluation's whole configuration; ``health`` lists what is wrong with the measurement.

    Raises:
        UserError: there is no such directory.
    """
    if isinstance(results, str | Path):
        collected = collect(results)
        for line in collected.notes():
            log.warning("%s", line)
        results = collected.records
    rows = [_row(record, metric) for record in results for metric in record.metrics]
    return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)


def _row(record: Record, metric: Metric) -> dict[str, Any]:
    ablation = record.model.get("ablation") or {}
    control = record.model.get("control") or {}
    interval = metric.interval
    return {
        "model": record.model.get("name"),
        "weights": record.model["weights_hash"],
        "control": control.get("kind"),
        "seed": (record.model.get("training") or {}).get("seed"),
        "variant": ablation.get("variant", "none"),
        "k": ablation.get("k_attention"),
        "gates": ablation.get("gates"),
        "evaluation": record.evaluation,
        "version": record.version,
        "metric": metric.name,
        "title": metric.title,
        "value": metric.value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "level": interval.level if interval else None,
        "interval": interval.method if interval else None,
        "standard_error": metric.standard_error,
        "unit": metric.unit,
        "direction": metric.direction,
        "n": metric.n,
        "n_failed": metric.n_failed,
        "reasons": metric.reasons,
        "health": health.phrases(record),
        "data": record.data.get("spec"),
        "config": record.config,
        "config_hash": record.config_hash,
        "commit": record.commit,
        "started": record.started,
        "seconds": record.seconds,
    }
