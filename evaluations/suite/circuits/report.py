"""What ``acdc`` found: tables, the circuits side by side, edges against faithfulness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.circuits.draw import Panel, draw_circuits
from evaluations.suite.circuits.export import write_graphml
from evaluations.tables.figures import MARKERS, PALETTE, save
from evaluations.tables.tables import Column, Layout, Row, rows, write_tables
from sat_interp._util import escape
from sat_interp._util.files import file_name, write_atomically

ABREAST = 4  # circuits in one figure


def _columns(*told: tuple[str, str, int, bool]) -> tuple[Column, ...]:
    return tuple(
        Column("acdc", metric, heading, digits, shown) for metric, heading, digits, shown in told
    )


CIRCUITS = (
    Layout(
        "Circuits",
        _columns(
            ("edges", "Edges", 0, False),
            ("accuracy", "Accuracy", 2, True),
            ("kl_corrupted", "KL corrupted", 2, False),
            ("circuit_kl", "KL circuit", 2, False),
            ("held_out_kl", "held out", 2, False),
            ("faithfulness", "Faithfulness", 2, False),
            ("held_out_faithfulness", "held out", 2, True),
            ("cpr", "CPR", 3, False),
            ("cmd", "CMD", 3, False),
        ),
        "Edges on a path from embedding to output. Held out: prompts the circuit was not found on. "
        "CPR ranks edges by score with its sign, CMD by the score's size; both are of held-out "
        "prompts. Shares of edges that round to 0 are the empty circuit. Edges that ACDC keeps at "
        "no tau have no rank of their own: they come last, by their KL step.",
    ),
    Layout(
        "Controls: random circuits, null task, other prompts, other visiting orders, margin to tau",
        _columns(
            ("edges", "Edges", 0, False),
            ("random_faithfulness", "Random: f", 2, True),
            ("null_edges", "Null", 1, True),
            ("null_jaccard", "overlap", 2, False),
            ("bootstrap_sd", "Prompts: SD", 1, True),
            ("bootstrap_jaccard", "overlap", 2, False),
            ("orders_sd", "Orders: SD", 1, True),
            ("orders_jaccard", "overlap", 2, False),
            ("margin", "Margin", 4, False),
        ),
        "Null: mean edges where as many words change as in the task, none of which bears on the "
        "answer. SD: of the count of edges. Overlap: Jaccard, with the circuit.",
    ),
)


def write_report(records: Sequence[Record], out: Path, stem: str = "acdc") -> list[Path]:
    """`write_text`, then `draw`."""
    return [*write_text(records, out, stem), *draw(records, out, stem)]


def write_text(records: Sequence[Record], out: Path, stem: str = "acdc") -> list[Path]:
    """Tables, and every circuit as JSON and GraphML.

    Args:
        records: of the evaluation ``acdc``; others are passed over.
        stem: ``<stem>.md``, ``.csv`` and, in ``<stem>/``, ``<model>.circuit`` (JSON) and
            ``<model>.graphml`` are written.

    Raises:
        OSError: they cannot be written.
    """
    found = [record for record in records if record.evaluation == "acdc"]
    if not found:
        return []
    written = write_tables(CIRCUITS, found, out, stem)
    for row in _with_circuits(found):
        circuit, path = _extra(row)["circuit"], out / stem / file_name(row.model)
        # no .json: what ends so below the directory of the records is a record
        text = json.dumps(circuit, indent=1) + "\n"
        written.append(write_atomically(path.with_name(f"{path.name}.circuit"), text))
        written.append(write_graphml(path.with_name(f"{path.name}.graphml"), circuit))
    return written


def draw(records: Sequence[Record], out: Path, stem: str = "acdc") -> list[Path]:
    """``<stem>.png`` and ``.svg`` (the circuits), and ``<stem>-curves``.

    Raises:
        OSError: they cannot be written.
    """
    named = _with_circuits([record for record in records if record.evaluation == "acdc"])
    written: list[Path] = []
    for start in range(0, len(named), ABREAST):
        part = f"-{start // ABREAST + 1}" if len(named) > ABREAST else ""
        figure = draw_circuits([_panel(row) for row in named[start : start + ABREAST]])
        written += save(figure, out / f"{stem}{part}")
    return [*written, *(save(draw_curves(named), out / f"{stem}-curves") if named else [])]


def _with_circuits(records: Sequence[Record]) -> list[Row]:
    """The models whose record has a circuit; without one there is nothing to draw."""
    return [row for row in rows(records) if "circuit" in _extra(row)]


def warnings(records: Sequence[Record]) -> list[str]:
    """What has to be said before any circuit is looked at, a line for each model."""
    return [
        f"{record.model['name']} {record.extra['marked']}"
        for record in records
        if record.extra.get("marked")
    ]


def _panel(row: Row) -> Panel:
    """A model's circuit with the figures it must not be seen without."""
    record = row.records["acdc"]
    extra, method = record.extra, str(record.config.get("method", "?"))
    how = f"{method}, tau {extra['tau']:g}" if extra.get("tau") is not None else method
    count = _value(row, "edges", 0)
    title = f"{row.label}: {count} of {extra['circuit']['graph']['n_edges']:,} edges"
    note = (
        f"{escape.figure(record.data.get('spec', '?'))}, {escape.figure(how)}\n"
        f"accuracy {_value(row, 'accuracy', 2)}, faithfulness {_value(row, 'faithfulness', 2)} "
        f"(held out {_value(row, 'held_out_faithfulness', 2)}), "
        f"null task {_value(row, 'null_edges', 1)} edges"
    )
    warning = "\n".join(map(escape.figure, str(extra.get("marked") or "").split("; ")))
    return Panel(title, extra["circuit"], note, warning)


def _value(row: Row, name: str, digits: int) -> str:
    metric = row.records["acdc"].metric(name)
    return "n/a" if metric is None or metric.value is None else f"{metric.value:,.{digits}f}"


def draw_curves(named: Sequence[Row]) -> Figure:
    """Edges against faithfulness and KL, a colour for each model.

    Small marks: the first edges of the method's signed ranking. Large ones: circuits of single
    thresholds. Crosses with bars: random circuits of the size of the one in question. All are of
    held-out prompts where there are any. A model without a value says so in the legend.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, row in enumerate(named):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        for axes, name in ((left, "faithfulness"), (right, "kl")):
            _line(axes, _extra(row), name, color, marker, row.label)
            _random(axes, row, f"random_{name}", color)
    left.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    _finish(left, "faithfulness", "Edges against faithfulness")
    _finish(right, "KL from the whole model, nats", "Edges against KL")
    handles, labels = left.get_legend_handles_labels()
    left.plot([], [], color="0.4", marker="x", linestyle="")
    figure.legend(
        [*handles, left.lines[-1]], [*labels, "random circuits (95 %)"],
        loc="outside lower center", ncols=4, frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def _line(
    axes: Axes, extra: dict[str, Any], name: str, color: str, marker: str, label: str
) -> None:
    points = [
        (one["edges"], value) for one in extra.get("curve", [])
        if one["edges"] and (value := _number(one[name])) is not None
    ]  # fmt: skip
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.1, marker=".", markersize=4)
    swept = [(one["edges"], value) for one in extra.get("sweep", [])
             if one["edges"] and (value := _judged(one, name)) is not None]  # fmt: skip
    if not (points or swept):
        label += ": no value"
    axes.plot(
        [edges for edges, _ in swept], [value for _, value in swept], color=color, marker=marker,
        markersize=6, linestyle="", markeredgecolor="white", label=label,
    )  # fmt: skip


def _random(axes: Axes, row: Row, name: str, color: str) -> None:
    metric, edges = row.records["acdc"].metric(name), row.records["acdc"].metric("edges")
    if metric is None or metric.value is None or edges is None or not edges.value:
        return
    reach = None
    if metric.interval:
        reach = [[max(0.0, metric.value - metric.interval.low)],
                 [max(0.0, metric.interval.high - metric.value)]]  # fmt: skip
    axes.errorbar(
        [edges.value], [metric.value], yerr=reach, color=color, marker="x", capsize=2, linewidth=1
    )


def _judged(one: dict[str, Any], name: str) -> float | None:
    """A figure of one threshold's circuit, on held-out prompts where there were any."""
    held_out = f"held_out_{name}"
    return _number(one[held_out] if held_out in one else one[name])


def _number(value: Any) -> float | None:
    """A figure of the sweep: plain, or with its interval."""
    found = value["value"] if isinstance(value, dict) else value
    return None if found is None else float(found)


def _extra(row: Row) -> dict[str, Any]:
    return row.records["acdc"].extra


def _finish(axes: Axes, y: str, title: str) -> None:
    if np.isfinite(axes.dataLim.minposx):  # empty circuits have no place on it
        axes.set_xscale("log")
    axes.set_xlabel("edges kept", fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
