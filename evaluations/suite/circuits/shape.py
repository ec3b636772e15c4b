"""Sources, destinations and edges of a graph, by number and by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from sat_interp._util.errors import UserError

Part = Literal["q", "k", "v", "mlp", "resid_final"]

PARTS: tuple[Part, ...] = ("q", "k", "v")


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
    """An input that reads the residual stream; the final residual has layer n_layers.

    Keys and values of several heads together have a group in place of a head.
    """

    layer: int
    part: Part
    head: int | None = None
    group: int | None = None

    @property
    def name(self) -> str:
        """``a2.h0.q``, ``a2.g1.k``, ``m2`` or ``resid_final``."""
        if self.part in ("mlp", "resid_final"):
            return "resid_final" if self.part == "resid_final" else f"m{self.layer}"
        unit = f"h{self.head}" if self.group is None else f"g{self.group}"
        return f"a{self.layer}.{unit}.{self.part}"


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
        groups: number of groups of heads whose keys, and whose values, are one destination; None
            for destinations of every head.
    """

    n_layers: int
    n_heads: int
    mlps: bool = True
    parallel: bool = False
    groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the shape for JSON; without groups as it was written before there were any."""
        return {name: value for name, value in asdict(self).items() if value is not None}

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
            for group in range(self.n_groups):
                heads = self.heads_of(group)
                nodes += [Destination(layer, "q", head) for head in heads]
                for part in PARTS[1:]:
                    shared = self.groups is not None
                    nodes.append(
                        Destination(layer, part, None, group)
                        if shared
                        else Destination(layer, part, heads[0])
                    )
            nodes += [Destination(layer, "mlp")] * self.mlps
        return (*nodes, Destination(self.n_layers, "resid_final"))

    @property
    def n_sources(self) -> int:
        """Number of sources."""
        return 1 + self.n_layers * self._per_layer

    @property
    def n_destinations(self) -> int:
        """Number of destinations."""
        return 1 + self.n_layers * (self.n_reads + self.mlps)

    @property
    def n_groups(self) -> int:
        """Number of destinations of keys in each block, and of values."""
        return self.n_heads if self.groups is None else self.groups

    @property
    def n_reads(self) -> int:
        """Number of destinations of the attention of each block."""
        return self.n_heads + 2 * self.n_groups

    def heads_of(self, group: int) -> range:
        """Return the heads that share the keys and values of a group."""
        size = self.n_heads // self.n_groups
        return range(group * size, (group + 1) * size)

    def reads(self, part: Part) -> list[int]:
        """Return the places of queries, keys or values among a block's attention destinations."""
        return [self._place(part, head) for head in self._heads_reading(part)]

    def _heads_reading(self, part: Part) -> range:
        return range(0, self.n_heads, 1 if part == "q" else self.n_heads // self.n_groups)

    def _place(self, part: Part, head: int) -> int:
        size = self.n_heads // self.n_groups
        group, member = divmod(head, size)
        return group * (size + 2) + (member if part == "q" else size + PARTS.index(part) - 1)

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
        """Return the index of a destination; of a head's keys and values that of its group."""
        first = layer * (self.n_reads + self.mlps)
        if part == "resid_final":
            return self.n_destinations - 1
        return first + (self.n_reads if part == "mlp" else self._place(part, head))

    def feeds(self, destination: int) -> tuple[int, ...]:
        """Return the sources that a destination feeds: its heads or MLP; none for the output."""
        node = self.destinations[destination]
        if node.part == "resid_final":
            return ()
        if node.part == "mlp":
            return (self.mlp(node.layer),)
        heads = (node.head or 0,) if node.group is None else self.heads_of(node.group)
        return tuple(self.head(node.layer, head) for head in heads)

    @cached_property
    def fed_by(self) -> tuple[tuple[int, ...], ...]:
        """The destinations that feed every source; none feeds the embedding."""
        found: list[list[int]] = [[] for _ in self.sources]
        for destination in range(self.n_destinations):
            for source in self.feeds(destination):
                found[source].append(destination)
        return tuple(map(tuple, found))

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
        groups = "" if self.groups is None else f" in {self.groups} groups"
        return f"a graph of {self.n_layers} layers of {self.n_heads} heads{groups} ({blocks})"
