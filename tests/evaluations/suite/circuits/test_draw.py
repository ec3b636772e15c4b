"""The layered figure: every edge drawn once, where it belongs."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch

from evaluations.suite.circuits.draw import (
    PARTS,
    Panel,
    _curve,
    draw_circuits,
    line_width,
    warning_of,
)
from evaluations.suite.circuits.graph import Graph, circuit_to_dict


def _panel(graph: Graph, n: int, title: str = "t", **more: str) -> Panel:
    scores = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[scores.argsort()[:n]] = True
    return Panel(title, circuit_to_dict(graph, kept, scores.double()), **more)


def _drawn(axes) -> dict[str, list]:
    """Paths of every part, by its colour."""
    lines = [
        one for one in axes.collections if isinstance(one, PathCollection) and one.get_zorder() == 4
    ]
    colors = {color.lower(): part for part, (_, color) in PARTS.items()}
    return {
        colors[to_hex(line.get_edgecolor()[0])]: list(line.get_paths())
        for line in lines
        if len(line.get_paths())
    }


@pytest.mark.parametrize(
    "graph", [Graph(2, 3), Graph(2, 3, parallel=True), Graph(3, 2, mlps=False)], ids=str
)
def test_every_edge_is_drawn_once_in_its_colour_and_runs_upwards(graph):
    panel = _panel(graph, graph.n_edges)
    (axes,) = draw_circuits([panel]).axes
    drawn = _drawn(axes)
    wanted: dict[str, int] = {}
    for edge in panel.circuit["edges"]:
        name = edge["destination"]
        part = name.rpartition(".")[2] if name[0] == "a" else {"m": "mlp"}.get(name[0], name)
        wanted[part] = wanted.get(part, 0) + 1
    assert {part: len(paths) for part, paths in drawn.items()} == wanted
    for paths in drawn.values():
        for path in paths:
            assert np.isfinite(path.vertices).all()
            low, high = sorted((path.vertices[0][1], path.vertices[-1][1]))
            assert low < high
            assert path.vertices[:, 1].min() >= low
            assert path.vertices[:, 1].max() <= high
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == graph.n_sources + 1


def test_queries_keys_and_values_enter_a_head_side_by_side():
    graph = Graph(2, 3)
    ends = [_curve(graph, "a0.h1", "a1.h2", part).vertices[-1][0] for part in ("q", "k", "v")]
    assert ends == sorted(ends)
    assert len(set(ends)) == 3


def test_ways_between_a_column_and_bars_are_all_different():
    graph = Graph(3, 2)
    starts = [
        _curve(graph, source, f"a{layer}.h1", part).vertices[0][0]
        for source in ("embed", "m0")
        for layer in (1, 2)
        for part in ("q", "k", "v")
    ]
    assert len({round(x, 6) for x in starts}) == len(starts)


def test_width_grows_with_the_effect_on_one_scale():
    assert line_width(0.0, 2.0) < line_width(-0.02, 2.0) < line_width(1.0, 2.0)
    assert line_width(2.0, 2.0) == 5.0
    assert line_width(None, 2.0) == line_width(0.5, 0.0)


@pytest.mark.parametrize("n", [0, 10, 1000])
def test_any_number_of_edges_gives_a_figure(n):
    figure = draw_circuits(
        [_panel(Graph(4, 8), n, "left"), _panel(Graph(2, 2), min(n, 5), "right", warning="cannot")]
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["left", "right"]
    assert any(text.get_text() == "cannot" for text in figure.axes[1].texts)
    figure.savefig(io.BytesIO(), format="svg")


def test_a_warning_fits_its_panel_and_is_no_formula():
    reason = "does not do the task: accuracy 0.45 [0.26, 0.66] is not above $chance$; no count"
    lines = warning_of({"marked": reason}).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert r"\$chance\$" in " ".join(lines)
    assert warning_of({}) == warning_of({"marked": None}) == ""
    (axes,) = draw_circuits([_panel(Graph(4, 4), 3, warning="\n".join(lines))]).axes
    figure = axes.get_figure()
    figure.draw_without_rendering()
    (shown,) = [text for text in axes.texts if "chance" in text.get_text()]
    assert shown.get_window_extent().x1 <= figure.bbox.x1


def test_a_circuit_without_scores_is_drawn():
    graph = Graph(1, 2)
    circuit = circuit_to_dict(graph, torch.ones(graph.n_edges, dtype=torch.bool))
    (axes,) = draw_circuits([Panel("t", circuit)]).axes
    assert sum(map(len, _drawn(axes).values())) == graph.n_edges
