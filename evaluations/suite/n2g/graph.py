"""Graphs of a unit: the pattern graph measured by Table 2 and the merged trie that is drawn.

Neither is the trie that predicts firing, which is a tree and has transitivity 0 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx

from evaluations.suite.n2g.trie import IGNORE, Pattern


def pattern_graph(
    patterns: Sequence[Pattern], texts: Sequence[str], activation: float
) -> nx.DiGraph:
    """Return the directed graph of a unit's firing patterns.

    Nodes are distinct token strings, with ``activating`` and the highest ``activation`` of their
    patterns. Each distinct pattern adds edges between its consecutive tokens, ignored places
    skipped, ending at the activating token; an edge's ``count`` is the number of patterns. Edges
    from a string to itself are dropped and counted in ``graph.graph["self_loops"]``.

    Args:
        activation: minimum normalised activation of a pattern, exclusive.
    """
    graph = nx.DiGraph(self_loops=0)
    for pattern in patterns:
        if pattern.activation <= activation:
            continue
        names = [texts[token] for token in reversed(pattern.named)]
        for name in names:
            if name not in graph:
                graph.add_node(name, activating=False, activation=0.0)
        last = graph.nodes[names[-1]]
        last["activating"] = True
        last["activation"] = max(last["activation"], round(pattern.activation, 4))
        for source, target in zip(names, names[1:], strict=False):
            if source == target:
                graph.graph["self_loops"] += 1
            elif graph.has_edge(source, target):
                graph[source][target]["count"] += 1
            else:
                graph.add_edge(source, target, count=1)
    return graph


def merged_trie(
    patterns: Sequence[Pattern], texts: Sequence[str], activation: float
) -> dict[str, list[dict[str, Any]]]:
    """Return the firing patterns as nodes and edges; equal tokens at equal depth are one node.

    A node's depth is its distance to the activating token, its ``kind`` is ``activating``,
    ``context`` or ``ignore``. Activating nodes have the highest activation of their patterns. Edges
    point towards the activating token; ``count`` is the number of examples.
    """
    nodes: dict[tuple[int, int], dict[str, Any]] = {}
    edges: dict[tuple[int, int], int] = {}
    for pattern in patterns:
        if pattern.activation <= activation:
            continue
        branch = []
        for depth, token in enumerate(pattern.path):
            node = nodes.setdefault(
                (depth, token),
                {
                    "id": len(nodes),
                    "token": "*" if token == IGNORE else texts[token],
                    "depth": depth,
                    "kind": _kind(depth, token),
                    "activation": None,
                },
            )
            branch.append(node)
        branch[0]["activation"] = max(branch[0]["activation"] or 0.0, round(pattern.activation, 4))
        for target, source in zip(branch, branch[1:], strict=False):
            key = (source["id"], target["id"])
            edges[key] = edges.get(key, 0) + pattern.count
    links = [{"source": s, "target": t, "count": count} for (s, t), count in edges.items()]
    return {"nodes": list(nodes.values()), "edges": links}


def _kind(depth: int, token: int) -> str:
    if depth == 0:
        return "activating"
    return "ignore" if token == IGNORE else "context"
