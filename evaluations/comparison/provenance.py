"""Every value of records as HTML, with what it takes to obtain it again."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.frame import results_frame
from evaluations.core.record import Record
from evaluations.tables import Cell, Heading, Table, html, rows
from evaluations.tables.view import Value, failures, number, plain_rows
from sat_interp._util import escape

COLUMNS = ("Metric", "Value", "Unit", "Standard error", "Interval", "n", "Not scored")


def provenance(records: Sequence[Record]) -> str:
    """A part for each record that can be opened: its circumstances, and all its values."""
    return "".join(
        _record(row.model, record) for row in rows(records) for record in row.records.values()
    )


def _record(model: str, record: Record) -> str:
    facts = {
        "weights": str(record.model["weights_hash"])[:16],
        "data": f"{record.data.get('spec', '')} ({record.data.get('content', '')})",
        "seed": record.seed,
        "configuration": record.config_hash,
        "commit": record.commit or "unknown",
        "started": record.started,
        "time": f"{record.seconds:,.0f} s on {record.device}",
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape.html(fact)}</dd>" for name, fact in facts.items())
    values = [_cells(value) for value in plain_rows(results_frame([record]))]
    table = Table("", "", tuple(map(Heading, COLUMNS)), values)
    return (
        f"<details class='record'><summary>{escape.html(model)}</summary>"
        f"<dl class='facts'>{listed}</dl>{html(table)}</details>\n"
    )


def _cells(value: Value) -> list[Cell]:
    """A metric's row: what is missing is empty."""
    error, low = value["standard_error"], value["low"]
    interval = (
        ""
        if low is None
        else (f"[{low:.4g}, {value['high']:.4g}] {value['level']:.0%}, {value['interval']}")
    )
    texts = (
        "" if value["value"] is None else number(value["value"], 5),
        value["unit"] or "",
        "" if error is None else f"{error:.3g}",
        interval,
        "" if value["n"] is None else f"{value['n']:,}",
        failures(value),
    )
    return [Cell(value["title"], "label"), *map(Cell, texts)]
