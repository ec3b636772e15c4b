"""Records as tables: models down, figures across; in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table as RichTable

from evaluations.core.record import Metric, Record, model_ids
from evaluations.tables import health
from evaluations.tables.comparable import mixture
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

ARROWS = {"lower": "↓", "higher": "↑", None: ""}
ABSENT = "–"
MOST_NAMED = 12
"""Models a footnote names."""


@dataclass(frozen=True)
class Column:
    """One figure of one evaluation."""

    evaluation: str
    metric: str
    heading: str
    digits: int = 3
    interval: bool = False
    """Whether the cell shows the interval behind the value."""
    n: bool = False
    """Whether it shows of how many things the value is."""
    shows: Literal["value", "scored"] = "value"
    """What it shows of the metric: its value, or the share of things that could be scored."""

    @property
    def key(self) -> str:
        """Names the column in CSV."""
        return self.metric if self.shows == "value" else f"{self.metric}_scored"


@dataclass(frozen=True)
class Layout:
    """A table's title and columns."""

    title: str
    columns: tuple[Column, ...]
    note: str = ""
    """What a reader has to know to read the figures, printed beneath the table."""


@dataclass(frozen=True)
class Row:
    """A model and the newest record of each evaluation it has."""

    model: str
    spec: str
    records: dict[str, Record]

    @property
    def label(self) -> str:
        """The model's name in a figure."""
        return escape.figure(self.model)

    def marked(self, layout: Layout) -> str:
        """The model's name, with a dagger where one of its records in the table is unsound."""
        return f"{self.model} {health.DAGGER}" if self.is_unsound(layout.columns) else self.model

    def is_unsound(self, columns: Sequence[Column]) -> bool:
        """Whether a record that the columns read carries a health mark."""
        names = {column.evaluation for column in columns} & self.records.keys()
        return any(health.phrases(self.records[name]) for name in names)

    def metric(self, column: Column) -> Metric | None:
        record = self.records.get(column.evaluation)
        return record.metric(column.metric) if record else None

    def cell(self, column: Column) -> str:
        """The figure; how to get it, where no record has it; why not, where it has no value."""
        if column.evaluation not in self.records:
            return f"run: sat-eval {column.evaluation} {shlex.quote(self.spec)}"
        metric = self.metric(column)
        if metric is None:
            return ABSENT
        if column.shows == "scored":
            share = scored_share(metric)
            return ABSENT if share is None else number(share, column.digits)
        if metric.value is None:
            return "n/a: " + ", ".join(metric.reasons)
        text = number(metric.value, column.digits)
        if column.interval and metric.interval:
            low, high = metric.interval.low, metric.interval.high
            text += f" [{number(low, column.digits)}, {number(high, column.digits)}]"
        if column.n and metric.n is not None:
            text += f", n={metric.n:,}"
        return text + (" *" if metric.n_failed else "")


def scored_share(metric: Metric) -> float | None:
    """The share of things (neurons, stories) that the metric could be taken of."""
    if metric.n is None or not metric.n + metric.n_failed:
        return None
    return metric.n / (metric.n + metric.n_failed)


def rows(records: Sequence[Record]) -> list[Row]:
    """One row a model and name, baseline first, then variants by k, then by name."""
    found: dict[tuple[str, str], Row] = {}
    ordered_records = sorted(records, key=lambda record: record.started)
    for record, known in zip(ordered_records, model_ids(ordered_records), strict=True):
        name = str(record.model.get("name", "?"))
        key = (name, known)
        spec = str(record.model.get("spec", name))
        row = found.setdefault(key, Row(name, spec, {}))
        row.records[record.evaluation] = record  # the newest stays
    ordered = sorted(found.values(), key=_place)
    # two models of one name are told apart by their weights, of equal weights by what else differs
    for mark in (_weights, _configuration):
        names = [row.model for row in ordered]
        ordered = [
            row if names.count(row.model) == 1 else Row(f"{row.model} {mark(row)}", *_rest(row))
            for row in ordered
        ]
    return ordered


def rich_table(layout: Layout, records: Sequence[Record]) -> RichTable:
    """The table for a terminal."""
    found = rows(records)
    untaken = {column: why for column in layout.columns if (why := _untaken(column, found))}
    columns = [column for column in layout.columns if column not in untaken]
    notes = [caption(layout, found), *_told(untaken)]
    table = framed(layout.title, " ".join(filter(None, notes)))
    table.add_column("Model", no_wrap=True)
    for column in columns:
        table.add_column(escape.terminal(heading(column, found)), justify="right")
    for row in found:
        cells = (row.cell(column) for column in columns)
        table.add_row(*map(escape.terminal, (row.marked(layout), *cells)))
    return table


def framed(title: str, *notes: str) -> RichTable:
    """An empty table for a terminal, with its title above and notes, a line each, below."""
    told = escape.terminal("", "table.caption")
    for place, note in enumerate(notes):
        told.append("\n" * (place > 0)).append_text(escape.terminal(note))
    table = RichTable(
        title=escape.terminal(title, "table.title"), title_justify="left", caption=told
    )
    table.caption_justify = "left"
    return table


def markdown(layout: Layout, records: Sequence[Record]) -> str:
    """The table as GitHub's Markdown, its caption below."""
    found = rows(records)
    lines = [["Model", *(heading(column, found) for column in layout.columns)]]
    lines.append([":--", *("--:" for _ in layout.columns)])
    lines += [
        [row.marked(layout), *(row.cell(column) for column in layout.columns)] for row in found
    ]
    return markdown_lines(layout.title, lines, [caption(layout, found)])


def markdown_lines(title: str, lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table as GitHub's Markdown: title, headings, sides, rows; a paragraph for each note."""
    table = ["| " + " | ".join(map(escape.markdown, line)) + " |" for line in lines]
    told = [part for note in notes if note for part in ("", escape.markdown(note))]
    return "\n".join([f"**{escape.markdown(title)}**", "", *table, *told, ""])


def csv_text(layout: Layout, records: Sequence[Record]) -> str:
    """The table as CSV at full precision: value, standard error and interval of each figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("", "_se", "_low", "_high", "_n", "_failed")
    columns = [column for column in layout.columns if column.shows == "value"]
    names = [column.metric + part for column in columns for part in parts]
    writer.writerow(map(escape.csv, ["model", "weights", *names, "health"]))
    for row in rows(records):
        cells: list[object] = []
        for column in columns:
            metric = row.metric(column)
            cells += _exact(metric) if metric else [None] * len(parts)
        line = [row.model, _weights(row), *cells, _health(layout, row)]
        writer.writerow(map(escape.csv, line))
    return buffer.getvalue()


def write_tables(
    layouts: Sequence[Layout], records: Sequence[Record], out: Path, name: str
) -> list[Path]:
    """``out/name.md`` with every table, and ``out/name.csv`` with all their columns.

    Raises:
        OSError: they cannot be written.
    """
    if not records:
        return []
    columns = tuple(column for layout in layouts for column in layout.columns)
    return [
        write_atomically(
            out / f"{name}.md", "\n".join(markdown(layout, records) for layout in layouts)
        ),
        write_atomically(out / f"{name}.csv", csv_text(Layout(name, columns), records)),
    ]


def heading(column: Column, found: Sequence[Row]) -> str:
    """The column's heading with an arrow towards what is better."""
    known = [metric for row in found if (metric := row.metric(column))]
    arrow = ARROWS[known[0].direction] if known and column.shows == "value" else ""
    return f"{column.heading} {arrow}".strip()


def caption(layout: Layout, found: Sequence[Row]) -> str:
    """What the figures were measured on; says so where models were measured on different text."""
    notes = [layout.note] if layout.note else []
    names = {column.evaluation for column in layout.columns}
    records = [row.records[name] for row in found for name in sorted(names & row.records.keys())]
    texts = sorted({_text(record) for record in records})
    if len(texts) > 1:
        told = "; ".join(
            f"{row.model}: {_text(row.records[name])}"
            for row in found
            for name in sorted(names & row.records.keys())
        )
        notes.append(f"Not all models were scored on the same tokens ({told}).")
    elif texts and texts[0]:
        notes.append(f"{texts[0]}.")
    notes += [f"{line[:1].upper()}{line[1:]}." for line in mixture(records)]
    if told := _intervals(layout, found):
        notes.append(f"In brackets: {told}.")
    if told := _unscored(layout, found):
        notes.append(f"* some could not be scored: {told}.")
    notes += health.explained(
        (row.model, row.records[name])
        for row in found
        for name in sorted(names & row.records.keys())
    )
    return " ".join(notes)


def _intervals(layout: Layout, found: Sequence[Row]) -> str:
    """How the intervals shown were taken: of how many things in each model, or from how many to
    how many; which columns and which models have which, where they differ."""
    by_method: dict[str, list[str]] = {}
    for column in layout.columns:
        if column.interval:
            for method in _methods(column, found):
                headings = by_method.setdefault(method, [])
                headings += [column.heading] * (column.heading not in headings)
    if len(by_method) < 2:
        return "".join(by_method)
    return "; ".join(f"{method} ({', '.join(names)})" for method, names in by_method.items())


_SIZE = re.compile(r"\b(\d[\d,]*)(?= [a-z]+\b)(?! resamples)")


def _methods(column: Column, found: Sequence[Row]) -> list[str]:
    """The methods of a column's intervals: one for all models, where they differ in size alone."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for row in found:
        metric = row.metric(column)
        if metric and metric.interval:
            method = f"{metric.interval.level:.0%}, {metric.interval.method}"
            by_kind.setdefault(_SIZE.sub("#", method, count=1), []).append((row.model, method))
    told = []
    for kind, members in by_kind.items():
        sizes = [int(size[1].replace(",", "")) for _, method in members
                 if (size := _SIZE.search(method))]  # fmt: skip
        text = members[0][1]
        if sizes and min(sizes) < max(sizes):
            text = kind.replace("#", f"{min(sizes):,} to {max(sizes):,}", 1)
        names = ", ".join(name for name, _ in members)
        told.append(text if len(by_kind) == 1 else f"{text} of {names}")
    return told


def _unscored(layout: Layout, found: Sequence[Row]) -> str:
    """Of each column the most frequent reason why something could not be scored, by model."""
    told = []
    for column in layout.columns:
        failed = []
        for row in found if column.shows == "value" else ():
            metric = row.metric(column)
            if metric and metric.value is not None and metric.n_failed:
                reason = max(metric.reasons, key=lambda one: metric.reasons[one], default="")
                failed.append((row.model, f"{metric.n_failed:,}", reason))
        if failed:
            reasons = {reason for _, _, reason in failed}
            alike = f", mostly: {reasons.pop()}" if len(reasons) == 1 and "" not in reasons else ""
            each = ", ".join(
                f"{count} of {name}" + (f" (mostly: {reason})" if reason and not alike else "")
                for name, count, reason in failed[:MOST_NAMED]
            )
            more = ", ..." if len(failed) > MOST_NAMED else ""
            told.append(f"{column.heading} {each}{more}{alike}")
    return "; ".join(told)


def _untaken(column: Column, found: Sequence[Row]) -> str:
    """Why no model has this figure, where all give one reason: such a column would hold nothing."""
    metrics = [row.metric(column) for row in found]
    reasons = {", ".join(one.reasons) if one and one.value is None else "" for one in metrics}
    return reasons.pop() if len(reasons) == 1 else ""


def _told(untaken: Mapping[Column, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for column, reason in untaken.items():
        by_reason.setdefault(reason, []).append(column.heading)
    return [f"Not taken: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]


def number(value: float, digits: int) -> str:
    """A value at fixed digits; large and tiny ones in scientific notation."""
    if value and not 10.0**-digits <= abs(value) < 1e6:
        return f"{value:.{min(digits, 3)}g}"
    return f"{value:,.{digits}f}"


def scored_text(data: Mapping[str, Any]) -> str:
    """What a record's figures were measured on: the validation text, where it was named apart."""
    return str(data.get("validation") or data.get("spec", "?"))


def _text(record: Record) -> str:
    data = record.data
    if "n_stories" not in data:
        return str(data.get("spec", ""))
    split = "validation split" if data.get("split") == "validation" else "all"
    cut = record.metric("cut_tokens")
    count = f"{data['n_stories']:,} stories, {data.get('n_tokens', 0):,} tokens"
    left_out = f", {cut.value:,.0f} cut" if cut and cut.value else ""
    return f"{scored_text(data)}, {split}: {count}{left_out}"


def _place(row: Row) -> tuple[int, int, bool, str]:
    """Baselines first, then local, then global, by k, learned gates before their controls."""
    record = next(iter(row.records.values()))
    ablation = record.model.get("ablation") or {}
    return (
        {"local": 1, "global": 2}.get(str(ablation.get("variant")), 0),
        int(ablation.get("k_attention", 0)),
        ablation.get("gates", "learned") != "learned",
        row.model,
    )


def _weights(row: Row) -> str:
    return str(next(iter(row.records.values())).model["weights_hash"])[:8]


def _configuration(row: Row) -> str:
    return model_ids([next(iter(row.records.values()))])[0].split()[-1][:8]


def _rest(row: Row) -> tuple[str, dict[str, Record]]:
    return row.spec, row.records


def _health(layout: Layout, row: Row) -> str:
    names = dict.fromkeys(column.evaluation for column in layout.columns)
    found = [row.records[name] for name in names if name in row.records]
    return "; ".join(phrase for record in found for phrase in health.phrases(record))


def _exact(metric: Metric) -> list[object]:
    low, high = (metric.interval.low, metric.interval.high) if metric.interval else (None, None)
    return [metric.value, metric.standard_error, low, high, metric.n, metric.n_failed]
