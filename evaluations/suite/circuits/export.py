"""Export of circuits to networkx and GraphML."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import networkx as nx

from evaluations.suite.circuits.shape import GraphShape
from sat_interp._util.files import write_atomically


def to_networkx(circuit: dict[str, Any]) -> Any:
    """Convert a circuit (``graph.circuit_to_dict``) to a ``networkx.MultiDiGraph``.

    Nodes are the embedding, heads, MLPs and the output, with attributes ``kind`` and ``layer``;
    nodes without edges are omitted. An edge has ``part``, the input of its destination (q, k, v,
    mlp or resid_final), and ``score`` if the circuit has scores. An edge into a group of heads is
    one into each of them.
    """
    shape = GraphShape.of_circuit(circuit)
    layers = {source.name: (source.layer, source.head) for source in shape.sources}
    graph = nx.MultiDiGraph(**circuit["graph"])
    for edge in by_head(circuit)["edges"]:
        node, part = split_destination(edge["destination"])
        for name in (edge["source"], node):
            layer, head = layers.get(name, (shape.n_layers, None))
            kind = "head" if head is not None else name if name[0] != "m" else "mlp"
            graph.add_node(name, kind=kind, layer=layer)
        score = {} if edge.get("score") is None else {"score": edge["score"]}
        graph.add_edge(edge["source"], node, part=part, **score)
    return graph


def by_head(circuit: dict[str, Any]) -> dict[str, Any]:
    """Return a circuit in which an edge into a group of heads is one into each of its heads."""
    shape = GraphShape.of_circuit(circuit)
    if shape.groups is None:
        return circuit
    edges = []
    for edge in circuit["edges"]:
        node, part = split_destination(edge["destination"])
        layer, _, group = node.partition(".g")
        heads = [f"{layer}.h{head}" for head in shape.heads_of(int(group))] if group else []
        names = [f"{head}.{part}" for head in heads] or [edge["destination"]]
        edges += [{**edge, "destination": name} for name in names]
    return {**circuit, "edges": edges}


def write_graphml(path: str | Path, circuit: dict[str, Any]) -> Path:
    """Write a circuit as GraphML, which Gephi, Cytoscape, yEd and igraph read."""
    content = io.BytesIO()
    nx.write_graphml(to_networkx(circuit), content)
    return write_atomically(path, content.getvalue())


def split_destination(name: str) -> tuple[str, str]:
    """Split ``a2.h0.q`` into node and part, (``a2.h0``, ``q``); the part of an MLP is mlp."""
    if name[0] == "a":
        node, _, part = name.rpartition(".")
        return node, part
    return name, "mlp" if name[0] == "m" else name
