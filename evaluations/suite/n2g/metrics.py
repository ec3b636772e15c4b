"""Metrics of one unit's pattern graph and of the words it fires on (rows of Table 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import networkx as nx

STRUCTURE = (
    "density",
    "density_undirected",
    "transitivity",
    "edges_to_activation",
    "out_degree",
)
WORDS = ("entropy", "diversity")
LOOKUPS = ("lookup", "lookup_windows", "lookup_published")
PREDICTORS = ("trie", *LOOKUPS, "always")
"""Predictors of where a unit fires: the graph's trie, token lookups, and a constant."""


def structure_metrics(graph: nx.DiGraph) -> dict[str, float]:
    """Return the metrics of a pattern graph with N nodes and E edges.

    - ``density``: E / (N (N - 1)), the share of possible directed edges;
    - ``density_undirected``: 2 E' / (N (N - 1)), with E' edges of the undirected graph;
    - ``transitivity``: of the undirected graph, the share of connected triples that are
      triangles;
    - ``edges_to_activation``: edges that end at an activating node;
    - ``out_degree``: mean over nodes, E / N.

    All are 0 for a graph without edges, as in the paper.
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


def word_metrics(classes: Mapping[str, int]) -> dict[str, float]:
    """Return the entropy in bits and the number of the word classes on which a unit fires.

    Args:
        classes: count of each class among activating tokens and their accepted substitutions.
    """
    total = sum(classes.values())
    shares = [count / total for count in classes.values() if count]
    # + 0.0 turns -0.0 into 0.0
    entropy = -sum(share * math.log2(share) for share in shares) + 0.0
    return {"entropy": entropy, "diversity": float(len(shares))}
