"""Sources, destinations and edges of a graph, by number and by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from sat_interp._util.errors import UserError

Part = Literal["q", "k", "v", "mlp", "resid_final"]

_PARTS: tuple[Part, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Source:
    """A component that writes to the residual stream; the embedding has layer -1."""

    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """``embed``, ``a2.h0`` or ``m2``."""
        if self.layer < 0:
            return "embed"
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.h{self.head}"


@dataclass(frozen=True)
class Destination:
    """An input that reads the residual stream; the final residual has layer n_layers."""

    layer: int
    part: Part
    head: int | None = None

    @property
    def name(self) -> str:
        """``a2.h0.q``, ``m2`` or ``resid_final``."""
        if self.part == "resid_final":
            return "resid_final"
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.h{self.head}.{self.part}"


@dataclass(frozen=True)
class GraphShape:
    """The shape of a graph, which determines its sources, destinations and edges.

    Edges are numbered by destination, then by source, both in order of computation. A circuit is a
    mask over edges.

    Attributes:
        n_layers: number of blocks.
        n_heads: number of heads of each block.
        mlps: whether blocks have an MLP.
        parallel: whether attention and MLP of a block read the same input.
    """

    n_layers: int
    n_heads: int
    mlps: bool = True
    parallel: bool = False

    @classmethod
    def of_circuit(cls, circuit: dict[str, Any]) -> GraphShape:
        """Return the shape of a circuit's graph (``graph.circuit_to_dict``)."""
        fields = {key: value for key, value in circuit["graph"].items() if key != "n_edges"}
        return GraphShape(**fields)

    # Sources and destinations ----------------------------------------------------------------

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """All sources in order of computation."""
        sources = [Source(-1)]
        for layer in range(self.n_layers):
            sources += [Source(layer, head) for head in range(self.n_heads)]
            sources += [Source(layer)] * self.mlps
        return tuple(sources)

    @cached_property
    def destinations(self) -> tuple[Destination, ...]:
        """All destinations in order of computation."""
        nodes: list[Destination] = []
        for layer in range(self.n_layers):
            nodes += [Destination(layer, p, h) for h in range(self.n_heads) for p in _PARTS]
            nodes += [Destination(layer, "mlp")] * self.mlps
        return (*nodes, Destination(self.n_layers, "resid_final"))

    @property
    def n_sources(self) -> int:
        """Number of sources."""
        return 1 + self.n_layers * self._per_layer

    @property
    def n_destinations(self) -> int:
        """Number of destinations."""
        return 1 + self.n_layers * (3 * self.n_heads + self.mlps)

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return sum(self.n_read)

    @property
    def _per_layer(self) -> int:
        return self.n_heads + self.mlps

    def before(self, layer: int) -> int:
        """Return the number of sources before the heads of a layer."""
        return 1 + layer * self._per_layer

    def head(self, layer: int, head: int) -> int:
        """Return the source index of a head."""
        return self.before(layer) + head

    def mlp(self, layer: int) -> int:
        """Return the source index of an MLP."""
        return self.before(layer) + self.n_heads

    def destination(self, layer: int, part: Part, head: int = 0) -> int:
        """Return the index of a destination."""
        first = layer * (3 * self.n_heads + self.mlps)
        if part == "resid_final":
            return self.n_destinations - 1
        return first + 3 * self.n_heads if part == "mlp" else first + 3 * head + _PARTS.index(part)

    def written_by(self, destination: int) -> int | None:
        """Return the source that a destination feeds (its head or MLP); None for the output."""
        node = self.destinations[destination]
        if node.part == "resid_final":
            return None
        return self.mlp(node.layer) if node.head is None else self.head(node.layer, node.head)

    # Edges -----------------------------------------------------------------------------------

    @cached_property
    def n_read(self) -> tuple[int, ...]:
        """The number of sources before every destination."""
        return tuple(
            self.before(node.layer)
            + (self.n_heads if node.part == "mlp" and not self.parallel else 0)
            for node in self.destinations
        )

    @cached_property
    def first_edge(self) -> tuple[int, ...]:
        """The edge from source 0 to every destination; its other edges follow."""
        first = [0]
        for n in self.n_read:
            first.append(first[-1] + n)
        return tuple(first)

    def edge(self, source: int, destination: int) -> int:
        """Return the number of an edge.

        Raises:
            ValueError: the source does not come before the destination.
        """
        if not 0 <= source < self.n_read[destination]:
            raise ValueError(
                f"{self.sources[source].name} does not come before "
                f"{self.destinations[destination].name}"
            )
        return self.first_edge[destination] + source

    def edge_named(self, source: str, destination: str) -> int:
        """Return the number of the edge between two names.

        Raises:
            UserError: this graph has no such edge.
        """
        try:
            return self.edge(self._source_index[source], self._destination_index[destination])
        except (KeyError, ValueError):
            raise UserError(f"{self} has no edge {source} -> {destination}") from None

    @cached_property
    def _source_index(self) -> dict[str, int]:
        return {source.name: index for index, source in enumerate(self.sources)}

    @cached_property
    def _destination_index(self) -> dict[str, int]:
        return {node.name: index for index, node in enumerate(self.destinations)}

    def __str__(self) -> str:
        blocks = ("parallel " if self.parallel else "") + ("blocks" if self.mlps else "attention")
        return f"a graph of {self.n_layers} layers of {self.n_heads} heads ({blocks})"
