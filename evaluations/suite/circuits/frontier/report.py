"""Tables of ``circuits``: edges at fixed shares of the ceiling, by model, ablation and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluations.core.record import Metric, Record
from evaluations.suite.circuits.frontier import picture
from evaluations.suite.circuits.frontier.config import (
    ABLATIONS,
    EDGE_FIGURES,
    FAITHFUL,
    OVERFITTED,
    REFERENCE,
    SHARES,
)
from evaluations.tables import Cell, Column, Heading, Layout, Row, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from evaluations.tables.table import UNSCORED
from evaluations.tables.view import number

HEADLINE = Headline(
    "Does its task need fewer edges?",
    "e20",
    "edges at a fifth of the ceiling, E(.2)",
    1,
    "lower",
)
DRAWN_FROM = "curves"
"""Entry of ``record.extra`` that figures are drawn from."""
FIGURES: Mapping[str, draw.Draw] = {
    "": picture.frontiers,
    "models": picture.models,
    "circuits": picture.circuits,
    "overlap": picture.overlap,
}
DIGITS = {"area": 2, "excess": 2, "restored": 3}


def _column(metric: str, heading: str, definition: str, interval: bool = True) -> Column:
    return Column("circuits", metric, heading, 1, interval, definition=definition)


LAYOUTS = tuple(
    Layout(
        f"circuits-{ablation}",
        f"Edges at a fifth of the ceiling, ablation {ablation}",
        (
            _column("accuracy", "Accuracy", "Share of prompts answered right", False),
            _column("ceiling", "Ceiling I", "Cost of knowing nothing of the prompt, nats", False),
            _column(
                f"e20_{ablation}",
                "E(.2)",
                "Fewest edges, by any of the methods, with Delta <= I/5 on held-out prompts",
            ),
            _column(f"e20_{ablation}_null", "E(.2), null task", "The same of the null task"),
            _column(
                f"e20_{ablation}_random",
                "E(.2), random circuits",
                "The same of random circuits, connected and matched by layer",
            ),
            _column(f"area_{ablation}", "Area", "Mean of ln(Delta / I) over log edges", False),
        ),
        "Circuits are chosen on the prompts they were found on and measured on held-out ones.",
    )
    for ablation in ABLATIONS
)


def tables(records: Sequence[Record]) -> list[Table]:
    """The models' edges at a fifth of the ceiling for each ablation; every curve of each model."""
    models = rows(records, "circuits")
    used = {name for row in models for name in _config(row).get("ablations", ())}
    layouts = [layout for layout, name in zip(LAYOUTS, ABLATIONS, strict=True) if name in used]
    return [*make_tables(layouts, records), *_curve_tables(models, records)]


def _config(row: Row) -> Mapping[str, Any]:
    return row.records["circuits"].config


def _curve_tables(models: Sequence[Row], records: Sequence[Record]) -> list[Table]:
    """A row for each model and curve."""
    body = [
        [Cell.label("model", row.model), Cell.label("curve", name), *_cells(row, key)]
        for row in models
        for name, key in _names(row.records["circuits"])
    ]
    if not body:
        return []
    headings = (
        Heading("Model"),
        Heading("Curve"),
        *(
            Heading(f"E({share:g})", "lower", f"Fewest edges with Delta <= {share:g} I")
            for share in SHARES
        ),
        Heading(f"F {FAITHFUL:g}", "lower", f"Fewest edges with faithfulness {FAITHFUL:g}"),
        Heading("Area", "lower", "Mean of ln(Delta / I) over log edges"),
        Heading(
            "Overfit",
            "lower",
            "Share by which the smallest circuit with Delta <= 0.2 I on the fit prompts costs more "
            "on held-out ones; * above a fifth",
        ),
        Heading(
            "Restored",
            None,
            "Delta with excluded edges restored at random minus Delta, nats: above 0 where a "
            "circuit lives on harms that cancel out",
        ),
    )
    return [
        Table(
            "circuits-curves",
            "Frontiers: fewest edges at shares of the ceiling",
            headings,
            body,
            f"Restored: of the smallest circuit with Delta <= {REFERENCE:g} I.",
            _reasons(records),
            n_labels=2,
        )
    ]


def _names(record: Record) -> list[tuple[str, str]]:
    """The curves of a record, in words and as the end of their metrics' names."""
    start = "e20_"
    return [
        (metric.title.partition(": ")[2], metric.name.removeprefix(start))
        for metric in record.metrics
        if metric.name.startswith(start) and metric.name != "e20_null"
    ]


def _cells(row: Row, key: str) -> list[Cell]:
    names = [*EDGE_FIGURES, "faithful", "area", "excess", "restored"]
    record = row.records["circuits"]
    return [_cell(name, record.metric(f"{name}_{key}")) for name in names]


def _cell(name: str, metric: Metric | None) -> Cell:
    columns = (name, f"{name}_low", f"{name}_high")
    if metric is None:
        return Cell.none(*columns)
    if metric.value is None:
        return Cell.none(*columns, text=UNSCORED)
    digits, interval = DIGITS.get(name, 1), metric.interval
    ends = (interval.low, interval.high) if interval else (None, None)
    shown = [number(end, digits) for end in ends if end is not None]
    details = (f"[{', '.join(shown)}]",) if shown else ()
    exact = dict(zip(columns, (metric.value, *ends), strict=True))
    mark = " *" if name == "excess" and metric.value > OVERFITTED else ""
    return Cell(number(metric.value, digits) + mark, "value", details, exact)


def _reasons(records: Sequence[Record]) -> list[str]:
    """Why curves have no number of edges, with how many of them."""
    counts: dict[str, int] = {}
    for record in records:
        for metric in record.metrics:
            if metric.name[0] == "e" and metric.unit == "edges":
                for reason in metric.reasons:
                    counts[reason] = counts.get(reason, 0) + 1
    each = "; ".join(f"{reason} ({n})" for reason, n in counts.items())
    return [f"{UNSCORED}: {each}."] if each else []


def warnings(records: Sequence[Record]) -> list[str]:
    """A line for each model whose frontiers mean little, or are not shown, with the reason."""
    lines = []
    for record in records:
        if marked := record.extra.get("marked"):
            lines.append(f"{record.model['name']} {marked}")
        if reason := record.extra.get("no_null"):
            lines.append(f"{record.model['name']}: no frontier is drawn: {reason}")
        if marked := _overfitted(record):
            lines.append(
                f"{record.model['name']}: overfitted, more than a fifth costlier on held-out "
                f"prompts: {', '.join(marked)}; more --prompts help"
            )
    return lines


def _overfitted(record: Record) -> list[str]:
    """The methods' curves of the task that are overfitted, in words."""
    named = [
        (metric.title.partition(": ")[2], metric.value or 0.0)
        for metric in record.metrics
        if metric.name.startswith("excess_")
    ]
    return [
        name
        for name, value in named
        if value > OVERFITTED and not name.endswith(("null task", "all methods"))
    ]


def details(record: Record, out: Path) -> pd.DataFrame:
    """A row for each circuit of each frontier: edges, fitted and held-out cost, faithfulness."""
    curves = record.extra.get("curves") or []
    return pd.DataFrame(
        {
            "model": record.model.get("name"),
            **{name: curve[name] for name in ("ablation", "method", "null")},
            **point,
        }
        for curve in curves
        for point in curve["points"]
    )


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures."""
    return []
