"""Tables of single models: a view of the frame of their records, models down, values across."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from evaluations.core import health
from evaluations.core.frame import results_frame
from evaluations.core.record import Interval, Record, model_ids
from evaluations.tables.comparable import mixture
from evaluations.tables.names import distinguished
from evaluations.tables.table import EMPTY, UNSCORED, Cell, Heading, Table
from sat_interp._util import escape

MOST_NAMED = 12
"""Models named in a note."""

Value = Mapping[str, Any]
"""A row of `results_frame`, missing entries as None."""


@dataclass(frozen=True)
class Column:
    """One metric of one evaluation, as a column of a table."""

    evaluation: str
    metric: str
    heading: str
    digits: int = 3
    interval: bool = False
    """Whether the cell shows the interval behind the value."""
    n: bool = False
    """Whether it shows the number of things the value was computed from."""
    shows: Literal["value", "scored"] = "value"
    """The metric's value, or the share of things (neurons, stories) that could be scored."""
    definition: str = ""
    """What the values are, for the glossary."""

    @property
    def key(self) -> str:
        """The name of the column in CSV."""
        return self.metric if self.shows == "value" else f"{self.metric}_scored"


@dataclass(frozen=True)
class Layout:
    """A table's name, title and columns.

    Attributes:
        name: of its CSV file and LaTeX label.
        caption: how to read it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    caption: str = ""


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

    @property
    def weights(self) -> str:
        """The first digits of the hash of its weights."""
        return str(self._any.model["weights_hash"])[:8]

    @property
    def _any(self) -> Record:
        return next(iter(self.records.values()))


def rows(records: Sequence[Record], *evaluations: str) -> list[Row]:
    """One row per model and name: baselines first, then variants by k, then by name.

    Args:
        evaluations: records of others are skipped; by default none are.
    """
    by_model: dict[tuple[str, str], Row] = {}
    wanted = [one for one in records if one.evaluation in evaluations or not evaluations]
    ordered = sorted(wanted, key=lambda record: record.started)
    for record, identity in zip(ordered, model_ids(ordered), strict=True):
        name = str(record.model.get("name", "?"))
        spec = str(record.model.get("spec", name))
        row = by_model.setdefault((name, identity), Row(name, spec, {}))
        row.records[record.evaluation] = record  # the newest stays
    made = sorted(by_model.values(), key=_order)
    names = distinguished(
        [row.model for row in made],
        [row.weights for row in made],
        [_configuration(row) for row in made],
    )
    return [replace(row, model=name) for row, name in zip(made, names, strict=True)]


def _order(row: Row) -> tuple[int, int, int, bool, str]:
    """The order asked for, where one was; else baselines first, then local, then global, by k.

    Learned gates stand before their controls.
    """
    ablation = row._any.model.get("ablation") or {}
    return (
        int(row._any.model.get("order") or 0),
        {"local": 1, "global": 2}.get(str(ablation.get("variant")), 0),
        int(ablation.get("k_attention") or 0),
        ablation.get("gates", "learned") != "learned",
        row.model,
    )


def _configuration(row: Row) -> str:
    return model_ids([row._any])[0].split()[-1][:8]


def make_tables(layouts: Iterable[Layout], records: Sequence[Record]) -> list[Table]:
    """A table for each layout of which the records have a metric."""
    known = {(record.evaluation, metric.name) for record in records for metric in record.metrics}
    return [
        make_table(layout, records)
        for layout in layouts
        if known & {(column.evaluation, column.metric) for column in layout.columns}
    ]


def make_table(layout: Layout, records: Sequence[Record]) -> Table:
    """The layout's table of the records: a row for each model.

    A column for which no model has a value, all for one reason, is left out and explained below;
    one that the records know nothing of (an option that was not asked for) is left out.
    """
    names = dict.fromkeys(column.evaluation for column in layout.columns)
    models = rows(records, *names)
    values = _values(models, {column.metric for column in layout.columns})
    every = {
        column: [values.get((row.model, column.evaluation, column.metric)) for row in models]
        for column in layout.columns
    }
    cells = {
        column: found for column, found in every.items() if any(found) or _is_open(column, models)
    }
    left_out = {column: why for column in cells if (why := _unscored(cells[column]))}
    columns = [column for column in cells if column not in left_out]
    used = [(row, row.records[name]) for row in models for name in names if name in row.records]
    body = [
        [_label(row, names), *(_cell(column, cells[column][at], row) for column in columns)]
        for at, row in enumerate(models)
    ]
    for at, row in enumerate(body):  # what is left out is in CSV
        hidden = [exact_values(column.key, cells[column][at]).items() for column in left_out]
        exact = {**row[-1].exact, **{name: value for pairs in hidden for name, value in pairs}}
        row[-1] = replace(row[-1], exact=exact)
    notes = [
        *_texts(used),
        *_methods(columns, cells, models),
        *_failures(columns, cells, models),
        *_reasons(columns, cells, models),
        *_left_out(left_out),
        *health.explained((row.model, record) for row, record in used),
    ]
    headings = (Heading("Model"), *(_heading(column, cells[column]) for column in columns))
    fill = commands(names, [(row.spec, row.records) for row in models])
    return Table(layout.name, layout.title, headings, body, layout.caption, notes, fill)


def _is_open(column: Column, models: Sequence[Row]) -> bool:
    """Whether no model has a record of a column's evaluation: it is still to be measured."""
    return not any(column.evaluation in row.records for row in models)


def _values(models: Sequence[Row], wanted: Collection[str]) -> dict[tuple[str, ...], Value]:
    """The rows of `results_frame` by model, evaluation and metric.

    Args:
        wanted: metrics; other rows are not made, which are most of them.
    """
    records = [
        replace(
            record,
            model={**record.model, "name": row.model},
            metrics=[metric for metric in record.metrics if metric.name in wanted],
        )
        for row in models
        for record in row.records.values()
    ]
    key = ["model", "evaluation", "metric"]
    frame = results_frame(records).drop_duplicates(key)
    return {tuple(value[name] for name in key): value for value in plain_rows(frame)}


def plain_rows(frame: pd.DataFrame) -> list[Value]:
    """The rows of a frame as dictionaries of plain values, missing ones as None."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def _label(row: Row, names: Iterable[str]) -> Cell:
    """The model's name, with a dagger where one of the records is unsound."""
    records = [row.records[name] for name in names if name in row.records]
    phrases = [phrase for record in records for phrase in health.phrases(record)]
    text = f"{row.model} {health.DAGGER}" if phrases else row.model
    exact = {"model": row.model, "weights": row.weights, "health": "; ".join(phrases)}
    return Cell(text, "label", (), exact)


def _cell(column: Column, value: Value | None, row: Row) -> Cell:
    """The value with its interval; a dash where nothing was measured, else n/a."""
    exact = exact_values(column.key, value)
    if column.shows == "scored":
        exact = {column.key: share_scored(value["n"], value["n_failed"]) if value else None}
        share = exact[column.key]
        text = EMPTY if share is None else number(float(share), column.digits)
        return Cell(text, "none" if share is None else "value", (), exact)
    if value is None:
        return Cell(EMPTY, "none", (), exact)
    hint = basis(value, row.records[column.evaluation].seed)
    if value["value"] is None:
        return Cell(UNSCORED, "none", (), exact, hint)
    details = []
    if column.interval and value["low"] is not None:
        details.append(brackets(value["low"], value["high"], column.digits))
    if column.n and value["n"] is not None:
        details.append(f"n={value['n']:,}")
    mark = " *" if value["n_failed"] else ""
    return Cell(number(value["value"], column.digits) + mark, "value", tuple(details), exact, hint)


def exact_values(key: str, value: Value | None) -> dict[str, Any]:
    """The CSV columns of a value: itself, standard error, interval, n, number not scored."""
    names = {
        "": "value",
        "_se": "standard_error",
        "_low": "low",
        "_high": "high",
        "_n": "n",
        "_failed": "n_failed",
    }
    return {key + ending: value[name] if value else None for ending, name in names.items()}


def share_scored(n: int | None, n_failed: int) -> float | None:
    """The share of things (neurons, stories) that could be scored; None where none was counted."""
    return None if n is None or not n + n_failed else n / (n + n_failed)


def basis(value: Value, seed: int) -> str:
    """What a value is based on, in one line: its interval, n, what was not scored, the seed."""
    parts = [value["title"]]
    if value["value"] is not None:
        parts.append(f"{value['value']:.6g} {value['unit']}".strip())
    if value["low"] is not None:
        ends = f"[{value['low']:.4g}, {value['high']:.4g}]"
        parts.append(f"{value['level']:.0%} {ends} ({value['interval']})")
    if value["standard_error"] is not None:
        parts.append(f"standard error {value['standard_error']:.3g}")
    parts += [f"n {value['n']:,}"] if value["n"] is not None else []
    parts += [failures(value)] if value["n_failed"] or value["reasons"] else []
    return ", ".join([*parts, f"seed {seed}"])


def failures(value: Value) -> str:
    """How many things could not be scored, and why."""
    reasons = ", ".join(f"{reason} ({count})" for reason, count in value["reasons"].items())
    count = f"{value['n_failed']:,}" if value["n_failed"] else ""
    return ": ".join(part for part in (count, reasons) if part)


def _heading(column: Column, values: Sequence[Value | None]) -> Heading:
    known = [value for value in values if value]
    direction = known[0]["direction"] if known and column.shows == "value" else None
    return Heading(column.heading, direction, column.definition)


def _texts(used: Sequence[tuple[Row, Record]]) -> list[str]:
    """The text that was measured on; a warning where models were measured on different text."""
    texts = dict.fromkeys(_text(record) for _, record in used)
    notes = [f"{text}." for text in texts if text and len(texts) == 1]
    if len(texts) > 1:
        each = "; ".join(f"{row.model}: {_text(record)}" for row, record in used)
        notes.append(f"Not all models were scored on the same tokens ({each}).")
    mixed = mixture([record for _, record in used])
    return notes + [f"{line[:1].upper()}{line[1:]}." for line in mixed]


def scored_text(data: Mapping[str, Any]) -> str:
    """The text a record's values were measured on: its validation text, where it has its own."""
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


_Cells = Mapping[Column, Sequence[Value | None]]
_SIZE = re.compile(r"\b(\d[\d,]*)(?= [a-z]+\b)(?! resamples)")


def _methods(columns: Sequence[Column], cells: _Cells, models: Sequence[Row]) -> list[str]:
    """How the intervals shown were computed; by column and model, where they differ."""
    by_method: dict[str, list[str]] = {}
    for column in columns:
        for method in _column_methods(cells[column], models) if column.interval else ():
            headings = by_method.setdefault(method, [])
            headings += [column.heading] * (column.heading not in headings)
    if not by_method:
        return []
    if len(by_method) == 1:
        return [f"In brackets: {next(iter(by_method))}."]
    each = "; ".join(f"{method} ({', '.join(names)})" for method, names in by_method.items())
    return [f"In brackets: {each}."]


def _column_methods(values: Sequence[Value | None], models: Sequence[Row]) -> list[str]:
    """The methods of a column's intervals: one for all models where they differ in size alone."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for row, value in zip(models, values, strict=True):
        if value and value["low"] is not None:
            method = f"{value['level']:.0%}, {value['interval']}"
            by_kind.setdefault(_SIZE.sub("#", method, count=1), []).append((row.model, method))
    lines = []
    for kind, members in by_kind.items():
        sizes = [int(size[1].replace(",", "")) for _, one in members if (size := _SIZE.search(one))]
        text = members[0][1]
        if sizes and min(sizes) < max(sizes):
            text = kind.replace("#", f"{min(sizes):,} to {max(sizes):,}", 1)
        names = ", ".join(name for name, _ in members)
        lines.append(text if len(by_kind) == 1 else f"{text} of {names}")
    return lines


def _failures(columns: Sequence[Column], cells: _Cells, models: Sequence[Row]) -> list[str]:
    """Of each column the most frequent reason why something could not be scored, by model."""
    parts = []
    for column in columns:
        failed = [
            (row.model, value["n_failed"], _main_reason(value))
            for row, value in zip(models, cells[column], strict=True)
            if value and value["value"] is not None and value["n_failed"]
        ]
        if not failed or column.shows == "scored":
            continue
        reasons = {reason for _, _, reason in failed}
        alike = f", mostly: {reasons.pop()}" if len(reasons) == 1 and "" not in reasons else ""
        each = [
            f"{count:,} of {name}" + (f" (mostly: {reason})" if reason and not alike else "")
            for name, count, reason in failed
        ]
        parts.append(f"{column.heading} {_some(each)}{alike}")
    return [f"* Some could not be scored: {'; '.join(parts)}."] if parts else []


def _main_reason(value: Value) -> str:
    return max(value["reasons"], key=lambda reason: value["reasons"][reason], default="")


def _reasons(columns: Sequence[Column], cells: _Cells, models: Sequence[Row]) -> list[str]:
    """Why cells have no value."""
    by_reason: dict[str, list[str]] = {}
    for column in columns:
        for row, value in zip(models, cells[column], strict=True):
            if column.shows == "value" and value and value["value"] is None:
                reason = ", ".join(value["reasons"]) or "no reason given"
                by_reason.setdefault(reason, []).append(f"{column.heading} of {row.model}")
    each = "; ".join(f"{_some(names)} ({reason})" for reason, names in by_reason.items())
    return [f"{UNSCORED}: {each}."] if by_reason else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _unscored(values: Sequence[Value | None]) -> str:
    """Why no model has a value, where all give the same reason; "" otherwise."""
    reasons = {", ".join(one["reasons"]) if one and one["value"] is None else "" for one in values}
    return reasons.pop() if len(reasons) == 1 else ""


def _left_out(columns: Mapping[Column, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for column, reason in columns.items():
        by_reason.setdefault(reason, []).append(column.heading)
    return [f"Not measured: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]


def commands(
    evaluations: Iterable[str], models: Sequence[tuple[str, Mapping[str, Record]]]
) -> list[str]:
    """What to run for the evaluations that models have no record of.

    Args:
        models: of each the specification that commands take, and its records by evaluation.
    """
    return [
        f"sat-eval {name} {' '.join(map(shlex.quote, specs))}"
        for name in evaluations
        if (specs := [spec for spec, records in models if name not in records])
    ]


def with_interval(value: float, interval: Interval | None, digits: int) -> str:
    """A value and its interval as text: ``1.75 [1.70, 1.80]``."""
    text = number(value, digits)
    return f"{text} {brackets(interval.low, interval.high, digits)}" if interval else text


def brackets(low: float, high: float, digits: int) -> str:
    """The ends of an interval as text: ``[1.70, 1.80]``."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int) -> str:
    """A value at fixed digits; large and tiny ones in scientific notation."""
    if value and not 10.0**-digits <= abs(value) < 1e6:
        return f"{value:.{min(digits, 3)}g}"
    return f"{value:,.{digits}f}"
