"""Figures of ``circuits``: frontiers, circuits side by side, their overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluations.core.record import Record
from evaluations.suite.circuits.draw import Panel, draw_circuits, warning_of
from evaluations.suite.circuits.frontier.config import REFERENCE, SHARES
from evaluations.suite.circuits.frontier.curves import FLOOR
from evaluations.tables import Row, draw, rows

COLORS = {
    "ugs": "#009E73",
    "hcgs": "#CC79A7",
    "edge-pruning": "#56B4E9",
    "acdc": "#D55E00",
    "eap": "#E69F00",
    "eap-ig": "#0072B2",
}
"""Of the methods, in all figures."""
NULL_STYLES: tuple[Any, ...] = (":", (0, (1, 3)), (0, (5, 5)), "--", (0, (3, 1, 1, 1, 1, 1)), "-.")
"""Line styles of the methods' curves on the null task, in the order of their colours."""
MOST_CIRCUITS = 3
"""Circuits side by side in one figure."""
Curve = Mapping[str, Any]


def _curves(row: Row) -> list[Curve]:
    curves = row.records["circuits"].extra.get("curves")
    return curves if isinstance(curves, list) else []


def _drawable(records: Sequence[Record]) -> list[Row]:
    """The models with frontiers; none is drawn without that of the null task."""
    known = rows(records, "circuits")
    return [row for row in known if _curves(row) and not _extra(row).get("no_null")]


def _extra(row: Row) -> Mapping[str, Any]:
    return row.records["circuits"].extra


# Frontiers ---------------------------------------------------------------------------------------


def frontiers(records: Sequence[Record]) -> list[Figure]:
    """Delta against edges for each model: a panel for each ablation, a colour for each method."""
    return [_frontiers(row) for row in _drawable(records)]


def _frontiers(row: Row) -> Figure:
    curves = _curves(row)
    ablations = list(dict.fromkeys(curve["ablation"] for curve in curves))
    figure = Figure(figsize=(4.3 * len(ablations) + 0.6, 4.6), layout="constrained")
    figure.set_label(row.model)
    panels = figure.subplots(1, len(ablations), squeeze=False, sharey=True)[0]
    for axes, ablation in zip(panels, ablations, strict=True):
        own = [curve for curve in curves if curve["ablation"] == ablation]
        for curve in sorted(own, key=lambda one: (one["null"], one["method"] == "random")):
            if curve["method"] != "all":
                _line(axes, curve, 1.0, *_style(curve))
        _levels(axes, _extra(row)["ceiling"])
        marked = [one["method"] for one in own if one.get("overfitted") and not one["null"]]
        marked = [method for method in marked if method not in ("all", "random")]
        note = f"\noverfitted: {', '.join(marked)}" if marked else ""
        draw.finish(axes, "edges", "Δ on held-out prompts, nats", f"ablation: {ablation}{note}")
        _log(axes)
    draw.legend(figure, 3 * len(ablations), like=panels[0])
    figure.suptitle(_title(row), fontsize=10)
    return figure


def _title(row: Row) -> str:
    extra = _extra(row)
    ceilings = f"I = {extra['ceiling']:.3g} nats"
    if extra.get("null_ceiling") is not None:
        ceilings += f", of the null task {extra['null_ceiling']:.3g}"
    mark = [extra["marked"]] if extra.get("marked") else []
    return "\n".join([f"{row.label}: cost against edges", ceilings, *mark])


def _style(curve: Curve) -> tuple[str, Any, str, bool]:
    """Colour, line style, label, and whether a band is drawn."""
    if curve["method"] == "random":
        return "0.55", "-", "random circuits", True
    if curve["null"]:
        place = [*COLORS, curve["method"]].index(curve["method"])
        return "0.35", NULL_STYLES[place % len(NULL_STYLES)], f"{curve['method']}, null task", False
    return COLORS.get(curve["method"], "#000000"), "-", curve["method"], True


def _line(
    axes: Axes, curve: Curve, scale: float, color: str, style: Any, label: str, band: bool
) -> None:
    """Draw the circuits that have edges; the empty circuit has no place on a logarithmic axis."""
    points = [point for point in curve["points"] if point["edges"]]
    if not points:
        return
    edges = [point["edges"] for point in points]
    values = {
        name: [max(point[name], FLOOR) / scale for point in points]
        for name in ("held", "low", "high")
    }
    axes.plot(
        edges,
        values["held"],
        color=color,
        linestyle=style,
        marker="." if band else None,
        markersize=5,
        linewidth=1.4 if band else 1.0,
        label=label,
        zorder=2.5 if band else 2,  # curves of null tasks below the others
    )
    if band:
        axes.fill_between(
            edges, values["low"], values["high"], color=color, alpha=0.15, linewidth=0
        )


def _levels(axes: Axes, ceiling: float) -> None:
    """Mark the ceiling and its shares."""
    for share in (1.0, *SHARES):
        axes.axhline(share * ceiling, color="0.8", linewidth=0.7, zorder=0)
        axes.annotate(
            "I" if share == 1 else f"{share:g} I",
            (1.0, share * ceiling),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            fontsize=6,
            color="0.5",
            va="center",
        )


def _log(axes: Axes) -> None:
    if axes.lines and np.isfinite(axes.dataLim.minposx):
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    else:
        draw.empty(axes, "no value: every circuit is empty")


def models(records: Sequence[Record]) -> list[Figure]:
    """Delta / I against edges, all methods together: a panel for each ablation, a line a model."""
    known = _drawable(records)
    ablations = list(dict.fromkeys(curve["ablation"] for row in known for curve in _curves(row)))
    if not ablations:
        return []
    figure = Figure(figsize=(4.3 * len(ablations) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(ablations), squeeze=False, sharey=True)[0]
    for axes, ablation in zip(panels, ablations, strict=True):
        for place, row in enumerate(known):
            for curve in _curves(row):
                if curve["ablation"] == ablation and curve["method"] == "all":
                    ceiling = _extra(row)["null_ceiling" if curve["null"] else "ceiling"]
                    style = "--" if curve["null"] else "-"
                    label = f"{row.label}, null task" if curve["null"] else row.label
                    color = draw.color(place)
                    if ceiling and ceiling > 0:
                        _line(axes, curve, ceiling, color, style, label, not curve["null"])
        _levels(axes, 1.0)
        draw.finish(axes, "edges", "Δ / I on held-out prompts", f"ablation: {ablation}")
        _log(axes)
    draw.legend(figure, 2 * len(ablations), like=panels[0])
    return [figure]


# Circuits ----------------------------------------------------------------------------------------


def circuits(records: Sequence[Record]) -> list[Figure]:
    """The methods' circuits at a fifth of the ceiling side by side, for each ablation."""
    figures = []
    for row in _drawable(records):
        own = [one for one in _extra(row).get("circuits") or [] if not one["null"]]
        for ablation in dict.fromkeys(one["ablation"] for one in own):
            panels = [_panel(row, one) for one in own if one["ablation"] == ablation]
            for start in range(0, len(panels), MOST_CIRCUITS):
                figure = draw_circuits(panels[start : start + MOST_CIRCUITS])
                part = f"-{1 + start // MOST_CIRCUITS}" if len(panels) > MOST_CIRCUITS else ""
                figure.set_label(f"{row.model}-{ablation}{part}")
                figures.append(figure)
    return figures


def _panel(row: Row, one: Mapping[str, Any]) -> Panel:
    n, of = len(one["circuit"]["edges"]), one["circuit"]["graph"]["n_edges"]
    ceiling = _extra(row)["ceiling"]
    note = (
        f"{one['setting']}; smallest with Δ ≤ {REFERENCE:g} I on the prompts it was found on\n"
        f"Δ held out {one['held']:.2f} nats, {one['held'] / ceiling:.2f} I"
    )
    title = f"{row.label}: {one['method']}, {one['ablation']}, {n} of {of:,} edges"
    return Panel(title, one["circuit"], note, warning_of(_extra(row)))


# Overlap -----------------------------------------------------------------------------------------


def overlap(records: Sequence[Record]) -> list[Figure]:
    """Jaccard overlap of the circuits at a fifth of the ceiling, with chance in the last row."""
    figures = []
    for row in _drawable(records):
        known = _extra(row).get("overlap") or {}
        if known.get("names"):
            figures.append(_overlap(row, known))
    return figures


def _overlap(row: Row, known: Mapping[str, Any]) -> Figure:
    names = [
        f"{name} ({edges})" for name, edges in zip(known["names"], known["edges"], strict=True)
    ]
    table = draw.numbers([*known["jaccard"], known["random"]])
    size = 0.52 * len(names) + 2.4
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    figure.set_label(row.model)
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(names) + 1), [*names, "random circuits"], fontsize=7)
    axes.axhline(len(names) - 0.5, color="white", linewidth=2)
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "white" if value < 0.6 else "black"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, ax=axes, shrink=0.7, label="Jaccard overlap")
    figure.suptitle(f"{row.label}: circuits with Δ ≤ {REFERENCE:g} I (edges)", fontsize=9)
    return figure
