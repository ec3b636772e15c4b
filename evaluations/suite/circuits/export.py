"""A circuit as a graph of other programs: networkx, GraphML."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import networkx as nx

from evaluations.suite.circuits.shape import GraphShape
from sat_interp._util.files import write_atomically


def to_networkx(circuit: dict[str, Any]) -> Any:
    """A circuit (``graph.circuit_to_dict``) as a ``networkx.MultiDiGraph``.

    Nodes are the embedding, heads, MLPs and the output, with ``kind`` and ``layer``; those without
    an edge are left out. An edge has ``part``, what of its destination it feeds (q, k, v, mlp or
    resid_final), and ``score`` where the circuit has scores.
    """
    shape = {key: value for key, value in circuit["graph"].items() if key != "n_edges"}
    known = GraphShape(**shape)
    layers = {source.name: (source.layer, source.head) for source in known.sources}
    found = nx.MultiDiGraph(**circuit["graph"])
    for edge in circuit["edges"]:
        node, part = split_destination(edge["destination"])
        for name in (edge["source"], node):
            layer, head = layers.get(name, (known.n_layers, None))
            kind = "head" if head is not None else name if name[0] != "m" else "mlp"
            found.add_node(name, kind=kind, layer=layer)
        score = {} if edge.get("score") is None else {"score": edge["score"]}
        found.add_edge(edge["source"], node, part=part, **score)
    return found


def write_graphml(path: str | Path, circuit: dict[str, Any]) -> Path:
    """Write a circuit as GraphML, which Gephi, Cytoscape, yEd and igraph read."""
    content = io.BytesIO()
    nx.write_graphml(to_networkx(circuit), content)
    return write_atomically(path, content.getvalue())


def split_destination(name: str) -> tuple[str, str]:
    """``a2.h0.q`` as node and part, (``a2.h0``, ``q``); an MLP's part is mlp."""
    if name[0] == "a":
        node, _, part = name.rpartition(".")
        return node, part
    return name, "mlp" if name[0] == "m" else name
