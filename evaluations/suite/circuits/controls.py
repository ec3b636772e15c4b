"""Controls for a circuit's size and faithfulness.

- Random circuits, connected and layer-matched: edges drawn without these constraints almost never
  connect embedding and output, so they are equivalent to the empty circuit.
- Resampling: number and identity of edges under other prompts (bootstrap) or visiting orders.

The null task is in ``evaluations.tasks.null``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.find import CircuitFinder, FoundCircuit
from evaluations.suite.circuits.shape import PARTS
from sat_interp._util import progress

MOVES, LEAST = 30, 600
"""Moves of the chain from one random circuit to the next: per edge, and the minimum."""
MOST_AT_ONCE = 3
"""Edges exchanged in one move, at most."""


def random_circuits(
    graph: Graph, kept: Bool[Tensor, "edge"], n: int, seed: int
) -> list[Bool[Tensor, "edge"]]:
    """Draw random circuits with as many edges into each layer, every edge on a path.

    Only the circuit's edges on paths from embedding to output are matched. The circuits are drawn
    by a Markov chain. It starts from the circuit with its heads permuted at random within each
    layer. A move exchanges one to three edges for as many others of the same layers, provided that
    all edges still lie on paths. Moves are symmetric, so the stationary distribution is uniform
    over the circuits it can reach.

    Returns:
        The circuits; an empty list if no edge lies on a path.
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
    """Return the edges with the heads of every layer permuted, which preserves connectivity.

    Where heads share keys and values, whole groups change places, and heads within a group.
    """
    names = [_permuted(graph, draws) for _ in range(graph.n_layers)]
    renamed = []
    for edge in edges:
        source = graph.sources[int(graph.edge_source[edge])]
        node = graph.destinations[int(graph.edge_destination[edge])]
        at, to = int(graph.edge_source[edge]), int(graph.edge_destination[edge])
        if source.head is not None:
            at = graph.head(source.layer, names[source.layer][source.head])
        if node.part in PARTS:
            head = graph.feeds(to)[0] - graph.before(node.layer)
            to = graph.destination(node.layer, node.part, names[node.layer][head])
        renamed.append(graph.edge(at, to))
    return renamed


def _permuted(graph: Graph, draws: random.Random) -> list[int]:
    """Return a head for every head."""
    groups = draws.sample(range(graph.n_groups), graph.n_groups)
    if graph.groups is None:
        return groups
    return [
        head
        for group in groups
        for head in draws.sample(graph.heads_of(group), k=len(graph.heads_of(group)))
    ]


class _Chain:
    """A connected circuit, changed by exchanging edges within layers.

    The graph is acyclic. So every edge lies on a path from embedding to output exactly if every
    source with an outgoing edge has an edge into one of its destinations (except the embedding),
    and every destination with an edge feeds a source with an outgoing edge (except the output). It
    is enough to count the edges at each of them.
    """

    def __init__(self, graph: Graph, draws: random.Random) -> None:
        self.draws, self.graph = draws, graph
        self.tails, self.heads = graph.edge_source.tolist(), graph.edge_destination.tolist()
        self.feeds = [graph.feeds(index) for index in range(graph.n_destinations)]
        layers = [node.layer for node in graph.destinations]
        self.layer = [layers[d] for d in graph.edge_destination.tolist()]
        self.first: dict[int, int] = {}  # edges of a layer follow one another
        self.width: dict[int, int] = {}
        for edge, layer in enumerate(self.layer):
            self.first.setdefault(layer, edge)
            self.width[layer] = edge - self.first[layer] + 1

    def start(self, edges: list[int]) -> None:
        """Set the current edges, all of which must lie on paths."""
        self.edges = list(edges)
        self.present: set[int] = set()
        self.entered, self.left = [0] * self.graph.n_destinations, [0] * self.graph.n_sources
        self._exchange([], edges)

    def move(self) -> None:
        """Exchange a few edges at random, unless an edge would then lie on no path."""
        size = self.draws.randint(1, min(MOST_AT_ONCE, len(self.edges)))
        places = self.draws.sample(range(len(self.edges)), size)
        old = [self.edges[place] for place in places]
        layers = [self.layer[edge] for edge in old]
        new = [self.first[at] + self.draws.randrange(self.width[at]) for at in layers]
        if len({*new}) < size or any(edge in self.present for edge in new):
            return
        self._exchange(old, new)
        if self._is_connected((*old, *new)):
            for place, edge in zip(places, new, strict=True):
                self.edges[place] = edge
        else:
            self._exchange(new, old)

    def _is_connected(self, changed: Sequence[int]) -> bool:
        """Return whether all edges still lie on paths, of which some have changed."""
        tails = {self.tails[edge] for edge in changed}
        heads = {self.heads[edge] for edge in changed}
        sources = tails.union(*(self.feeds[head] for head in heads)) - {0}  # the embedding
        ends = heads.union(*(self.graph.fed_by[tail] for tail in tails))
        ends.discard(self.graph.n_destinations - 1)  # the output
        return all(
            not self.left[source] or any(self.entered[end] for end in self.graph.fed_by[source])
            for source in sources
        ) and all(
            not self.entered[end] or any(self.left[source] for source in self.feeds[end])
            for end in ends
        )

    def _exchange(self, old: list[int], new: list[int]) -> None:
        for edges, by in ((old, -1), (new, 1)):
            for edge in edges:
                self.left[self.tails[edge]] += by
                self.entered[self.heads[edge]] += by
        self.present.difference_update(old)
        self.present.update(new)


@dataclass(frozen=True)
class Spread:
    """Circuits from repetitions of the search, compared with a reference circuit.

    Attributes:
        edges: number of edges of each circuit (those on a path).
        jaccard: overlap of each circuit with the reference; not defined if both are empty.
        failed: number of undefined overlaps, by reason.
    """

    edges: list[int] = field(default_factory=list)
    jaccard: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)


def jaccard(a: Bool[Tensor, "edge"], b: Bool[Tensor, "edge"]) -> float | None:
    """Return the Jaccard overlap, |a and b| / |a or b|; None if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def spread(reference: Bool[Tensor, "edge"], circuits: Iterable[FoundCircuit]) -> Spread:
    """Return the size of every circuit and its overlap with the reference circuit."""
    edges, overlaps = [], []
    for circuit in circuits:
        edges.append(circuit.n)
        overlaps.append(jaccard(reference, circuit.kept))
    known = [overlap for overlap in overlaps if overlap is not None]
    empty = len(overlaps) - len(known)
    return Spread(edges, known, {"both circuits are empty": empty} if empty else {})


def bootstrap_spread(
    case: Case,
    circuit: Bool[Tensor, "edge"],
    find: CircuitFinder,
    n: int,
    seed: int,
) -> Spread:
    """Repeat the search on ``n`` bootstrap samples of the prompts (Efron 1979)."""
    return spread(
        circuit,
        (
            find(case.of_prompts(case.prompts.bootstrap(seed + index)))
            for index in progress.bar(range(n), desc="bootstrap", unit="circuit")
        ),
    )


def order_spread(
    circuit: Bool[Tensor, "edge"],
    find: Callable[[Tensor], FoundCircuit],
    graph: Graph,
    n: int,
    seed: int,
) -> Spread:
    """Repeat the search with ``n`` random visiting orders (``Graph.order``)."""
    return spread(
        circuit,
        (
            find(graph.order(seed + index))
            for index in progress.bar(range(n), desc="orders", unit="circuit")
        ),
    )
