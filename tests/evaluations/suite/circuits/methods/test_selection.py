"""Selections of edges by consistency of signs and by ratio of positive edges."""

from __future__ import annotations

import pytest
import torch

from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.eap import first, ranking
from evaluations.suite.circuits.methods.selection import (
    consistency,
    consistent_ranking,
    live_circuit,
    positive_ranking,
)
from tests.evaluations.suite.circuits.tiny import tiny_model


def _graph() -> Graph:
    return Graph.of(tiny_model(n_layers=1, n_heads=1, attn_only=True))


@pytest.mark.parametrize("seed", range(4))
def test_a_live_circuit_has_the_size_asked_for_of_the_best_ranked(seed: int) -> None:
    graph = Graph.of(tiny_model(n_heads=2))
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(seed))
    order = ranking(graph, scores, "top", True)
    for n in (0, 3, 8, 15, 30, graph.n_edges):
        kept = live_circuit(graph, order, n)
        assert torch.equal(on_paths(graph, kept), kept)
        assert int(kept.sum()) == n
    for length in range(graph.n_edges + 1):  # where a beginning is right, it is that one
        plain = on_paths(graph, first(order, length))
        assert torch.equal(live_circuit(graph, order, int(plain.sum())), plain)


def test_where_no_circuit_of_a_size_can_be_had_it_is_the_next_larger() -> None:
    """Worked by hand: the value's edge comes first, and it takes the head's edge to be live."""
    graph = _graph()
    names = [graph.edge_name(edge) for edge in range(5)]
    value, out = names.index(("embed", "a0.h0.v")), names.index(("a0.h0", "resid_final"))
    order = torch.tensor([value, out, *({*range(5)} - {value, out})])
    assert live_circuit(graph, order, 1).nonzero().flatten().tolist() == sorted([value, out])
    assert int(live_circuit(graph, order, 9).sum()) == 5


def test_consistency_is_the_share_of_samples_with_the_same_sign() -> None:
    """One prompt of four carries edge 1: it is in a sample with probability 1 - (3/4)^4 = .684."""
    scores = torch.tensor(
        [[1.0, 5.0, 0.0, -2.0, 3.0], [2, 0, 0, -1, -3], [1, 0, 0, -3, 3], [3, 0, 0, -2, -2.9]],
        dtype=torch.float64,
    )
    share = consistency(scores, resamples=4000)
    assert share[0] == 1
    assert abs(share[1] - (1 - 0.75**4)) < 0.03
    assert share[2] == 0
    assert share[3] == 1
    assert 0.4 < share[4] < 0.7
    assert torch.equal(share, consistency(scores, resamples=4000))


def test_consistent_edges_come_first_each_group_by_size() -> None:
    graph = _graph()
    assert graph.n_edges == 5
    scores = torch.tensor(
        [[1.0, 50.0, 0.0, -2.0, 30.0], [2, 0, 0, -1, -30], [1, 0, 0, -3, 30], [3, 0, 0, -2, -29]],
        dtype=torch.float64,
    )
    assert consistent_ranking(graph, scores).tolist() == [3, 0, 1, 4, 2]
    assert consistent_ranking(graph, scores, signed=True).tolist() == [0, 3, 1, 4, 2]


def test_a_share_of_the_edges_is_taken_by_signed_score() -> None:
    graph = _graph()
    scores = torch.tensor([1.0, -9.0, 2.0, -4.0, 3.0])
    assert (
        positive_ranking(graph, scores, 1.0).tolist()
        == ranking(graph, scores, "top", True).tolist()
    )
    assert positive_ranking(graph, scores, 0.0).tolist() == ranking(graph, scores, "top").tolist()
    # in turn: the best by sign (4), the largest left (1), by sign (2), the largest left (3), 0
    assert positive_ranking(graph, scores, 0.5).tolist() == [4, 1, 2, 3, 0]
    for ratio in (0.25, 0.5, 0.75):
        order = positive_ranking(graph, scores, ratio).tolist()
        assert sorted(order) == list(range(5))
