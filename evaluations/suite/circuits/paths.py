"""Which edges of a circuit lie on a path from the embedding to the output."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from evaluations.suite.circuits.graph import Graph


def on_paths(graph: Graph, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    """Return the kept edges that lie on a path of kept edges from the embedding to the output.

    An edge off every path is not part of a circuit. With resampled edges it has no effect: what
    its source writes is what the replacement writes, or nothing of it reaches the output.
    """
    edges = kept.nonzero().flatten().tolist()
    tails, heads = ends(graph)
    reached = {0}  # the embedding
    for edge in edges:  # by destination, as computed
        if tails[edge] in reached:
            reached.add(heads[edge])
    leading = {graph.n_sources}  # the output
    for edge in reversed(edges):
        if heads[edge] in leading:
            leading.add(tails[edge])
    found = torch.zeros_like(kept)
    found[[edge for edge in edges if tails[edge] in reached and heads[edge] in leading]] = True
    return found


def ends(graph: Graph) -> tuple[list[int], list[int]]:
    """Return, for every edge, the node it leaves and the node it enters; the output is the last."""
    written = [graph.written_by(index) for index in range(graph.n_destinations)]
    nodes = [graph.n_sources if node is None else node for node in written]
    return graph.edge_source.tolist(), [nodes[d] for d in graph.edge_destination.tolist()]
