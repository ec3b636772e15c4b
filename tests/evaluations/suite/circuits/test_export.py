"""A circuit as others read it."""

from __future__ import annotations

import networkx as nx
import torch

from evaluations.suite.circuits.export import to_networkx, write_graphml
from evaluations.suite.circuits.graph import Graph, circuit_to_dict


def test_graphml_read_back_is_the_circuit(tmp_path):
    graph = Graph(2, 2)
    scores = torch.randn(graph.n_edges, dtype=torch.float64)
    circuit = circuit_to_dict(graph, scores > 0.5, scores)
    back = nx.read_graphml(write_graphml(tmp_path / "c.graphml", circuit), force_multigraph=True)
    told = {
        (source, target if part in ("mlp", "resid_final") else f"{target}.{part}"): score
        for source, target, (part, score) in (
            (a, b, (data["part"], data["score"])) for a, b, data in back.edges(data=True)
        )
    }
    assert told == {(e["source"], e["destination"]): e["score"] for e in circuit["edges"]}
    assert nx.is_directed_acyclic_graph(back)


def test_an_edge_into_a_group_is_one_into_each_head():
    graph = Graph(1, 4, groups=2)
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[[graph.edge_named("embed", "a0.g1.k"), graph.edge_named("embed", "a0.h0.q")]] = True
    found = to_networkx(circuit_to_dict(graph, kept))
    ends = {(target, data["part"]) for _, target, data in found.edges(data=True)}
    assert ends == {("a0.h2", "k"), ("a0.h3", "k"), ("a0.h0", "q")}


def test_nodes_say_what_they_are():
    graph = Graph(1, 2)
    found = to_networkx(circuit_to_dict(graph, torch.ones(graph.n_edges, dtype=torch.bool)))
    assert dict(found.nodes(data=True)) == {
        "embed": {"kind": "embed", "layer": -1},
        "a0.h0": {"kind": "head", "layer": 0},
        "a0.h1": {"kind": "head", "layer": 0},
        "m0": {"kind": "mlp", "layer": 0},
        "resid_final": {"kind": "resid_final", "layer": 1},
    }
    assert found.number_of_edges() == graph.n_edges
