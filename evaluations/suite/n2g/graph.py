"""A unit's graphs: the pattern graph that Table 2 measures, and the merged trie that is drawn.

They are not the trie that predicts: that is a tree, and its transitivity is 0 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx

from evaluations.suite.n2g.trie import IGNORE, Pattern


def pattern_graph(found: Sequence[Pattern], texts: Sequence[str], activation: float) -> nx.DiGraph:
    """The directed graph of a unit's patterns that fire.

    Nodes are distinct token strings, with ``activating`` and the highest ``activation`` of the
    patterns they fire in. Each distinct pattern gives an edge between consecutive tokens, ignored
    places left out, and from the last of them to the activating token; an edge's ``count`` is the
    number of patterns. Edges from a string to itself are dropped: ``graph["self_loops"]``.

    Args:
        activation: normalised; patterns that are not higher are no part of the graph.
    """
    graph = nx.DiGraph(self_loops=0)
    for pattern in found:
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
    found: Sequence[Pattern], texts: Sequence[str], activation: float
) -> dict[str, list[dict[str, Any]]]:
    """The patterns that fire as nodes and edges to draw: equal tokens at equal depth are one node.

    A node's depth is its distance before the activating token, its ``kind`` ``activating``,
    ``context`` or ``ignore``; only activating nodes have an activation, the highest of their
    patterns. Edges run towards the activating token; ``count`` is in how many examples.
    """
    nodes: dict[tuple[int, int], dict[str, Any]] = {}
    edges: dict[tuple[int, int], int] = {}
    for pattern in found:
        if pattern.activation <= activation:
            continue
        way = []
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
            way.append(node)
        way[0]["activation"] = max(way[0]["activation"] or 0.0, round(pattern.activation, 4))
        for target, source in zip(way, way[1:], strict=False):
            key = (source["id"], target["id"])
            edges[key] = edges.get(key, 0) + pattern.count
    told = [{"source": s, "target": t, "count": count} for (s, t), count in edges.items()]
    return {"nodes": list(nodes.values()), "edges": told}


def _kind(depth: int, token: int) -> str:
    if depth == 0:
        return "activating"
    return "ignore" if token == IGNORE else "context"
