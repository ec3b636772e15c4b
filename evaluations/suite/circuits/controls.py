"""What a circuit's size and faithfulness have to be compared with.

- Random circuits, connected and layer-matched: edges drawn freely almost never connect embedding
  and output, and would be the empty circuit under another name.
- Resampling: how many edges, and which, with other prompts (bootstrap) or another visiting order.

The null task is ``evaluations.tasks.null``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.find import Find, Found
from evaluations.suite.circuits.patched import Ablation, Constants
from evaluations.suite.circuits.paths import ends, on_paths
from sat_interp._util import progress

MOVES, LEAST = 30, 600
"""Moves of the chain from one random circuit to the next: per edge, and at least."""
MOST_AT_ONCE = 3
"""Edges exchanged in one move, at most."""


def random_circuits(
    graph: Graph, kept: Bool[Tensor, "edge"], n: int, seed: int
) -> list[Bool[Tensor, "edge"]]:
    """Random circuits like this one: as many edges into each layer, every edge on a path.

    Of a circuit whose edges do not all lie on paths from embedding to output, the part that does is
    matched. A Markov chain draws them: it starts from the circuit with its heads renamed at random
    within each layer, and exchanges one to three edges for as many others of their layers, where
    all edges then still lie on paths. Moves are symmetric, so that the chain is uniform over the
    circuits it reaches, in the limit.

    Returns:
        None at all where no edge lies on a path: there is nothing to match.
    """
    live = on_paths(graph, kept).nonzero().flatten().tolist()
    if not live:
        return []
    draws = random.Random(f"circuits/{seed}")
    chain = _Chain(graph, draws)
    circuits = []
    for _ in range(n):
        chain.start(_renamed(graph, live, draws))
        for _ in range(max(LEAST, MOVES * len(live))):
            chain.move()
        mask = torch.zeros_like(kept)
        mask[chain.edges] = True
        circuits.append(mask)
    return circuits


def _renamed(graph: Graph, edges: list[int], draws: random.Random) -> list[int]:
    """The edges with the heads of every layer permuted: as connected as before."""
    names = [draws.sample(range(graph.n_heads), graph.n_heads) for _ in range(graph.n_layers)]
    renamed = []
    for edge in edges:
        source = graph.sources[int(graph.edge_source[edge])]
        node = graph.destinations[int(graph.edge_destination[edge])]
        at, to = int(graph.edge_source[edge]), int(graph.edge_destination[edge])
        if source.head is not None:
            at = graph.head(source.layer, names[source.layer][source.head])
        if node.head is not None:
            to = graph.destination(node.layer, node.part, names[node.layer][node.head])
        renamed.append(graph.edge(at, to))
    return renamed


class _Chain:
    """A connected circuit that changes by exchanges of edges within layers.

    The graph has no cycles, so every edge lies on a path from embedding to output exactly if every
    node that some edge leaves is entered by one (but the embedding), and the other way round (but
    the output): counting edges at nodes is enough.
    """

    def __init__(self, graph: Graph, draws: random.Random) -> None:
        self.draws, self.n_nodes = draws, graph.n_sources + 1
        self.tails, self.heads = ends(graph)
        layers = [node.layer for node in graph.destinations]
        self.layer = [layers[d] for d in graph.edge_destination.tolist()]
        self.first: dict[int, int] = {}  # edges of a layer follow one another
        self.width: dict[int, int] = {}
        for edge, layer in enumerate(self.layer):
            self.first.setdefault(layer, edge)
            self.width[layer] = edge - self.first[layer] + 1

    def start(self, edges: list[int]) -> None:
        """Begin with these edges, all of them on paths."""
        self.edges = list(edges)
        self.present: set[int] = set()
        self.entered, self.left = [0] * self.n_nodes, [0] * self.n_nodes
        self.entered[0] = self.left[-1] = 1  # the embedding and the output need nothing more
        self._exchange([], edges)

    def move(self) -> None:
        """Exchange a few edges at random, unless that would cut a path."""
        size = self.draws.randint(1, min(MOST_AT_ONCE, len(self.edges)))
        places = self.draws.sample(range(len(self.edges)), size)
        old = [self.edges[place] for place in places]
        layers = [self.layer[edge] for edge in old]
        new = [self.first[at] + self.draws.randrange(self.width[at]) for at in layers]
        if len({*new}) < size or any(edge in self.present for edge in new):
            return
        self._exchange(old, new)
        nodes = {end for edge in (*old, *new) for end in (self.tails[edge], self.heads[edge])}
        if all((self.entered[node] > 0) == (self.left[node] > 0) for node in nodes):
            for place, edge in zip(places, new, strict=True):
                self.edges[place] = edge
        else:
            self._exchange(new, old)

    def _exchange(self, old: list[int], new: list[int]) -> None:
        for edges, by in ((old, -1), (new, 1)):
            for edge in edges:
                self.left[self.tails[edge]] += by
                self.entered[self.heads[edge]] += by
        self.present.difference_update(old)
        self.present.update(new)


@dataclass(frozen=True)
class Spread:
    """The circuit found again and again under other circumstances.

    Attributes:
        edges: number of its edges each time (those on a path).
        jaccard: each time its overlap with the circuit in question; two empty ones have none.
        failed: how many times there was no circuit, by reason.
    """

    edges: list[int] = field(default_factory=list)
    jaccard: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)


def jaccard(a: Bool[Tensor, "edge"], b: Bool[Tensor, "edge"]) -> float | None:
    """Edges in both, as a share of edges in either; None where there is none in either."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def spread(circuit: Bool[Tensor, "edge"], again: Iterable[Found]) -> Spread:
    """Size of every circuit of ``again``, and its overlap with the one in question."""
    result = Spread()
    for found in again:
        result.edges.append(found.n)
        overlap = jaccard(circuit, found.kept)
        if overlap is not None:
            result.jaccard.append(overlap)
        else:
            result.failed["both circuits are empty"] = result.failed.get(
                "both circuits are empty", 0
            ) + 1  # fmt: skip
    return result


def bootstrap_spread(
    case: Case,
    circuit: Bool[Tensor, "edge"],
    find: Find,
    n: int,
    seed: int,
    ablation: Ablation | Constants = "resample",
) -> Spread:
    """The circuit over ``n`` bootstrap samples of the prompts (Efron 1979)."""
    return spread(
        circuit,
        (
            find(Case.of(case.model, case.prompts.bootstrap(seed + index), ablation))
            for index in progress.bar(range(n), desc="bootstrap", unit="circuit")
        ),
    )


def order_spread(
    circuit: Bool[Tensor, "edge"],
    find: Callable[[Tensor], Found],
    graph: Graph,
    n: int,
    seed: int,
) -> Spread:
    """The circuit over ``n`` random visiting orders (``Graph.order``)."""
    return spread(
        circuit,
        (
            find(graph.order(seed + index))
            for index in progress.bar(range(n), desc="orders", unit="circuit")
        ),
    )
