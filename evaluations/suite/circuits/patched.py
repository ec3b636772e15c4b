"""The patched forward pass: every edge carries its source's output or a replacement.

A destination's input is the sum over earlier sources plus the earlier attention biases. A kept edge
contributes its source's output, any other edge its source's replacement, which is an argument. This
is the reference implementation; ACDC's fast engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components import AbstractAttention, TransformerBlock

from evaluations.suite.circuits.config import Ablation
from evaluations.suite.circuits.graph import Graph
from sat_interp._util.errors import UserError

PRECISE = (torch.float32, torch.float64)
"""Precisions in which circuits are searched; in lower precision most KL steps are rounding."""

Sources = Float[Tensor, "source batch pos d_model"]
Replacement = Float[Tensor, "source #batch #pos d_model"]
Constants = Float[Tensor, "source d_model"]
Kept = Bool[Tensor, "edge"] | Float[Tensor, "edge"]


@runtime_checkable
class Prompts(Protocol):
    """Clean and corrupted prompts of one length, (batch, pos) token ids without padding."""

    @property
    def clean(self) -> Tensor:
        """Clean prompts."""
        ...

    @property
    def corrupted(self) -> Tensor:
        """Corrupted prompts."""
        ...


@dataclass(frozen=True)
class ForwardOutput:
    """The result of a forward pass: outputs of the sources, and logits at the last position."""

    sources: Sources
    logits: Float[Tensor, "batch d_vocab"]


@dataclass(frozen=True)
class PromptBatch:
    """Cached activations of prompts of one length.

    Attributes:
        clean: outputs of the sources on the clean prompts.
        replacement: replacements of the sources' outputs for ablated edges.
        logits: logits of the clean run at the last position.
        first: position before which clean output and replacement are equal.
    """

    clean: Sources
    replacement: Replacement
    logits: Float[Tensor, "batch d_vocab"]
    first: int = 0

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: slice) -> PromptBatch:
        varies = self.replacement.shape[1] > 1  # else it is the same for all prompts
        return PromptBatch(
            self.clean[:, rows],
            self.replacement[:, rows] if varies else self.replacement,
            self.logits[rows],
            self.first,
        )


def embed(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """Return the output of the embedding: tokens and, if they are learned, positions."""
    embedding: Tensor = model.embed(tokens)
    if model.cfg.positional_embedding_type == "standard":
        embedding = embedding + model.pos_embed(tokens)
    return embedding


def forward(
    model: HookedTransformer,
    graph: Graph,
    embedding: Float[Tensor, "batch pos d_model"],
    kept: Kept | None = None,
    replacement: Replacement | None = None,
    added: Float[Tensor, "destination batch pos d_model"] | None = None,
) -> ForwardOutput:
    """Run the forward pass in which ablated edges carry their source's replacement.

    Args:
        model: the model.
        graph: its graph.
        embedding: output of the embedding (:func:`embed`, or an interpolation).
        kept: True or 1 for kept edges, by default all. Floats are differentiable: an edge carries
            ``replacement + kept * (output - replacement)``.
        replacement: replacement of each source's output.
        added: added to the input of each destination. Zeros that require a gradient give the
            gradient with respect to every destination's input.
    """
    matrix = None if kept is None else graph.matrix(kept).to(embedding)
    reader = _Reader(graph, matrix, replacement, added, embedding)
    for layer, block in enumerate(model.blocks):
        first = graph.destination(layer, "q")
        inputs = reader.inputs(first, 3 * graph.n_heads)
        qkv = inputs.unflatten(0, (graph.n_heads, 3)).transpose(0, 1)
        heads = _heads(block, qkv)
        if graph.mlps and not graph.parallel:
            reader.write(heads, block.attn.b_O)
        if graph.mlps:
            mlp_input = reader.inputs(graph.destination(layer, "mlp"), 1)[0]
            out = block.mlp(block.ln2(mlp_input))[None]
            if graph.parallel:
                reader.write(torch.cat([heads, out]), block.attn.b_O)
            else:
                reader.write(out)
        else:
            reader.write(heads, block.attn.b_O)
    final = reader.inputs(graph.destination(graph.n_layers, "resid_final"), 1)[0, :, -1:]
    if model.cfg.normalization_type is not None:
        final = model.ln_final(final)
    return ForwardOutput(reader.sources, model.unembed(final)[:, 0])


class _Reader:
    """The residual stream, separated by source."""

    def __init__(
        self,
        graph: Graph,
        matrix: Tensor | None,
        replacement: Tensor | None,
        added: Tensor | None,
        embedding: Tensor,
    ) -> None:
        if (matrix is None) != (replacement is None):
            raise ValueError("kept and replacement come together")
        self.graph, self.matrix, self.replacement, self.added = graph, matrix, replacement, added
        self.sources = embedding[None]
        self.bias = torch.zeros_like(embedding[0, 0])

    def write(self, outputs: Tensor, bias: Tensor | None = None) -> None:
        """Append outputs of sources, and add a bias."""
        self.sources = torch.cat([self.sources, outputs])
        if bias is not None:
            self.bias = self.bias + bias

    def inputs(self, first: int, count: int) -> Float[Tensor, "destination batch pos d_model"]:
        """Return the inputs of ``count`` destinations, starting at number ``first``."""
        n = len(self.sources) if not self.graph.parallel else self.graph.n_read[first]
        present = self.sources[:n]
        if self.matrix is None or self.replacement is None:
            read = present.sum(0).expand(count, *present.shape[1:])
        else:
            replaced = self.replacement[:n]
            kept = self.matrix[first : first + count, :n]
            read = (kept @ (present - replaced).flatten(1)).unflatten(1, present.shape[1:])
            read = read + replaced.sum(0)
        read = read + self.bias
        return read if self.added is None else read + self.added[first : first + count]


def _heads(
    block: TransformerBlock, qkv: Float[Tensor, "three heads batch pos d_model"]
) -> Float[Tensor, "heads batch pos d_model"]:
    """Return the output of each head, without the bias, for inputs of its queries, keys, values."""
    attn = block.attn
    normal = block.ln1(qkv)
    weights = torch.stack([attn.W_Q, attn.W_K, attn.W_V])[:, :, None]
    biases = torch.stack([attn.b_Q, attn.b_K, attn.b_V])[:, :, None, None]
    q, k, v = normal @ weights + biases  # each (heads, batch, pos, d_head)
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = (attn.apply_rotary(x.permute(1, 2, 0, 3)).permute(2, 0, 1, 3) for x in (q, k))
    scores = q @ k.transpose(-1, -2) / attn.attn_scale
    future = ~visible(q.shape[-2], window(attn), q.device)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    outputs: Tensor = pattern @ v @ attn.W_O[:, None]
    return outputs


def window(attn: AbstractAttention) -> int | None:
    """Return the number of positions that a query attends to, its own included; None for all."""
    return attn.cfg.window_size if attn.attn_type == "local" else None


def visible(n: int, window: int | None, device: torch.device) -> Bool[Tensor, "query key"]:
    """Return the causal mask: a query attends to its own and earlier positions, in the window."""
    past = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    return past if window is None else past.triu(1 - window)


def prepare(
    model: HookedTransformer,
    graph: Graph,
    batches: Sequence[Prompts],
    ablation: Ablation | Constants = "resample",
    averaged: Sequence[Prompts] | None = None,
) -> list[PromptBatch]:
    """Cache the activations of the clean prompts, and the replacements of ablated edges.

    Args:
        model: the model.
        graph: its graph.
        batches: prompts, each batch of one length.
        ablation: replacement of an ablated edge: its source's output on the corrupted prompt
            (``resample``), zero (``zero``), its source's mean output over all positions but the
            first of all clean prompts (``mean``), its mean output over all positions of all
            corrupted prompts (``cf_mean``), or a given constant per source. With ``mean`` the first
            position is not replaced.
        averaged: the prompts that means are taken over, by default ``batches``.

    Raises:
        UserError: there are no prompts, a corrupted prompt differs in length from its clean prompt,
            constants have the wrong shape, or the model is in lower precision than float32.
    """
    if model.W_E.dtype not in PRECISE:
        kind = str(model.W_E.dtype).removeprefix("torch.")
        raise UserError(
            f"circuits are not searched in {kind}, whose rounding passes for KL: use float32"
        )
    if not batches or not all(len(batch.clean) for batch in batches):
        raise UserError("there are no prompts to find a circuit with")
    if any(batch.clean.shape != batch.corrupted.shape for batch in batches):
        raise UserError("a clean prompt and its corrupted one must have equally many tokens")
    constants = _constants(model, graph, averaged or batches, ablation)
    keep_first = isinstance(ablation, str) and ablation == "mean"
    buckets = []
    with torch.no_grad():
        for batch in batches:
            tokens = batch.clean.to(model.W_E.device)
            run = forward(model, graph, embed(model, tokens))
            if constants is not None:
                buckets.append(_with_constants(run, constants, keep_first))
                continue
            corrupted = batch.corrupted.to(tokens.device)
            first = _first_difference(tokens, corrupted)
            replacement = forward(model, graph, embed(model, corrupted)).sources
            # Equal by causality; made equal to the last bit.
            replacement[:, :, :first] = run.sources[:, :, :first]
            buckets.append(PromptBatch(run.sources, replacement, run.logits, first))
    return buckets


def _with_constants(run: ForwardOutput, constants: Constants, keep_first: bool) -> PromptBatch:
    """Return the cached run with constants as replacements, after the first position or at all."""
    replacement = constants[:, None, None]
    if not keep_first:
        return PromptBatch(run.sources, replacement, run.logits)
    replacement = replacement.expand_as(run.sources).clone()
    replacement[:, :, 0] = run.sources[:, :, 0]
    return PromptBatch(run.sources, replacement, run.logits, min(1, replacement.shape[2] - 1))


def _first_difference(clean: Tensor, corrupted: Tensor) -> int:
    """Return the first position at which any clean and corrupted prompt differ, else the last."""
    differ = (clean != corrupted).any(0)
    return int(differ.int().argmax()) if differ.any() else clean.shape[1] - 1


def _constants(
    model: HookedTransformer,
    graph: Graph,
    batches: Sequence[Prompts],
    ablation: Ablation | Constants,
) -> Constants | None:
    """Return the constant replacement of each source; None if it differs between prompts.

    Means leave out prompts on which an output is not finite; with no others they are NaN.
    """
    weight = model.W_E
    if isinstance(ablation, Tensor):
        wanted = (graph.n_sources, weight.shape[1])
        if tuple(ablation.shape) != wanted:
            raise UserError(f"constants have shape {tuple(ablation.shape)}, not {wanted}")
        return ablation.to(weight)
    if ablation == "resample":
        return None
    total = weight.new_zeros(graph.n_sources, weight.shape[1])
    if ablation == "zero":
        return total
    is_clean, n = ablation == "mean", 0
    with torch.no_grad():
        for batch in batches:
            tokens = (batch.clean if is_clean else batch.corrupted).to(weight.device)
            sources = forward(model, graph, embed(model, tokens)).sources
            finite = sources.isfinite().flatten(2).all(-1).all(0)
            counted = sources[:, finite, int(is_clean) :]
            total += counted.sum((1, 2))
            n += counted[0, :, :, 0].numel()
    return total / n


def kl_divergence(
    clean: Float[Tensor, "*rows d_vocab"], patched: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """Compute KL(clean || patched) in nats, the sum over tokens of p (ln p - ln q)."""
    p = clean.log_softmax(-1)
    return (p.exp() * (p - patched.log_softmax(-1))).sum(-1)


def circuit_logits(
    model: HookedTransformer, graph: Graph, buckets: Sequence[PromptBatch], kept: Kept
) -> list[Float[Tensor, "batch d_vocab"]]:
    """Return logits at the last position with these edges kept, for each batch."""
    return [forward(model, graph, b.clean[0], kept, b.replacement).logits for b in buckets]


def circuit_kl(
    model: HookedTransformer, graph: Graph, buckets: Sequence[PromptBatch], kept: Kept
) -> float:
    """Return the mean over all prompts of KL(clean || circuit) at the last position, in nats."""
    with torch.no_grad():
        found = circuit_logits(model, graph, buckets, kept)
    total = sum(
        kl_divergence(bucket.logits, logits).sum().item()
        for bucket, logits in zip(buckets, found, strict=True)
    )
    return total / sum(len(bucket) for bucket in buckets)
