"""Pattern graphs worked by hand, and networkx' own figures."""

from __future__ import annotations

import math

import networkx as nx
import pytest

from evaluations.suite.n2g.graph import merged_trie, pattern_graph
from evaluations.suite.n2g.metrics import structure_metrics, word_metrics
from evaluations.suite.n2g.trie import IGNORE, Pattern
from tests.evaluations.suite.n2g.conftest import TEXTS, A, B, C, D, X, Y

FOUND = [
    Pattern((D, IGNORE, A), 1.0, 3),
    Pattern((D, X, A), 0.9, 1),
    Pattern((D, IGNORE, X, X), 0.8, 1),
    Pattern((B,), 0.7, 2),
    Pattern((C, Y), 0.5, 1),  # does not fire
]


def test_a_graph_by_hand():
    graph = pattern_graph(FOUND, TEXTS, 0.5)
    # a-d, a-x, x-d twice, x-x dropped; b alone; c and y nowhere
    assert set(graph.nodes) == {" a", " d", " x", " b"}
    assert set(graph.edges) == {(" a", " d"), (" a", " x"), (" x", " d")}
    assert graph[" x"][" d"]["count"] == 2
    assert graph.graph["self_loops"] == 1
    assert {name for name in graph if graph.nodes[name]["activating"]} == {" d", " b"}
    assert graph.nodes[" d"]["activation"] == 1.0
    assert structure_metrics(graph) == pytest.approx(
        {
            "density": 3 / 12,
            "density_undirected": 6 / 12,
            "transitivity": 1.0,
            "edges_to_activation": 2,
            "out_degree": 3 / 4,
        }
    )


def test_edges_both_ways_are_two_of_one_graph_and_one_of_the_other():
    graph = pattern_graph([Pattern((A, B), 1.0, 1), Pattern((B, A), 1.0, 1)], TEXTS, 0.5)
    found = structure_metrics(graph)
    assert (found["density"], found["density_undirected"]) == (1.0, 1.0)
    assert found["edges_to_activation"] == 2
    assert found["transitivity"] == 0.0


def test_networkx_agrees():
    graph = pattern_graph(FOUND, TEXTS, 0.5)
    found, undirected = structure_metrics(graph), graph.to_undirected()
    n = len(graph)
    assert found["density"] == graph.number_of_edges() / (n * (n - 1))
    assert found["density_undirected"] == nx.density(undirected)
    triangles = sum(nx.triangles(undirected).values()) / 3
    paths = sum(math.comb(degree, 2) for _, degree in undirected.degree)
    assert found["transitivity"] == 3 * triangles / paths
    degrees = [degree for _, degree in graph.out_degree]
    assert found["out_degree"] == pytest.approx(sum(degrees) / n)


@pytest.mark.parametrize("found", [[], [Pattern((B,), 0.7, 2)], [Pattern((B, B), 0.9, 1)]])
def test_graphs_without_edges_are_zero_everywhere(found):
    graph = pattern_graph(found, TEXTS, 0.5)
    assert set(structure_metrics(graph).values()) == {0.0}


def test_the_merged_trie_is_the_patterns_with_equal_tokens_at_equal_depth_made_one():
    found = merged_trie(FOUND, TEXTS, 0.5)
    told = {(node["depth"], node["token"]): node for node in found["nodes"]}
    assert set(told) == {
        (0, " d"),
        (1, "*"),
        (2, " a"),
        (1, " x"),
        (2, " x"),
        (3, " x"),
        (0, " b"),
    }
    assert told[0, " d"]["kind"] == "activating"
    assert told[0, " d"]["activation"] == 1.0
    assert told[1, "*"]["kind"] == "ignore"
    assert told[2, " a"]["kind"] == "context"
    assert told[2, " a"]["activation"] is None
    ids = {node["id"]: place for place, node in told.items()}
    edges = {(ids[e["source"]], ids[e["target"]]): e["count"] for e in found["edges"]}
    assert edges[(2, " a"), (1, "*")] == 3
    assert edges[(1, "*"), (0, " d")] == 4
    assert edges[(2, " a"), (1, " x")] == 1
    assert len(edges) == 6


def test_entropy_and_diversity():
    assert word_metrics({"noun": 2, "verb": 1, "adverb": 1}) == {"entropy": 1.5, "diversity": 3.0}
    assert word_metrics({"noun": 5}) == {"entropy": 0.0, "diversity": 1.0}
    assert word_metrics({}) == {"entropy": 0.0, "diversity": 0.0}
    assert math.copysign(1, word_metrics({"noun": 5})["entropy"]) == 1
