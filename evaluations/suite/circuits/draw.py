"""Circuits as layered figures: the embedding at the bottom, heads and MLPs by layer, the output.

The embedding, MLPs and the output are bars across a layer, heads are boxes in columns. An edge
leaves its source at the top and enters its destination at the bottom; edges to a head's queries,
keys and values end left, middle and right, each in its own colour. Edges to and from bars run
between the columns, edges between bars at the right. Line width is proportional to the square root
of the effect, on the same scale for all circuits of a figure.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.path import Path as Curve

from evaluations.suite.circuits.export import by_head, split_destination
from evaluations.suite.circuits.shape import GraphShape
from sat_interp._util import escape

# Okabe and Ito's colours, which colour-blind readers can distinguish.
PARTS = {
    "q": ("queries", "#0072B2"),
    "k": ("keys", "#E69F00"),
    "v": ("values", "#009E73"),
    "mlp": ("MLP", "#CC79A7"),
    "resid_final": ("output", "#555555"),
}
PORTS = {"q": -0.2, "k": 0.0, "v": 0.2}
HALF, TALL = 0.31, 0.24  # half the width and height of a head's box; columns are 1 apart
WIDEST = 5.0  # points
LETTERS = 58
"""Letters in a line of a warning."""


@dataclass(frozen=True)
class Panel:
    """One circuit of a figure.

    Attributes:
        title: title of the panel.
        circuit: as returned by ``graph.circuit_to_dict``; without scores all edges have one width.
        note: text below the circuit.
        warning: text above the circuit, in red.
    """

    title: str
    circuit: dict[str, Any]
    note: str = ""
    warning: str = ""


def warning_of(extra: Mapping[str, Any]) -> str:
    """Return why a record's circuits mean little, in lines that fit a panel; "" where they do."""
    parts = str(extra.get("marked") or "").split("; ")
    lines = [line for part in parts for line in textwrap.wrap(part, LETTERS)]
    return "\n".join(map(escape.figure, lines))


def draw_circuits(panels: Sequence[Panel]) -> Figure:
    """Draw the circuits side by side."""
    graphs = [GraphShape.of_circuit(panel.circuit) for panel in panels]
    widths = [_width(graph) for graph in graphs]
    height = max(1.5 + 0.55 * _rows(graph) for graph in graphs)
    figure = Figure(figsize=(sum(widths), max(3.2, height)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    largest = max(
        (size_of(edge) for panel in panels for edge in panel.circuit["edges"]), default=0.0
    )
    for axes, panel, graph in zip(grid, panels, graphs, strict=True):
        _draw(axes, panel, graph, largest)
    _legend(figure, largest)
    return figure


def _width(graph: GraphShape) -> float:
    """Return the width of a panel in inches."""
    return max(5.0, 1.6 + (0.62 if graph.n_heads <= 8 else 0.46) * graph.n_heads)


def _rows(graph: GraphShape) -> int:
    return 2 + graph.n_layers * (1 + graph.mlps)


def _draw(axes: Axes, panel: Panel, graph: GraphShape, largest: float) -> None:
    edges = sorted(by_head(panel.circuit)["edges"], key=size_of)
    dense = min(1.0, (60 / max(1, len(edges))) ** 0.5)
    for part, (_, color) in PARTS.items():
        curves, widths, alphas, dots = [], [], [], []
        for edge in edges:
            node, entered = split_destination(edge["destination"])
            if entered == part:
                curves.append(_curve(graph, edge["source"], node, part))
                dots += _ends_on_bars(graph, edge["source"], node, curves[-1])
                width = line_width(edge.get("score"), largest)
                widths.append(width * (0.35 + 0.65 * dense))
                alphas.append(min(0.9, 0.3 + 0.55 * dense + 0.6 * (1 - dense) * width / WIDEST))
        style: dict[str, Any] = {"edgecolors": color, "linewidths": widths, "alpha": alphas or None}
        axes.add_collection(
            PathCollection(curves, facecolors="none", zorder=4, capstyle="butt", **style)
        )
        if dots:
            x, y = zip(*dots, strict=True)
            axes.scatter(x, y, s=4 + 14 * dense, color=color, zorder=5)
    used = {
        name
        for edge in edges
        for name in (edge["source"], split_destination(edge["destination"])[0])
    }
    for name in ["resid_final", *(source.name for source in graph.sources)]:
        _node(axes, graph, name, name in used)
    low, high = _bar(graph)
    axes.set_xlim(low - 0.9, high + 0.1)
    warning = len(panel.warning.splitlines())
    axes.set_ylim(-0.6, _rows(graph) - 0.5 + 0.45 * warning)
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=10, loc="left")
    style = {"transform": axes.transAxes, "fontsize": 8, "va": "top"}
    axes.text(0.0, 1.0, panel.warning, color="#B00020", **style)
    axes.text(0.0, -0.01, panel.note, color="0.35", **style)


def size_of(edge: dict[str, Any]) -> float:
    """Return the absolute effect of an edge in nats; 0 if it has no score."""
    return abs(float(edge.get("score") or 0.0))


def line_width(score: float | None, largest: float) -> float:
    """Return a line width in points.

    It is proportional to the square root, so that an edge a hundred times weaker stays visible.
    """
    if score is None or not largest:
        return 1.2
    return 0.5 + (WIDEST - 0.5) * math.sqrt(abs(score) / largest)


def _place(graph: GraphShape, name: str) -> tuple[float | None, float]:
    """Return column (None for a bar) and row of a node."""
    if name == "embed":
        return None, 0.0
    if name == "resid_final":
        return None, float(_rows(graph) - 1)
    layer = int(name[1:].partition(".")[0])
    row = 1 + layer * (1 + graph.mlps)
    if name[0] == "m":
        return None, row + 1.0
    return float(name.partition(".h")[2]), float(row)


def _bar(graph: GraphShape) -> tuple[float, float]:
    """Return the left and right ends of bars, with room for edges between bars at the right."""
    return -0.7, graph.n_heads - 0.3 + _margin(graph)


def _margin(graph: GraphShape) -> float:
    return 1.2 if graph.mlps else 0.4


def _curve(graph: GraphShape, source: str, node: str, part: str) -> Curve:
    """Return the curve of an edge."""
    (left, below), (right, above) = _place(graph, source), _place(graph, node)
    bottom = below + (0.0 if left is None else TALL)
    top = above - (0.0 if right is None else TALL)
    if left is None and right is None:
        return _beside(graph, below, above)
    if left is None and right is not None:
        side = -1 if part == "q" else 1
        lane = _lane(graph, right, side, above, below) + (0.04 if part == "k" else 0.0)
        return _bend((lane, bottom), (lane, top - 0.55), (right + PORTS[part], top))
    if right is None and left is not None:
        lane = _lane(graph, left, -1, below, above)
        return _bend((lane, top), (lane, bottom + 0.55), (left, bottom))
    assert left is not None
    assert right is not None
    port, lift = right + PORTS[part], 0.4 * (top - bottom)
    # A straight line would run behind the heads in between.
    bow = -0.8 if left == right and top - bottom > 2 else 0.0
    points = [(left, bottom), (left + bow, bottom + lift), (port + bow, top - lift), (port, top)]
    return Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])


def _lane(graph: GraphShape, column: float, side: int, head: float, bar: float) -> float:
    """Return the x of an edge between two columns of heads, distinct for each pair of rows."""
    rows = _rows(graph)
    track = (head + bar / rows) / rows - 0.5
    return column + side * 0.41 + 0.15 * track


def _bend(
    start: tuple[float, float], corner: tuple[float, float], end: tuple[float, float]
) -> Curve:
    """Return a curve that runs straight along a lane, then bends to a head."""
    middle = (corner[1] + end[1]) / 2
    points = [start, corner, (corner[0], middle), (end[0], middle), end]
    return Curve(points, [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4] * 3])


def _ends_on_bars(
    graph: GraphShape, source: str, node: str, curve: Curve
) -> list[tuple[float, float]]:
    """Return the points at which an edge begins or ends on a bar (not where it crosses one)."""
    rows = [row for column, row in (_place(graph, source), _place(graph, node)) if column is None]
    points = np.asarray(curve.vertices)[[0, -1]].tolist()
    return [(x, y) for x, y in points if y in rows]


def _beside(graph: GraphShape, below: float, above: float) -> Curve:
    """Return the curve of an edge between bars: a vertical line at the right."""
    rows = _rows(graph)
    share = (below * rows + above) / (rows * rows)
    x = graph.n_heads - 0.2 + _margin(graph) * 0.85 * share
    return Curve([(x, below), (x, above)], [Curve.MOVETO, Curve.LINETO])


def _node(axes: Axes, graph: GraphShape, name: str, used: bool) -> None:
    column, row = _place(graph, name)
    ink, paper = ("0.1", "white") if used else ("0.75", "0.98")
    size = 8 if graph.n_heads <= 8 else 6
    over = 6 if used and column is not None else 2  # edges are at 4
    if column is None:
        low, high = _bar(graph)
        box = (low, row - 0.12, high - low, 0.24)
        label = {"embed": "embed", "resid_final": "output"}.get(name, f"MLP {name[1:]}")
        axes.text(low - 0.1, row, label, ha="right", va="center", fontsize=size, color=ink)
    else:
        box = (column - HALF, row - TALL, 2 * HALF, 2 * TALL)
        label = name[1:].replace(".h", ".")
        axes.text(
            column, row, label, ha="center", va="center", fontsize=size, color=ink, zorder=over + 1
        )
    style: dict[str, Any] = {"linewidth": 0.8, "edgecolor": ink, "facecolor": paper, "zorder": over}
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(box[:2], box[2], box[3], boxstyle=shape, **style))


def _legend(figure: Figure, largest: float) -> None:
    """Add a legend of colours and line widths."""
    lines = [(color, 2.0, f"to {name}") for name, color in PARTS.values()]
    if largest:
        lines += [
            ("0.5", line_width(value, largest), f"effect {value:.2g} nats")
            for value in (largest, largest / 10, largest / 100)
        ]
    handles = [
        Line2D([], [], color=color, linewidth=width, label=label) for color, width, label in lines
    ]
    columns = len(handles) if figure.get_figwidth() > 9.5 else 4
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
