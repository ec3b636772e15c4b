"""Tables of records as HTML, and behind every figure what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.comparison.page import escaped
from evaluations.core.record import Metric, Record
from evaluations.tables.grid import Cell, Grid
from evaluations.tables.tables import (
    ABSENT,
    ARROWS,
    Column,
    Layout,
    Row,
    caption,
    heading,
    number,
    rows,
)


def html_table(layout: Layout, records: Sequence[Record]) -> str:
    """A layout's table; each figure tells its interval, n and seed when pointed at.

    Its rows are single models: none is bold, since no interval here is over seeds.
    """
    found = rows(records)
    head = "".join(f"<th>{_unparted(heading(column, found))}</th>" for column in layout.columns)
    body = "".join(
        f"<tr><th scope='row'>{escaped(row.marked(layout))}</th>"
        + "".join(_cell(row, column) for column in layout.columns)
        + "</tr>\n"
        for row in found
    )
    note = caption(layout, found)
    return (
        f"<div class='scroll-x'><table><caption>{escaped(layout.title)}</caption>"
        f"<thead><tr><th>Model</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
        + (f"<p class='small soft'>{escaped(note)}</p>\n" if note else "")
    )


def provenance(records: Sequence[Record]) -> str:
    """Every figure of the records, with what it would take to obtain it again."""
    return "".join(_record(row.model, record) for row in rows(records)
                   for record in row.records.values())  # fmt: skip


def told(metric: Metric, record: Record) -> str:
    """A figure's interval, n and seed in one line."""
    parts = [metric.title]
    if metric.value is not None:
        parts.append(f"{metric.value:.6g} {metric.unit}".strip())
    if metric.interval:
        one = metric.interval
        parts.append(f"{one.level:.0%} [{one.low:.4g}, {one.high:.4g}] ({one.method})")
    if metric.standard_error is not None:
        parts.append(f"standard error {metric.standard_error:.3g}")
    parts += [f"n {metric.n:,}"] if metric.n is not None else []
    parts += [_failures(metric)] if metric.n_failed or metric.reasons else []
    return ", ".join([*parts, f"seed {record.seed}"])


def _cell(row: Row, column: Column) -> str:
    text, metric = row.cell(column), row.metric(column)
    if metric is None:
        if text == ABSENT:
            return f"<td class='soft'>{ABSENT}</td>"
        return f"<td class='todo'><code>{escaped(text.removeprefix('run: '))}</code></td>"
    hint = escaped(told(metric, row.records[column.evaluation]))
    if metric.value is None:
        return f"<td class='soft small' title='{hint}'>{escaped(text)}</td>"
    value, _, interval = text.partition(" [")
    small = f" <span class='interval'>[{escaped(interval)}</span>" if interval else ""
    return f"<td title='{hint}'>{escaped(value)}{small}</td>"


def _record(model: str, record: Record) -> str:
    facts = {
        "weights": str(record.model["weights_hash"])[:16],
        "data": f"{record.data.get('spec', '')} ({record.data.get('content', '')})",
        "seed": record.seed,
        "configuration": record.config_hash,
        "commit": record.commit or "unknown",
        "started": record.started,
        "took": f"{record.seconds:,.0f} s on {record.device}",
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escaped(fact)}</dd>" for name, fact in facts.items())
    figures = "".join(_figure(metric) for metric in record.metrics)
    return (
        f"<details class='record'><summary>{escaped(model)}</summary>"
        f"<dl class='facts'>{listed}</dl>"
        "<div class='scroll-x'><table><thead><tr><th>Figure</th><th>value</th><th>unit</th>"
        "<th>standard error</th><th>interval</th><th>n</th><th>not scored</th></tr></thead>"
        f"<tbody>{figures}</tbody></table></div></details>\n"
    )


def _figure(metric: Metric) -> str:
    interval = ""
    if metric.interval:
        one = metric.interval
        interval = f"[{one.low:.4g}, {one.high:.4g}] {one.level:.0%}, {one.method}"
    cells = [
        "" if metric.value is None else number(metric.value, 5),
        metric.unit,
        "" if metric.standard_error is None else f"{metric.standard_error:.3g}",
        interval,
        "" if metric.n is None else f"{metric.n:,}",
        _failures(metric),
    ]
    hint = escaped(metric.description)
    return (
        f"<tr><th scope='row' title='{hint}'>{escaped(metric.title)}</th>"
        + "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
        + "</tr>\n"
    )


def _failures(metric: Metric) -> str:
    reasons = ", ".join(f"{reason} ({count})" for reason, count in metric.reasons.items())
    count = f"{metric.n_failed:,}" if metric.n_failed else ""
    return ": ".join(part for part in (count, reasons) if part)


def html_grid(grid: Grid) -> str:
    """A table that is made of cells already."""
    head = "".join(f"<th>{_unparted(one.text)}</th>" for one in grid.headings)
    body = "".join(
        "<tr>" + "".join(_grid_cell(cell, place < grid.n_labels) for place, cell in enumerate(row))
        + "</tr>\n"
        for row in grid.rows
    )  # fmt: skip
    notes = "".join(f"<p class='small soft'>{escaped(note)}</p>" for note in grid.told)
    return (
        f"<div class='scroll-x'><table><caption>{escaped(grid.title)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n{notes}\n"
    )


def _unparted(heading: str) -> str:
    """A heading whose arrow stays with its last word."""
    words, space, arrow = heading.rpartition(" ")
    joined = f"{words}\u00a0{arrow}" if space and arrow in ARROWS.values() else heading
    return escaped(joined)


def _grid_cell(cell: Cell, is_label: bool) -> str:
    if is_label:
        return f"<th scope='row'>{escaped(cell.text)}</th>"
    if cell.text.startswith("run: "):
        return f"<td class='todo'><code>{escaped(cell.text.removeprefix('run: '))}</code></td>"
    small = f" <span class='interval'>{escaped(cell.within)}</span>" if cell.within else ""
    return f"<td class='{'best' if cell.is_best else ''}'>{escaped(cell.text)}{small}</td>"
