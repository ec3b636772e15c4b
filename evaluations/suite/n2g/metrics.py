"""The rows of Table 2, of one unit's pattern graph and of the words it fires on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import networkx as nx

STRUCTURE = (
    "density", "density_undirected", "transitivity", "edges_to_activation", "out_degree",
)  # fmt: skip
WORDS = ("entropy", "diversity")


def structure(graph: nx.DiGraph) -> dict[str, float]:
    """What is measured of a pattern graph with N nodes and E edges.

    - ``density``: E / (N (N - 1)), the share of all directed edges there could be;
    - ``density_undirected``: 2 E' / (N (N - 1)), E' edges being left when directions are dropped;
    - ``transitivity``: of the undirected graph, the share of paths of two edges that are closed
      to a triangle;
    - ``edges_to_activation``: edges that end at an activating node;
    - ``out_degree``: mean over nodes, E / N.

    All are 0 for a graph without edges, which is what the paper's convention counts them as.
    """
    undirected = nx.Graph(graph)
    edges = graph.number_of_edges()
    ending = sum(bool(graph.nodes[target]["activating"]) for _, target in graph.edges)
    return {
        "density": float(nx.density(graph)),
        "density_undirected": float(nx.density(undirected)),
        "transitivity": float(nx.transitivity(undirected)),
        "edges_to_activation": float(ending),
        "out_degree": edges / len(graph) if len(graph) else 0.0,
    }


def words(classes: Mapping[str, int]) -> dict[str, float]:
    """Entropy in bits of the word classes a unit fires on, and how many of them there are.

    Args:
        classes: how often each occurs among activating tokens and their accepted substitutions.
    """
    total = sum(classes.values())
    shares = [count / total for count in classes.values() if count]
    # + 0.0: no -0.0 for a single class
    entropy = -sum(share * math.log2(share) for share in shares) + 0.0
    return {"entropy": entropy, "diversity": float(len(shares))}
