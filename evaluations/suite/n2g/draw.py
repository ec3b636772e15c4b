"""Figures and GraphML files of a unit's graph."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch

from sat_interp._util import escape
from sat_interp._util.files import write_atomically

SHADE = matplotlib.colormaps["Oranges"]
COLUMN, LINE = 1.45, 0.34
"""Inches between columns, and between nodes of a column."""
WIDE = 7.0
"""Width in inches of a legend of one line."""
MOST, DEEPEST = 16, 9
"""Maximum number of nodes per column, and of columns before the activating one."""
LONGEST = 14
"""Maximum number of characters of a label."""
CHARACTER = 0.066
"""Approximate width of a character in inches."""

Point = tuple[float, float]


def draw_graph(neuron: dict[str, Any]) -> Figure:
    """Draw the merged trie: context on the left, activating tokens on the right.

    Equal tokens at equal distance from the activating token are one node; ``*`` is any token;
    activating nodes are shaded by activation. A column shows the 16 nodes with the most examples
    on their edges and the number of the others; at most nine columns of context are drawn.

    Args:
        neuron: the neuron's entry in a layer's file.
    """
    graph = neuron.get("graph") or {"nodes": [], "edges": []}
    columns, hidden = _columns(graph)
    tallest = max((len(column) for column in columns.values()), default=1)
    deepest = max(columns, default=0)
    width = max(4.2, COLUMN * (deepest + 1) + 0.6)
    figure = Figure(figsize=(width, max(2.2, LINE * (tallest + 1) + 1.3)), layout="constrained")
    axes = figure.subplots()
    places = _places(columns, tallest)
    half = {node["id"]: _half_width(node) for node in graph["nodes"]}
    _edges(axes, graph["edges"], places, half)
    for node in graph["nodes"]:
        if node["id"] in places:
            _node(axes, node, places[node["id"]])
    for depth, count in hidden.items():
        axes.text(-depth, -tallest, f"and {count} more", ha="center", fontsize=7, color="0.45")
    axes.set_xlim(-deepest - 0.55, 0.55)
    axes.set_ylim(-tallest - 0.4, 0.4)
    axes.set_axis_off()
    _legend(figure, graph["nodes"])
    axes.set_title(
        _title(neuron, max((n["depth"] for n in graph["nodes"]), default=0)), fontsize=9, loc="left"
    )
    if not graph["nodes"]:
        reason = escape.figure(neuron.get("reason") or "no pattern fires")
        axes.text(0, -tallest / 2, reason, ha="center", fontsize=9, color="0.4")
    return figure


def _legend(figure: Figure, nodes: list[dict[str, Any]]) -> None:
    """Add a legend of the colours that occur."""
    kinds = {node["kind"] for node in nodes}
    patches = []
    if "activating" in kinds:
        patches += [
            Patch(facecolor=SHADE(0.15 + 0.7 * level), edgecolor="0.3", label=label)
            for level, label in (
                (0.5, "activating token, at half of its maximum"),
                (1.0, "at its maximum"),
            )
        ]
    if kinds - {"activating", "ignore"}:
        patches.append(Patch(facecolor="0.95", edgecolor="0.6", label="context that matters"))
    if "ignore" in kinds:
        patches.append(Patch(facecolor="white", edgecolor="white", label="*: any token"))
    if patches:
        columns = 2 if figure.get_figwidth() < WIDE else 4
        figure.legend(
            handles=patches, loc="outside lower left", ncols=columns, frameon=False, fontsize=7
        )


def svg(neuron: dict[str, Any]) -> str:
    """Return the figure as the text of an SVG element."""
    content = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": escape.printable(neuron["unit"])}
    ):
        draw_graph(neuron).savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]


def write_graphml(path: Path, neuron: dict[str, Any]) -> Path:
    """Write the merged trie as GraphML: nodes with token, depth, kind and activation."""
    graph = nx.DiGraph(unit=escape.printable(neuron["unit"]))
    for node in neuron["graph"]["nodes"]:
        attributes = {key: node[key] for key in node if key != "id" and node[key] is not None}
        attributes["token"] = escape.printable(node["token"])  # XML has no control characters
        graph.add_node(node["id"], **attributes)
    for edge in neuron["graph"]["edges"]:
        graph.add_edge(edge["source"], edge["target"], count=edge["count"])
    content = io.BytesIO()
    nx.write_graphml(graph, content)
    return write_atomically(path, content.getvalue())


def _title(neuron: dict[str, Any], depth: int) -> str:
    title = escape.figure(neuron["unit"])
    if "scores" in neuron:
        scores = {name: counts["f1"] for name, counts in neuron["scores"].items()}
        if scores["trie"] is not None:
            title += (
                f": F1 on held-out excerpts {scores['trie']:.2f}\n"
                f"(lookup {scores['lookup']:.2f}, always {scores['always']:.2f}), "
                f"{neuron['excerpts']} excerpts"
            )
    if depth > DEEPEST:
        title += f"\ncontexts of up to {depth} tokens, of which {DEEPEST} are drawn"
    return title


def _columns(
    graph: dict[str, list[dict[str, Any]]],
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, int]]:
    """Return the nodes to draw at each depth, in order, and the number of hidden nodes."""
    weight: dict[int, int] = defaultdict(int)
    for edge in graph["edges"]:
        weight[edge["source"]] += edge["count"]
        weight[edge["target"]] += edge["count"]
    columns: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for node in graph["nodes"]:
        if node["depth"] <= DEEPEST:
            columns[node["depth"]].append(node)
    hidden = {}
    for depth, nodes in columns.items():
        nodes.sort(key=lambda node: (-weight[node["id"]], -(node["activation"] or 0), node["id"]))
        if len(nodes) > MOST:
            hidden[depth] = len(nodes) - MOST
        columns[depth] = nodes[:MOST]
    _untangle(columns, graph["edges"])
    return dict(columns), hidden


def _untangle(columns: dict[int, list[dict[str, Any]]], edges: list[dict[str, Any]]) -> None:
    """Order each column by the mean row of its nodes' targets (barycentre heuristic)."""
    targets: dict[int, list[int]] = defaultdict(list)
    for edge in edges:
        targets[edge["source"]].append(edge["target"])
    row: dict[int, float] = {}
    for depth in sorted(columns):
        if depth:
            columns[depth].sort(key=lambda node: _mean_row(targets[node["id"]], row))
        size = len(columns[depth])
        row |= {node["id"]: (i + 0.5) / size for i, node in enumerate(columns[depth])}


def _mean_row(targets: list[int], row: dict[int, float]) -> float:
    known = [row[target] for target in targets if target in row]
    return sum(known) / len(known) if known else 1.0


def _places(columns: dict[int, list[dict[str, Any]]], tallest: int) -> dict[int, Point]:
    places: dict[int, Point] = {}
    for depth, nodes in columns.items():
        top = (tallest - len(nodes)) / 2
        places |= {node["id"]: (float(-depth), -top - i - 0.5) for i, node in enumerate(nodes)}
    return places


def _half_width(node: dict[str, Any]) -> float:
    """Return half of the width of a node's label, in columns."""
    return (0.06 + CHARACTER * len(_label(node)) / 2) / COLUMN


def _edges(
    axes: Axes, edges: list[dict[str, Any]], places: dict[int, Point], half: dict[int, float]
) -> None:
    for edge in edges:
        if edge["source"] in places and edge["target"] in places:
            (x, y), (to_x, to_y) = places[edge["source"]], places[edge["target"]]
            axes.add_patch(
                FancyArrowPatch(
                    (x + half[edge["source"]], y),
                    (to_x - half[edge["target"]] - 0.02, to_y),
                    arrowstyle="-|>",
                    mutation_scale=6,
                    color="0.45",
                    linewidth=min(2.5, 0.6 + 0.3 * math.log2(edge["count"])),
                    shrinkA=0,
                    shrinkB=0,
                )
            )


def _node(axes: Axes, node: dict[str, Any], place: Point) -> None:
    activation = node["activation"]
    if node["kind"] == "activating":
        level = min(1.0, activation or 0.0)
        face: Any = SHADE(0.15 + 0.7 * level)
        edge, color = "0.3", "white" if level > 0.75 else "black"
    elif node["kind"] == "ignore":
        face, edge, color = "white", "white", "0.5"
    else:
        face, edge, color = "0.95", "0.6", "black"
    axes.text(
        *place,
        _label(node),
        ha="center",
        va="center",
        fontsize=8,
        color=color,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": face, "edgecolor": edge, "linewidth": 0.7},
    )


def _label(node: dict[str, Any]) -> str:
    return escape.figure(shown(node["token"]))


def shown(token: str) -> str:
    """Return a token as a short label with visible spaces, line ends and control characters."""
    text = token.replace("\n", "⏎").replace("\t", "→").replace(" ", "·")
    text = escape.printable(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
