"""Tables and figures of ``acdc``: counts and controls, the circuits, edges against faithfulness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.circuits.draw import Panel, draw_circuits, warning_of
from evaluations.suite.circuits.export import to_networkx, write_graphml
from evaluations.tables import Column, Layout, Row, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from evaluations.tables.page import Fragment
from sat_interp._util import escape
from sat_interp._util.files import file_name, write_atomically

HEADLINE = Headline("Are its circuits smaller?", "edges", "edges of the circuit", 1, "lower")
DRAWN_FROM = "circuit"
"""Entry of ``record.extra`` that figures are drawn from."""
ABREAST, MANY_HEADS = 4, 8
"""Circuits in one figure; half as many of models with more heads than this."""
F = "(m(circuit) - m(empty)) / (m(whole) - m(empty)), m the mean logit difference; 1: whole model"


def _column(metric: str, heading: str, digits: int, shown: bool, definition: str) -> Column:
    return Column("acdc", metric, heading, digits, shown, definition=definition)


EDGES = _column(
    "edges",
    "Edges",
    0,
    False,
    "Edges of the circuit: those the method keeps that are on a path from embedding to output",
)
CIRCUITS = (
    Layout(
        "circuits",
        "Circuits",
        (
            EDGES,
            _column(
                "accuracy",
                "Accuracy",
                2,
                True,
                "Share of prompts on which the right answer "
                "has a higher logit than the wrong one; chance is 0.5",
            ),
            _column(
                "kl_corrupted",
                "KL, all edges replaced",
                2,
                False,
                "KL(whole model || empty circuit) in nats: the scale on which tau is to be read",
            ),
            _column(
                "circuit_kl",
                "KL",
                2,
                False,
                "KL(whole model || circuit) in nats, on the prompts the circuit was found on",
            ),
            _column(
                "held_out_kl",
                "KL, held out",
                2,
                False,
                "KL(whole model || circuit) in nats, on held-out prompts",
            ),
            _column(
                "faithfulness",
                "Faithfulness",
                2,
                False,
                f"{F}; on the prompts the circuit was found on",
            ),
            _column(
                "held_out_faithfulness",
                "Faithfulness, held out",
                2,
                True,
                f"{F}; on held-out prompts",
            ),
            _column(
                "cpr",
                "CPR",
                3,
                False,
                "Area under faithfulness over shares of edges, ranked "
                "by signed score (circuit performance ratio); held-out prompts",
            ),
            _column(
                "cmd",
                "CMD",
                3,
                False,
                "Area between faithfulness and 1, edges ranked by the "
                "size of their score (circuit-model distance); held-out prompts",
            ),
        ),
        "Held out: prompts the circuit was not found on. Shares of edges that round to 0 are the "
        "empty circuit. Edges that ACDC keeps at no tau have no rank of their own: they come last, "
        "by their KL step.",
    ),
    Layout(
        "circuit-controls",
        "Controls: random circuits, null task, other prompts, other visiting orders, margin to tau",
        (
            EDGES,
            _column(
                "random_faithfulness",
                "Random circuits: faithfulness",
                2,
                True,
                "Faithfulness of random connected circuits with the same number of edges",
            ),
            _column(
                "null_edges",
                "Null task: edges",
                1,
                True,
                "Edges found where as many words "
                "change as in the task, none of which bears on the answer; mean over draws",
            ),
            _column(
                "null_jaccard",
                "Null task: overlap",
                2,
                False,
                "Jaccard overlap of the null task's circuits with the circuit",
            ),
            _column(
                "bootstrap_sd",
                "Other prompts: SD",
                1,
                True,
                "Standard deviation of the number of edges over other prompts of the task",
            ),
            _column(
                "bootstrap_jaccard",
                "Other prompts: overlap",
                2,
                False,
                "Jaccard overlap of the circuits of other prompts with the circuit",
            ),
            _column(
                "orders_sd",
                "Other orders: SD",
                1,
                True,
                "Standard deviation of the number of edges over other orders of visiting them",
            ),
            _column(
                "orders_jaccard",
                "Other orders: overlap",
                2,
                False,
                "Jaccard overlap of the circuits of other orders with the circuit",
            ),
            _column(
                "margin",
                "Margin",
                4,
                False,
                "Smallest distance of an edge's KL step to tau, nats: how near another circuit is",
            ),
        ),
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Counts and faithfulness of the circuits, and their controls."""
    return make_tables(CIRCUITS, records)


def graphs(records: Sequence[Record]) -> dict[str, nx.MultiDiGraph]:
    """Return the circuit of each model as a graph (see ``export.to_networkx``)."""
    return {row.model: to_networkx(_extra(row)["circuit"]) for row in _with_circuits(records)}


def details(record: Record, out: Path) -> pd.DataFrame:
    """Return a row for each edge of the circuit: source, destination, score."""
    columns = ["source", "destination", "score"]
    edges = pd.DataFrame(record.extra["circuit"]["edges"], columns=columns)
    edges.insert(0, "model", record.model.get("name"))
    return edges


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Every circuit as JSON, ``<stem>/<model>.circuit``, and as GraphML beside it.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    for row in _with_circuits(records):
        circuit, name = _extra(row)["circuit"], file_name(row.model)
        # no .json: what ends so below the directory of the records is a record
        text = json.dumps(circuit, indent=1) + "\n"
        written.append(write_atomically(out / stem / f"{name}.circuit", text))
        written.append(write_graphml(out / stem / f"{name}.graphml", circuit))
    return written


def _circuits(records: Sequence[Record]) -> list[Figure]:
    """The circuits side by side, a few in each figure."""
    models = _with_circuits(records)
    heads = max((_extra(row)["circuit"]["graph"]["n_heads"] for row in models), default=0)
    abreast = ABREAST if heads <= MANY_HEADS else ABREAST // 2
    return [
        draw_circuits([_panel(row) for row in models[start : start + abreast]])
        for start in range(0, len(models), abreast)
    ]


def _curves(records: Sequence[Record]) -> list[Figure]:
    models = _with_circuits(records)
    return [draw_curves(models)] if models else []


FIGURES: Mapping[str, draw.Draw] = {"": _circuits, "curves": _curves}


def _with_circuits(records: Sequence[Record]) -> list[Row]:
    """The models whose record has a circuit."""
    models = rows(records, "acdc")
    return [row for row in models if isinstance(_extra(row).get("circuit"), dict)]


def fragment(records: Sequence[Record]) -> Fragment | None:
    """The circuits on a page, to be pointed at; None where no record has one."""
    from evaluations.suite.circuits.picture import circuits_fragment

    circuits = [(row.model, row.records["acdc"]) for row in _with_circuits(records)]
    return circuits_fragment(circuits) if circuits else None


def warnings(records: Sequence[Record]) -> list[str]:
    """A line for each model whose circuit means little, with the reason."""
    return [
        f"{record.model['name']} {record.extra['marked']}"
        for record in records
        if record.extra.get("marked")
    ]


def _panel(row: Row) -> Panel:
    """A model's circuit, with the values without which it may mislead."""
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
    return Panel(title, extra["circuit"], note, warning_of(extra))


def _value(row: Row, name: str, digits: int) -> str:
    metric = row.records["acdc"].metric(name)
    return "n/a" if metric is None or metric.value is None else f"{metric.value:,.{digits}f}"


def draw_curves(models: Sequence[Row]) -> Figure:
    """Edges against faithfulness and KL, a colour for each model.

    Small marks: the first edges of the method's signed ranking. Large ones: circuits of single
    thresholds. Crosses with bars: random circuits of the circuit's size. All are of held-out
    prompts where there are any. The legend names models without a value.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, row in enumerate(models):
        color = draw.color(index)
        marker = draw.marker(index)
        for axes, name in ((left, "faithfulness"), (right, "kl")):
            _line(axes, _extra(row), name, color, marker, row.label)
            _random(axes, row, f"random_{name}", color)
    left.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":", label="whole model")
    if left.containers:
        left.plot([], [], color="0.4", marker="x", linestyle="", label="random circuits (95 %)")
    _finish(left, "faithfulness", "Edges against faithfulness")
    _finish(right, "KL divergence from the whole model, nats", "Edges against KL divergence")
    draw.legend(figure, 4, like=left)
    return figure


def _line(
    axes: Axes, extra: dict[str, Any], name: str, color: str, marker: str, label: str
) -> None:
    curve, sweep = (extra.get(part) or [] for part in ("curve", "sweep"))
    points = [
        (one["edges"], value)
        for one in curve
        if one["edges"] and (value := _number(one[name])) is not None
    ]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.1, marker=".", markersize=4)
    swept = [
        (one["edges"], value)
        for one in sweep
        if one["edges"] and (value := _judged(one, name)) is not None
    ]
    if not (points or swept):
        label += f": no {name}"
    axes.plot(
        [edges for edges, _ in swept],
        [value for _, value in swept],
        color=color,
        marker=marker,
        markersize=6,
        linestyle="",
        markeredgecolor="white",
        label=label,
    )


def _random(axes: Axes, row: Row, name: str, color: str) -> None:
    metric, edges = row.records["acdc"].metric(name), row.records["acdc"].metric("edges")
    if metric is None or metric.value is None or edges is None or not edges.value:
        return
    axes.errorbar(
        [edges.value],
        [metric.value],
        yerr=draw.reach(metric),
        color=color,
        marker="x",
        capsize=2,
        linewidth=1,
    )


def _judged(one: dict[str, Any], name: str) -> float | None:
    """A value of one threshold's circuit, on held-out prompts where there were any."""
    held_out = f"held_out_{name}"
    return _number(one[held_out] if held_out in one else one[name])


def _number(value: Any) -> float | None:
    """A value of the sweep: plain, or with its interval."""
    plain = value["value"] if isinstance(value, dict) else value
    return None if plain is None else float(plain)


def _extra(row: Row) -> dict[str, Any]:
    return row.records["acdc"].extra


def _finish(axes: Axes, y: str, title: str) -> None:
    if np.isfinite(axes.dataLim.minposx):  # empty circuits have no place on it
        axes.set_xscale("log")
    else:
        draw.empty(axes, "no value: every circuit is empty")
    draw.finish(axes, "edges kept", y, title)
