"""The edge-factorised graph of a transformer's residual stream.

A *source* writes to the residual stream: the embedding (token and position together), every head,
every MLP. A *destination* reads from it: the queries, keys and values of every head separately,
every MLP, and the final residual that the unembedding reads. An edge joins a source to a later
destination. Biases of the attention output belong to no source and are always added.

Sources and destinations are numbered in order of computation. So the sources that a destination
may read are always the first ``n``. A model of 8 layers of 16 heads has 23,981 edges.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.blocks import check_parts
from evaluations.suite.circuits.shape import GraphShape
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically

# Configurations that the patched forward pass supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("LN", "LNPre", "RMS", "RMSPre", None),
    "positional_embedding_type": ("standard", "rotary", "alibi"),
    "attention_dir": ("causal",),
    "use_attention_sinks": (False, None),
    "use_logn_attn": (False, None),
    "use_dynamic_ntk_rope": (False, None),
    "load_in_4bit": (False, None),
}
_TOGETHER = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures whose queries, and keys, of all heads are normalised together."""


class Graph(GraphShape):
    """The graph of a model: its shape, and its edges as tensors.

    Edge ``e`` runs from ``edge_source[e]`` to ``edge_destination[e]``.
    """

    @classmethod
    def of(cls, model: HookedTransformer, grouped: bool = False) -> Graph:
        """Return the graph of a model.

        Args:
            model: the model.
            grouped: whether the keys of heads that share them are one destination, and the values.

        Raises:
            UserError: the patched forward pass does not support the architecture, or its output is
                not a sum over heads and MLPs.
        """
        check_parts(model, "acdc")
        cfg = model.cfg
        _check(cfg)
        groups = cfg.n_key_value_heads if grouped else None
        if groups == cfg.n_heads:
            groups = None
        return cls(
            cfg.n_layers, cfg.n_heads, not cfg.attn_only, bool(cfg.parallel_attn_mlp), groups
        )

    @cached_property
    def edge_source(self) -> Int[Tensor, "edge"]:
        """The source of every edge."""
        return torch.cat([torch.arange(n) for n in self.n_read])

    @cached_property
    def edge_destination(self) -> Int[Tensor, "edge"]:
        """The destination of every edge."""
        return torch.arange(self.n_destinations).repeat_interleave(torch.tensor(self.n_read))

    def edge_name(self, edge: int) -> tuple[str, str]:
        """Return the names of an edge's source and destination: ``("a0.h3", "a2.h1.q")``."""
        source = self.sources[int(self.edge_source[edge])]
        return source.name, self.destinations[int(self.edge_destination[edge])].name

    def matrix(
        self, edges: Float[Tensor, "edge"] | Bool[Tensor, "edge"]
    ) -> Float[Tensor, "destination source"] | Bool[Tensor, "destination source"]:
        """Return values of edges as a matrix, zero (False) elsewhere; differentiable."""
        empty = edges.new_zeros(self.n_destinations, self.n_sources)
        where = (self.edge_destination.to(edges.device), self.edge_source.to(edges.device))
        return empty.index_put(where, edges)

    def order(self, seed: int | None = None) -> Int[Tensor, "edge"]:
        """Return all edges in the order in which ACDC visits them, from output to input.

        Without a seed: the final residual; then, layer by layer from the last, the MLP, then the
        heads from last to first, each V, K, Q; within a destination its sources, latest first. With
        a seed: the same order of layers, with the attention destinations of each layer shuffled,
        and the sources of every destination shuffled.
        """
        if seed is None:
            return torch.arange(self.n_edges).flip(0)
        generator = torch.Generator().manual_seed(seed)
        width = self.n_reads
        visited = torch.arange(self.n_destinations).flip(0).tolist()
        for layer in range(self.n_layers):
            first = self.destination(layer, "q")
            start = visited.index(first + width - 1)
            shuffled = torch.randperm(width, generator=generator) + first
            visited[start : start + width] = shuffled.tolist()
        parts = [
            self.first_edge[d] + torch.randperm(self.n_read[d], generator=generator)
            for d in visited
        ]
        return torch.cat(parts)


def _check(cfg: Any) -> None:
    """Refuse an architecture by name.

    Raises:
        UserError: it is not supported, or its heads do not add up.
    """
    for name, wanted in _SUPPORTED.items():
        value = getattr(cfg, name, None)
        if value not in wanted:
            known = " or ".join(entry for entry in wanted if isinstance(entry, str))
            raise UserError(
                f"circuits do not cover models with {name}={value!r}"
                + (f", only {known}" if known else "")
            )
    for name in ("attn_scores_soft_cap", "output_logits_soft_cap"):
        if math.isnan(getattr(cfg, name, None) or 0):
            raise UserError(f"circuits do not cover models with {name}=nan")
    if cfg.original_architecture in _TOGETHER:
        raise UserError(
            f"circuits do not cover {cfg.original_architecture}: the queries and keys of all heads "
            "are normalised together, so that no head has an input of its own"
        )
    if cfg.use_normalization_before_and_after:
        raise UserError(
            "circuits do not cover models that normalise the output of the attention "
            f"(use_normalization_before_and_after, {cfg.original_architecture}): it is not a sum "
            "over heads"
        )


def on_paths(graph: Graph, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    """Return the kept edges that lie on a path of kept edges from the embedding to the output.

    Other edges are not part of a circuit. With resampled edges they have no effect: their source
    writes what its replacement writes, or nothing of it reaches the output.
    """
    edges = kept.nonzero().flatten().tolist()
    tails, feeds = graph.edge_source.tolist(), _fed(graph)
    reached = {0}  # the embedding
    for edge in edges:  # by destination, in order of computation
        if tails[edge] in reached:
            reached.update(feeds[edge])
    leading = {graph.n_sources}  # the output
    for edge in reversed(edges):
        if not leading.isdisjoint(feeds[edge]):
            leading.add(tails[edge])
    mask = torch.zeros_like(kept)
    mask[
        [edge for edge in edges if tails[edge] in reached and not leading.isdisjoint(feeds[edge])]
    ] = True
    return mask


def _fed(graph: Graph) -> list[tuple[int, ...]]:
    """Return the nodes that each edge feeds; the output is the last node."""
    nodes = [graph.feeds(index) or (graph.n_sources,) for index in range(graph.n_destinations)]
    return [nodes[destination] for destination in graph.edge_destination.tolist()]


# Files ---------------------------------------------------------------------------------------


def circuit_to_dict(
    graph: Graph, kept: Bool[Tensor, "edge"], scores: Float[Tensor, "edge"] | None = None
) -> dict[str, Any]:
    """Return a circuit for JSON: the graph's shape and the kept edges by name, output first."""
    edges = []
    for edge in kept.nonzero().flatten().flip(0).tolist():
        source, destination = graph.edge_name(edge)
        score = {} if scores is None else {"score": float(scores[edge])}
        edges.append({"source": source, "destination": destination, **score})
    return {"graph": {**graph.to_dict(), "n_edges": graph.n_edges}, "edges": edges}


def write_circuit(
    path: str | Path,
    graph: Graph,
    kept: Bool[Tensor, "edge"],
    scores: Float[Tensor, "edge"] | None = None,
) -> Path:
    """Write a circuit as JSON (:func:`circuit_to_dict`)."""
    return write_atomically(path, json.dumps(circuit_to_dict(graph, kept, scores), indent=1) + "\n")


def read_circuit(path: str | Path, graph: Graph) -> Bool[Tensor, "edge"]:
    """Read the kept edges of a circuit file.

    Raises:
        UserError: no such file, not a circuit, or the circuit of a model of another shape.
    """
    try:
        circuit = json.loads(Path(path).read_text(encoding="utf-8"))
        shape = GraphShape.of_circuit(circuit)
        names = [(edge["source"], edge["destination"]) for edge in circuit["edges"]]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a circuit's JSON file: write one with sat-eval acdc"
        ) from None
    if shape.to_dict() != graph.to_dict():
        raise UserError(f"{path} is a circuit of {shape}, this model's is {graph}")
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    for source, destination in names:
        kept[graph.edge_named(source, destination)] = True
    return kept
