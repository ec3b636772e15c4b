"""Plans of the activations to recompute when the input of one destination changes.

ACDC visits destinations from output to input, so all edges downstream of the current destination
are decided. Only nodes that it reaches by kept edges change. Of these, only nodes that reach the
output are needed, and many of them only at the last position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.shape import PARTS


@dataclass(frozen=True)
class Read:
    """A destination whose input changes, and the changed sources that it reads.

    Attributes:
        destination: its number.
        part: 0, 1, 2 for queries, keys, values.
        heads: the heads that it feeds and that reach the output.
        sources: changed sources that it reads.
    """

    destination: int
    part: int
    heads: list[int]
    sources: list[int]


@dataclass
class LayerPlan:
    """The changes in one block.

    Attributes:
        layer: number of the block.
        wide: heads whose output changes and is needed at all positions.
        narrow: heads whose output changes and is needed at the last position only.
        reads: changed queries, keys and values needed at all positions.
        narrow_reads: changed queries of the narrow heads, needed at the last position.
        mlp: the MLP's input, if it changes.
        mlp_wide: whether the MLP's output is needed at all positions.
    """

    layer: int
    wide: list[int] = field(default_factory=list)
    narrow: list[int] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    narrow_reads: list[Read] = field(default_factory=list)
    mlp: Read | None = None
    mlp_wide: bool = False


@dataclass(frozen=True)
class Plan:
    """The changes downstream of a destination, in order of computation.

    Attributes:
        destination: the destination.
        wide: whether its own input is needed at all positions.
        layers: the blocks with changes.
        final: changed sources that the final residual reads.
        n_changed: number of sources that change.
    """

    destination: int
    wide: bool
    layers: list[LayerPlan]
    final: list[int]
    n_changed: int


class PartialCircuit:
    """The decided part of a circuit, which grows from the output."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kept: NDArray[np.bool_] = np.zeros((graph.n_destinations, graph.n_sources), bool)
        self.is_live: NDArray[np.bool_] = np.zeros(graph.n_sources, bool)
        self.is_wide: NDArray[np.bool_] = np.zeros(graph.n_sources, bool)

    def matters(self, destination: int) -> bool:
        """Return whether a destination reaches the output by kept edges."""
        nodes = self.graph.feeds(destination)
        return not nodes or bool(self.is_live[list(nodes)].any())

    def wants_all_positions(self, destination: int) -> bool:
        """Return whether a destination's input is needed at all positions."""
        nodes = self.graph.feeds(destination)
        if not nodes:
            return False
        part = self.graph.destinations[destination].part
        return part in "kv" or bool(self.is_wide[list(nodes)].any())

    def decide(self, destination: int, kept: list[int]) -> None:
        """Set the sources that a destination keeps."""
        self.kept[destination, kept] = True
        if self.matters(destination):
            self.is_live[kept] = True
            self.is_wide[kept] |= self.wants_all_positions(destination)

    def plan(self, destination: int) -> Plan:
        """Return the changes caused by the input of a destination that reaches the output."""
        graph, node = self.graph, self.graph.destinations[destination]
        changed = np.zeros(graph.n_sources, bool)
        layers = []
        for layer in range(node.layer, graph.n_layers):
            block = LayerPlan(layer)
            self._plan_heads(block, changed, destination)
            self._plan_mlp(block, changed, destination)
            if block.wide or block.narrow or block.mlp:
                layers.append(block)
        final = (
            [] if node.part == "resid_final" else self._sources(graph.n_destinations - 1, changed)
        )
        return Plan(
            destination, self.wants_all_positions(destination), layers, final, int(changed.sum())
        )

    def _sources(self, destination: int, changed: NDArray[np.bool_]) -> list[int]:
        """Return the changed sources that a destination reads."""
        sources: list[int] = np.flatnonzero(self.kept[destination] & changed).tolist()
        return sources

    def _plan_heads(self, plan: LayerPlan, changed: NDArray[np.bool_], destination: int) -> None:
        graph = self.graph
        first = graph.destination(plan.layer, "q")
        touched = np.any(self.kept[first : first + graph.n_reads] & changed, axis=1)
        if first <= destination < first + len(touched):
            touched[destination - first] = True
        for offset in np.flatnonzero(touched).tolist():
            index = first + offset
            fed = [source for source in graph.feeds(index) if self.is_live[source]]
            if not fed:
                continue
            heads = [source - graph.before(plan.layer) for source in fed]
            for head, source in zip(heads, fed, strict=True):
                affected = plan.wide if self.is_wide[source] else plan.narrow
                if head not in affected:
                    affected.append(head)
                    changed[source] = True  # for later layers only
            part = PARTS.index(graph.destinations[index].part)
            is_narrow = part == 0 and not self.is_wide[fed[0]]
            reads = plan.narrow_reads if is_narrow else plan.reads
            reads.append(Read(index, part, heads, self._sources(index, changed)))

    def _plan_mlp(self, plan: LayerPlan, changed: NDArray[np.bool_], destination: int) -> None:
        graph = self.graph
        if not graph.mlps or not self.is_live[source := graph.mlp(plan.layer)]:
            return
        index = graph.destination(plan.layer, "mlp")
        sources = self._sources(index, changed)
        if sources or index == destination:
            plan.mlp = Read(index, 0, [], sources)
            plan.mlp_wide = bool(self.is_wide[source])
            changed[source] = True
