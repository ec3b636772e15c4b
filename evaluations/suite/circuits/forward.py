"""The patched forward pass: every edge carries its source's output or a replacement.

A destination's input is the sum over earlier sources plus the earlier attention biases. A kept edge
contributes its source's output, any other edge its source's replacement, which is an argument. This
is the reference implementation; ACDC's fast engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components import TransformerBlock

from evaluations.suite.circuits import attention
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.shape import PARTS

Stream = Float[Tensor, "batch pos d_model"]
Sources = Float[Tensor, "source batch pos d_model"]
Replacement = Float[Tensor, "source #batch #pos d_model"]
Inputs = Float[Tensor, "#destination batch pos d_model"]
Kept = Bool[Tensor, "edge"] | Float[Tensor, "edge"]
Watch = Callable[[int, Float[Tensor, "destination batch pos d_model"]], None]
Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ForwardOutput:
    """The result of a forward pass: outputs of the sources, and logits at the last position."""

    sources: Sources
    logits: Float[Tensor, "batch d_vocab"]


def embed(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Stream:
    """Return the output of the embedding: tokens and, if they are learned, positions."""
    embedding: Tensor = model.embed(tokens)
    if model.cfg.positional_embedding_type == "standard":
        embedding = embedding + model.pos_embed(tokens)
    return embedding


def run(model: HookedTransformer, graph: Graph, embedding: Stream) -> ForwardOutput:
    """Run the model itself and keep the outputs of its sources.

    Args:
        model: the model.
        graph: its graph.
        embedding: output of the embedding (:func:`embed`).
    """
    sources = embedding.new_empty(graph.n_sources, *embedding.shape)
    return ForwardOutput(sources, _logits(model, graph, _Whole(graph, embedding, sources)))


def forward(
    model: HookedTransformer,
    graph: Graph,
    embedding: Stream,
    kept: Kept | None = None,
    replacement: Replacement | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """Return the logits at the last position where ablated edges carry their source's replacement.

    Args:
        model: the model.
        graph: its graph.
        embedding: output of the embedding (:func:`embed`, or an interpolation).
        kept: True or 1 for kept edges, by default all. Floats are differentiable: an edge carries
            ``replacement + kept * (output - replacement)``.
        replacement: replacement of each source's output.
        watch: called in the backward pass, with every edge kept, for some destinations that follow
            one another: with the number of the first, and the gradient with respect to their
            inputs.
    """
    if (kept is None) != (replacement is None):
        raise ValueError("kept and replacement come together")
    if kept is None or replacement is None:
        if watch is not None and not embedding.requires_grad:
            embedding = embedding.detach().requires_grad_()
        return _logits(model, graph, _Whole(graph, embedding, watch=watch))
    matrix = graph.matrix(kept).to(embedding)
    tracked = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (matrix, embedding, replacement)
    )
    reader = (_Tracked if tracked else _Patched)(graph, embedding, matrix, replacement)
    return _logits(model, graph, reader)


def _logits(
    model: HookedTransformer, graph: Graph, reader: _Reader
) -> Float[Tensor, "batch d_vocab"]:
    for layer, block in enumerate(model.blocks):
        outputs = _heads(block, graph, layer, reader)
        if not graph.parallel:
            reader.write(outputs, block.attn.b_O)
        if graph.mlps:
            read = reader.read(graph.destination(layer, "mlp"), 1, block.ln2)[0]
            written = block.apply_mlp(read)[None]
            outputs = torch.cat([outputs, written]) if graph.parallel else written
            reader.write(outputs, block.attn.b_O if graph.parallel else None)
    norm = torch.nn.Identity() if model.cfg.normalization_type is None else model.ln_final
    last = graph.destination(graph.n_layers, "resid_final")
    final = reader.read(last, 1, norm)[0, :, -1:]
    return attention.capped(model.unembed(final)[:, 0], model.cfg.output_logits_soft_cap)


def _heads(
    block: TransformerBlock, graph: Graph, layer: int, reader: _Reader
) -> Float[Tensor, "heads batch pos d_model"]:
    """Return the outputs of a layer's heads for the inputs of its destinations."""
    first = graph.destination(layer, "q")
    read = reader.read(first, graph.n_reads, block.ln1)
    if len(read) == 1:
        return attention.heads(block.attn, read, read, read)
    queries, keys, values = (read[graph.reads(part)] for part in PARTS)
    return attention.heads(block.attn, queries, keys, values)


class _Reader:
    """The residual stream, separated by source.

    Attributes:
        n: number of sources written so far.
        bias: the sum of the attention biases so far.
    """

    def __init__(self, graph: Graph, embedding: Stream) -> None:
        self.graph, self.n = graph, 0
        self.bias = torch.zeros_like(embedding[0, 0])

    def write(self, outputs: Sources, bias: Tensor | None = None) -> None:
        """Append outputs of sources, and add a bias."""
        self._append(outputs)
        self.n += len(outputs)
        if bias is not None:
            self.bias = self.bias + bias

    def read(self, first: int, count: int, norm: Norm) -> Inputs:
        """Return the normalised inputs of ``count`` destinations from number ``first`` on.

        Where all are the same, one for all may be returned.
        """
        raise NotImplementedError

    def _append(self, outputs: Sources) -> None:
        raise NotImplementedError


class _Whole(_Reader):
    """Every edge is kept: all destinations at one place read the same."""

    def __init__(
        self,
        graph: Graph,
        embedding: Stream,
        sources: Sources | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(graph, embedding)
        self.stream = torch.zeros_like(embedding)
        self.sources, self.watch = sources, watch
        self.write(embedding[None])

    def _append(self, outputs: Sources) -> None:
        if self.sources is not None:
            self.sources[self.n : self.n + len(outputs)] = outputs
        self.stream = self.stream + outputs.sum(0)

    def read(self, first: int, count: int, norm: Norm) -> Inputs:
        stream = self.stream + self.bias
        normal = norm(stream)[None]
        if self.watch is None:
            return normal
        normal = normal.expand(count, *normal.shape[1:])
        watch = self.watch

        def passed(gradient: Tensor) -> None:
            watch(first, _through(norm, stream.detach(), gradient))

        normal.register_hook(passed)
        return normal


def _through(norm: Norm, stream: Stream, gradient: Tensor) -> Tensor:
    """Return gradients with respect to inputs of a norm, which are all the same, from its output's.

    The backward pass of the model adds up those of all destinations before the norm.
    """
    with torch.enable_grad():
        read = stream.expand_as(gradient).clone().requires_grad_()
        return torch.autograd.grad(norm(read), read, gradient)[0]


class _Patched(_Reader):
    """Edges carry outputs or replacements; no gradients.

    Held are the differences between outputs and replacements, in one tensor.
    """

    def __init__(
        self, graph: Graph, embedding: Stream, matrix: Tensor, replacement: Replacement
    ) -> None:
        super().__init__(graph, embedding)
        self.matrix, self.replacement = matrix, replacement
        self.replaced = torch.zeros_like(replacement[0])
        self._begin(embedding)
        self.write(embedding[None])

    def _begin(self, embedding: Stream) -> None:
        self.differences = embedding.new_empty(self.graph.n_sources, *embedding.shape)

    def _append(self, outputs: Sources) -> None:
        new = slice(self.n, self.n + len(outputs))
        self._keep(outputs, self.replacement[new], new)
        self.replaced = self.replaced + self.replacement[new].sum(0)

    def _keep(self, outputs: Sources, replaced: Tensor, new: slice) -> None:
        torch.sub(outputs, replaced, out=self.differences[new])

    def read(self, first: int, count: int, norm: Norm) -> Inputs:
        matrix = self.matrix[first : first + count, : self.n]
        return norm(self._sum(matrix) + self.replaced + self.bias)

    def _sum(self, matrix: Tensor) -> Inputs:
        present = self.differences[: self.n]
        return _like(matrix @ present.flatten(1), present)


def _like(rows: Float[Tensor, "destination flat"], sources: Sources) -> Inputs:
    """Return rows with the shape of a source's output."""
    return rows.view(len(rows), *sources.shape[1:])


class _Tracked(_Patched):
    """The same with gradients, for which each layer's differences are a tensor of their own."""

    def _begin(self, embedding: Stream) -> None:
        self.written: list[tuple[slice, Tensor]] = []

    def _keep(self, outputs: Sources, replaced: Tensor, new: slice) -> None:
        self.written.append((new, outputs - replaced))

    def _sum(self, matrix: Tensor) -> Inputs:
        parts = [matrix[:, new] @ part.flatten(1) for new, part in self.written]
        return _like(torch.stack(parts).sum(0), self.written[0][1])
