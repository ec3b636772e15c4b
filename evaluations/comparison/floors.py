"""Scores of control models: the floor for the scores of other models."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.record import Record
from evaluations.tables.view import with_interval

FIGURES = {
    "neurons": (("simulation", "simulation score", 3),),
    "sae": (("l0", "L0", 2), ("ce_score", "CE score", 3)),
    "n2g": (("f1_trie", "F1 of the graph", 3),),
}
"""By evaluation: the metric, what it is called, and its digits."""


def floors(records: Sequence[Record]) -> list[str]:
    """A line for each record of a control model; the paper's tables leave these out."""
    lines = []
    for record in records:
        if not record.model.get("control") or record.evaluation not in FIGURES:
            continue
        shown = []
        for name, title, digits in FIGURES[record.evaluation]:
            metric = record.metric(name)
            if metric is None or metric.value is None:
                continue
            shown.append(f"{title} {with_interval(metric.value, metric.interval, digits)}")
        if shown:
            lines.append(
                f"Control, in no table above: {record.model.get('name', '?')}, "
                f"{record.evaluation}: {', '.join(shown)}"
            )
    return lines
