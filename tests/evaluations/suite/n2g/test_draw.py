"""Figures of graphs: what is drawn, what is left out and said so."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import networkx as nx
import pytest

from evaluations.suite.n2g.draw import DEEPEST, LONGEST, MOST, draw_graph, shown, svg, write_graphml
from evaluations.suite.n2g.graph import merged_trie
from evaluations.suite.n2g.trie import IGNORE, Pattern
from sat_interp._util import escape

TEXTS = [f" w{number}" for number in range(60)]


def _neuron(found, **more):
    graph = merged_trie(found, TEXTS, 0.5)
    return {"unit": "1.2", "reason": None, "excerpts": 3, "graph": graph, **more}


def test_labels_and_shades():
    figure = draw_graph(_neuron([Pattern((1, IGNORE, 2), 0.9, 2), Pattern((3,), 0.6, 1)]))
    (axes,) = figure.axes
    texts = {text.get_text(): text for text in axes.texts}
    assert {"·w1", "*", "·w2", "·w3"} <= set(texts)
    fires = texts["·w1"].get_bbox_patch().get_facecolor()
    less = texts["·w3"].get_bbox_patch().get_facecolor()
    context = texts["·w2"].get_bbox_patch().get_facecolor()
    assert fires != less != context
    assert sum(fires[:3]) < sum(less[:3])  # the darker, the more it fires
    assert len(axes.patches) == 2
    assert texts["·w2"].get_position()[0] < texts["·w1"].get_position()[0]


def test_what_does_not_fit_is_said():
    wide = [Pattern((0, token), 0.9, 1) for token in range(1, MOST + 4)]
    (axes,) = draw_graph(_neuron(wide)).axes
    assert "and 3 more" in {text.get_text() for text in axes.texts}
    deep = [Pattern(tuple(range(DEEPEST + 4)), 0.9, 1)]
    (axes,) = draw_graph(_neuron(deep, scores=_scores())).axes
    assert f"up to {DEEPEST + 3} tokens, of which {DEEPEST} are drawn" in axes.get_title(loc="left")
    assert "0.50" in axes.get_title(loc="left")


def _scores():
    return {name: {"f1": 0.5} for name in ("trie", "lookup", "always")}


def test_a_neuron_without_a_graph_says_why():
    neuron = {"unit": "0.1", "reason": "no activating example", "graph": {"nodes": [], "edges": []}}
    (axes,) = draw_graph(neuron).axes
    assert "no activating example" in {text.get_text() for text in axes.texts}


def test_the_picture_for_a_page_is_an_element_and_always_the_same():
    neuron = _neuron([Pattern((1, 2), 0.9, 2)])
    assert svg(neuron).startswith("<svg")
    assert svg(neuron) == svg(neuron)


def test_tokens_are_shown_with_their_spaces():
    assert shown(" a\n") == "·a⏎"
    assert len(shown("x" * 40)) == LONGEST


HOSTILE = [
    "$a{$b",
    "\\$x$",
    "\x1b[31m",
    "\x00",
    "\ud800",
    "\uffff",
    "_x",
    "\u202eevil",
    "\x9b" * 40,
]


@pytest.mark.parametrize("token", HOSTILE, ids=ascii)
def test_any_token_unit_or_reason_is_drawn_and_written(token, tmp_path):
    graph = merged_trie([Pattern((0, 1), 0.9, 2)], [token, f" {token}"], 0.5)
    neuron = {"unit": token, "reason": token, "excerpts": 3, "graph": graph}
    drawn = [svg(neuron), svg({**neuron, "graph": {"nodes": [], "edges": []}})]
    for text in drawn:
        ElementTree.fromstring(text.encode())  # neither surrogates nor control characters
    (axes,) = draw_graph(neuron).axes
    assert all(len(text.get_text()) <= LONGEST + 2 for text in axes.texts)
    read = nx.read_graphml(write_graphml(tmp_path / "a.graphml", neuron))
    assert escape.printable(token) in {node["token"] for _, node in read.nodes(data=True)}
