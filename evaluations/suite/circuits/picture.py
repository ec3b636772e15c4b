"""Circuits as inline SVG for the report page, with a tooltip for every node and edge.

The layout is a simplified version of ``circuits/draw.py``: embedding at the bottom, heads in
columns, MLPs and the output as bars. Edges to or from a bar run between the columns of heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from evaluations.core.record import Record
from evaluations.suite.circuits.draw import PARTS, line_width, size_of
from evaluations.suite.circuits.export import by_head, split_destination
from evaluations.tables.page import Fragment, render, source
from sat_interp._util import escape

HERE = "evaluations.suite.circuits"
PITCH, STEP = 62, 52  # between columns, between rows
BOX, BAR = (46, 24), 14  # a head's width and height, a bar's height
LEFT, RIGHT, EDGE = 58, 64, 14
LARGEST = 1.35  # maximum magnification
PORTS = {"q": -14, "k": 0, "v": 14}


def circuits_fragment(circuits: Iterable[tuple[str, Record]]) -> Fragment:
    """Return the circuits side by side, each with its warning above it.

    Args:
        circuits: the model's name, and a record with its circuit.
    """
    panels = []
    for model, record in circuits:
        circuit = record.extra["circuit"]
        panels.append(
            {
                "title": model,
                "count": f"{len(circuit['edges']):,} of {circuit['graph']['n_edges']:,} edges",
                "warning": record.extra.get("marked"),
                "picture": Markup(circuit_picture(circuit)) if circuit["edges"] else None,
            }
        )
    parts = [(name, part_color(part)) for part, (name, _) in PARTS.items()]
    return Fragment(
        render(HERE, "circuits.html", panels=panels, parts=parts),
        source(HERE, "circuits.css"),
        source(HERE, "circuits.js"),
        replaces=("",),
    )


def circuit_picture(circuit: dict[str, Any]) -> str:
    """Return the SVG of a circuit.

    Args:
        circuit: as returned by ``circuits.graph.circuit_to_dict``, with or without scores.
    """
    circuit = by_head(circuit)
    plan = Plan(circuit["graph"])
    edges = sorted(circuit["edges"], key=size_of)
    largest = max(map(size_of, edges), default=0.0)
    dense = min(1.0, (60 / max(1, len(edges))) ** 0.5)
    used = {end for edge in edges for end in (edge["source"], _node(edge))}
    lines = [_edge(plan, edge, largest, dense) for edge in edges]
    boxes = {name: _box(plan, name, name in used, edges) for name in plan.rows}
    bars = [box for name, box in boxes.items() if plan.x(name) is None]
    heads = [box for name, box in boxes.items() if plan.x(name) is not None]
    return (
        f'<svg class="circuit" viewBox="0 0 {plan.width} {plan.height}" role="img" '
        f'style="max-width:{LARGEST * plan.width:.0f}px" '
        f'aria-label="circuit of {len(edges)} edges">{"".join([*bars, *lines, *heads])}</svg>'
    )


class Plan:
    """Positions of nodes and curves of edges."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.heads, self.mlps = int(graph["n_heads"]), bool(graph["mlps"])
        layers = range(int(graph["n_layers"]))
        self.rows: dict[str, int] = {"embed": 0}
        for layer in layers:
            row = 1 + layer * (1 + self.mlps)
            self.rows |= {f"a{layer}.h{head}": row for head in range(self.heads)}
            if self.mlps:
                self.rows[f"m{layer}"] = row + 1
        self.last = 1 + len(layers) * (1 + self.mlps)
        self.rows["resid_final"] = self.last
        self.width = LEFT + self.heads * PITCH + RIGHT
        self.height = 2 * EDGE + self.last * STEP

    def y(self, name: str) -> float:
        """Return the vertical centre of a node."""
        return EDGE + (self.last - self.rows[name]) * STEP

    def x(self, name: str) -> float | None:
        """Return the horizontal centre of a head; None for a bar."""
        if not name.startswith("a"):
            return None
        return LEFT + (int(name.partition(".h")[2]) + 0.5) * PITCH

    def path(self, source: str, node: str, part: str) -> tuple[str, list[tuple[float, float]]]:
        """Return the SVG path of an edge, and the points at which it begins or ends on a bar."""
        left, right = self.x(source), self.x(node)
        low = self.y(source) - (BAR if left is None else BOX[1]) / 2
        high = self.y(node) + (BAR if right is None else BOX[1]) / 2
        if left is None and right is None:
            share = (self.rows[source] + self.rows[node] / (self.last + 1)) / (self.last + 1)
            x = LEFT + self.heads * PITCH + 6 + (RIGHT - 16) * share
            return f"M{x:.1f},{low:.1f}V{high:.1f}", [(x, low), (x, high)]
        if left is not None and right is not None:
            port, lift = right + PORTS.get(part, 0), 0.45 * (low - high)
            # a straight line would run behind the heads in between
            bow = -0.75 * PITCH if left == right and self.rows[node] - self.rows[source] > 2 else 0
            return (
                f"M{left},{low:.1f}C{left + bow:.1f},{low - lift:.1f} "
                f"{port + bow:.1f},{high + lift:.1f} {port},{high:.1f}"
            ), []
        if right is not None:
            port = right + PORTS.get(part, 0)
            lane = self._lane(right, -1 if part == "q" else 1, source, node)
            bend = min(low, high + STEP * 0.55)
            return (
                f"M{lane:.1f},{low:.1f}V{bend:.1f}C{lane:.1f},{high + 12:.1f} "
                f"{port},{high + 14:.1f} {port},{high:.1f}"
            ), [(lane, low)]
        assert left is not None
        lane = self._lane(left, -1, node, source)
        bend = max(high, low - STEP * 0.55)
        return (
            f"M{left},{low:.1f}C{left},{low - 14:.1f} {lane:.1f},{low - 12:.1f} "
            f"{lane:.1f},{bend:.1f}V{high:.1f}"
        ), [(lane, high)]

    def _lane(self, column: float, side: int, bar: str, head: str) -> float:
        """Return the x of an edge beside a column of heads, distinct for each pair of rows."""
        rows = self.last + 1
        track = (self.rows[head] + self.rows[bar] / rows) / rows - 0.5
        return column + side * 0.43 * PITCH + 9 * track


def _edge(plan: Plan, edge: dict[str, Any], largest: float, dense: float) -> str:
    source, node = edge["source"], _node(edge)
    part = split_destination(edge["destination"])[1]
    score = edge.get("score")
    width = line_width(score, largest) * (0.35 + 0.65 * dense)
    opacity = min(0.9, 0.35 + 0.5 * dense)
    summary = f"{label(source)} → {label(node)}"
    summary += f", {PARTS[part][0]}" if part in PORTS else ""
    summary = escape.html(summary + ("" if score is None else f": effect {score:.3g} nats"))
    curve, ends = plan.path(source, node, part)
    # dots mark ends on bars, not crossings
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.5 + width / 2:.1f}"/>' for x, y in ends
    )
    return (
        f'<g class="edge" data-from="{source}" data-to="{node}" data-summary="{summary}" '
        f'style="color:{part_color(part)};opacity:{opacity:.2f}">'
        f'<path class="touch" d="{curve}"/>'
        f'<path d="{curve}" stroke-width="{width:.2f}"/>{dots}<title>{summary}</title></g>'
    )


def _box(plan: Plan, name: str, used: bool, edges: list[dict[str, Any]]) -> str:
    x, y = plan.x(name), plan.y(name)
    into = sum(_node(edge) == name for edge in edges)
    out = sum(edge["source"] == name for edge in edges)
    summary = escape.html(f"{label(name)}: {into} in, {out} out")
    if x is None:
        wide = plan.width - LEFT - 4
        shape = f'<rect x="{LEFT}" y="{y - BAR / 2}" width="{wide}" height="{BAR}" rx="4"/>'
        text = f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{label(name)}</text>'
    else:
        wide, tall = BOX
        shape = f'<rect x="{x - wide / 2}" y="{y - tall / 2}" width="{wide}" height="{tall}" '
        shape += 'rx="5"/>'
        text = (
            f'<text x="{x}" y="{y + 4}" text-anchor="middle">{name[1:].replace(".h", ".")}</text>'
        )
    focus = 'tabindex="0"' if used else ""
    kind = "node used" if used else "node"
    return (
        f'<g class="{kind}" data-name="{name}" data-summary="{summary}" {focus}>'
        f"{shape}{text}<title>{summary}</title></g>"
    )


def part_color(part: str) -> str:
    """Return the colour of the figures; for the output the page's grey."""
    return "var(--soft)" if part == "resid_final" else PARTS[part][1]


def label(name: str) -> str:
    """Return the display name of a node: ``head 2.0`` for ``a2.h0``."""
    if name in ("embed", "resid_final"):
        return {"embed": "embed", "resid_final": "output"}[name]
    return f"head {name[1:].replace('.h', '.')}" if name[0] == "a" else f"MLP {name[1:]}"


def _node(edge: dict[str, Any]) -> str:
    return split_destination(edge["destination"])[0]
