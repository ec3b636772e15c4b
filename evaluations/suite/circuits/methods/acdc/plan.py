"""What has to be computed again when the input of one destination changes.

ACDC visits destinations from the output towards the input, so the edges of everything downstream of
the one being visited are decided. Only nodes that it reaches over kept edges change, only those
that reach the output matter, and of many only the last position does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluations.suite.circuits.graph import Graph


@dataclass(frozen=True)
class Read:
    """A destination whose input changes, and the sources it gets that from."""

    destination: int
    part: int
    head: int
    sources: list[int]


@dataclass
class LayerPlan:
    """What changes in one block.

    Attributes:
        wide, narrow: heads whose output changes and is needed at all positions, or only at the
            last one.
        reads: changed queries, keys and values needed at all positions.
        narrow_reads: changed queries of the narrow heads, needed at the last position.
        mlp: the MLP's input, where it changes; ``mlp_wide`` if at all positions.
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
    """Everything downstream of a destination, in order.

    Attributes:
        wide: whether the destination's own input is needed at all positions.
        final: the sources from which the final residual gets a change.
        n_changed: how many sources change.
    """

    destination: int
    wide: bool
    layers: list[LayerPlan]
    final: list[int]
    n_changed: int


class Circuit:
    """The decided part of a circuit, growing from the output."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kept: NDArray[np.bool_] = np.zeros((graph.n_destinations, graph.n_sources), bool)
        self.is_live: NDArray[np.bool_] = np.zeros(graph.n_sources, bool)
        self.is_wide: NDArray[np.bool_] = np.zeros(graph.n_sources, bool)

    def matters(self, destination: int) -> bool:
        """Whether a destination reaches the output over kept edges."""
        node = self.graph.written_by(destination)
        return node is None or bool(self.is_live[node])

    def wants_all_positions(self, destination: int) -> bool:
        """Whether more than the last position of a destination's input reaches the output."""
        node = self.graph.written_by(destination)
        if node is None:
            return False
        return self.graph.destinations[destination].part in "kv" or bool(self.is_wide[node])

    def decide(self, destination: int, kept: list[int]) -> None:
        """Fix the sources that a destination keeps."""
        self.kept[destination, kept] = True
        if self.matters(destination):
            self.is_live[kept] = True
            self.is_wide[kept] |= self.wants_all_positions(destination)

    def plan(self, destination: int) -> Plan:
        """What changes with the input of a destination that matters and is not decided yet."""
        graph, node = self.graph, self.graph.destinations[destination]
        changed = np.zeros(graph.n_sources, bool)
        layers = []
        for layer in range(node.layer, graph.n_layers):
            found = LayerPlan(layer)
            self._plan_heads(found, changed, destination)
            self._plan_mlp(found, changed, destination)
            if found.wide or found.narrow or found.mlp:
                layers.append(found)
        final = (
            [] if node.part == "resid_final" else self._sources(graph.n_destinations - 1, changed)
        )
        return Plan(
            destination, self.wants_all_positions(destination), layers, final, int(changed.sum())
        )

    def _sources(self, destination: int, changed: NDArray[np.bool_]) -> list[int]:
        found: list[int] = np.flatnonzero(self.kept[destination] & changed).tolist()
        return found

    def _plan_heads(self, plan: LayerPlan, changed: NDArray[np.bool_], destination: int) -> None:
        graph = self.graph
        first = graph.destination(plan.layer, "q")
        touched = np.any(self.kept[first : first + 3 * graph.n_heads] & changed, axis=1)
        if first <= destination < first + len(touched):
            touched[destination - first] = True
        for offset in np.flatnonzero(touched).tolist():
            head, part = divmod(offset, 3)
            source = graph.head(plan.layer, head)
            if not self.is_live[source]:
                continue
            heads = plan.wide if self.is_wide[source] else plan.narrow
            if head not in heads:
                heads.append(head)
                changed[source] = True  # read by later layers only
            is_narrow = part == 0 and not self.is_wide[source]
            reads = plan.narrow_reads if is_narrow else plan.reads
            found = self._sources(first + offset, changed)
            reads.append(Read(first + offset, part, head, found))

    def _plan_mlp(self, plan: LayerPlan, changed: NDArray[np.bool_], destination: int) -> None:
        graph = self.graph
        if not graph.mlps or not self.is_live[source := graph.mlp(plan.layer)]:
            return
        index = graph.destination(plan.layer, "mlp")
        found = self._sources(index, changed)
        if found or index == destination:
            plan.mlp = Read(index, 0, 0, found)
            plan.mlp_wide = bool(self.is_wide[source])
            changed[source] = True
