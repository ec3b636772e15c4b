"""The patched forward pass for many rows at once, each with masks of its own, with gradients.

A row is one or several prompts and a mask in [0, 1] for every edge; the input of a destination is
the sum over sources of ``mask * (output - replacement) + replacement``. All destinations of a layer
are read by one matrix product for each row (``row_products``). Norms are folded into the weights
(``methods.acdc.folded``). ``forward.forward`` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, LayerNorm, TransformerBlock

from evaluations.suite.circuits import attention
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.folded import Folded, Layer
from evaluations.suite.circuits.patched import PromptBatch
from evaluations.suite.circuits.row_products import Inputs, Matrix, Written, append, project, read
from evaluations.suite.circuits.shape import PARTS
from sat_interp.model import fast
from sat_interp.model.block import normalise


class RowPrompts:
    """Prompts of one length, as rows read them: centred, with the sums of their replacements.

    Attributes:
        clean: outputs of the sources on the clean prompts, without their mean where norms subtract
            it.
        replacement: replacements of the sources' outputs, likewise.
        logits: of the clean run at the last position.
        first: positions before it are not ablated.
    """

    def __init__(self, graph: Graph, folded: Folded, bucket: PromptBatch) -> None:
        self.graph, self.folded = graph, folded
        self.clean = folded.centre(bucket.clean)
        self.replacement = folded.centre(bucket.replacement)
        self.logits, self.first = bucket.logits, bucket.first
        self.probabilities = bucket.logits.softmax(-1)
        self._sums: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.logits)

    def sums(self, n: int, n_biases: int) -> tuple[Tensor, Tensor]:
        """Return what the first sources' replacements, and their clean outputs, add up to.

        Biases of the first layers' attention are included.
        """
        if (n, n_biases) not in self._sums:
            bias = self.bias(n_biases)
            replaced = self.replacement[:n].sum(0) + bias
            clean = self.clean[:n, :, : self.first].sum(0) + bias
            self._sums[n, n_biases] = replaced, clean
        return self._sums[n, n_biases]

    def bias(self, n_biases: int) -> Tensor:
        """Return the sum of the first layers' attention biases."""
        total = self.clean.new_zeros(self.clean.shape[-1])
        return sum((layer.bias for layer in self.folded.layers[:n_biases]), start=total)


class RowChunks(Sequence[RowPrompts]):
    """Chunks of prompts as rows read them; kept where the chunks themselves are."""

    def __init__(self, graph: Graph, folded: Folded, buckets: Sequence[PromptBatch]) -> None:
        self.graph, self.folded, self.buckets = graph, folded, buckets
        self._kept: dict[int, RowPrompts] | None = {} if getattr(buckets, "is_kept", True) else None

    def __len__(self) -> int:
        return len(self.buckets)

    @overload
    def __getitem__(self, index: int) -> RowPrompts: ...

    @overload
    def __getitem__(self, index: slice) -> list[RowPrompts]: ...

    def __getitem__(self, index: int | slice) -> RowPrompts | list[RowPrompts]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        number = range(len(self))[index]
        if self._kept is None:
            return RowPrompts(self.graph, self.folded, self.buckets[number])
        if number not in self._kept:
            self._kept[number] = RowPrompts(self.graph, self.folded, self.buckets[number])
        return self._kept[number]


@dataclass(frozen=True)
class _Part:
    """The destinations of one layer that read for queries, keys or values; folded weights.

    Attributes:
        destinations: in order; one for each head, or for each group that shares them.
        size: heads that one destination feeds.
    """

    destinations: Int[Tensor, " destination"]
    weights: Float[Tensor, "destination d_model d_head"]
    biases: Float[Tensor, "destination d_head"]
    size: int

    @classmethod
    def of(cls, graph: Graph, layer: int, number: int, weights: Layer) -> _Part:
        """Return the destinations of a layer's queries (0), keys (1) or values (2)."""
        places = graph.reads(PARTS[number])
        size = graph.n_heads // len(places)
        return cls(
            torch.tensor(places) + graph.destination(layer, "q"),
            weights.weights[number, ::size].mT,
            weights.biases[number, ::size],
            size,
        )


class RowPass:
    """A model as rows run it."""

    def __init__(self, model: HookedTransformer, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.folded = Folded.of(model)
        self.mlps = [_mlp(block, self.folded) for block in model.blocks] if graph.mlps else []
        self.parts = [
            [_Part.of(graph, layer, number, weights) for number in range(len(PARTS))]
            for layer, weights in enumerate(self.folded.layers)
        ]
        self.fused = [_has_plain_scores(block) for block in model.blocks]

    def prompts(self, buckets: Sequence[PromptBatch]) -> RowChunks:
        """Return chunks of prompts as rows read them."""
        return RowChunks(self.graph, self.folded, buckets)

    def logits(
        self,
        prompts: RowPrompts,
        index: Int[Tensor, "row prompt"],
        masks: Float[Tensor, "row edge"],
        constants: Float[Tensor, "_ source d_model"] | None = None,
    ) -> Float[Tensor, "row prompt d_vocab"]:
        """Return the logits at the last position.

        Args:
            prompts: of one length.
            index: which of the prompts each row has.
            masks: of every row.
            constants: replacements of the sources' outputs from the first ablated position on, one
                set for all rows or one for each; by default the prompts' own.
        """
        if prompts.first == prompts.clean.shape[2]:
            constants = None  # no position is ablated
        run = _Run(self, prompts, index, masks, constants)
        for layer in range(self.graph.n_layers):
            run.layer(layer)
        return run.final()

    def divergence(
        self,
        prompts: RowPrompts,
        index: Int[Tensor, "row prompt"],
        masks: Float[Tensor, "row edge"],
        constants: Float[Tensor, "_ source d_model"] | None = None,
    ) -> Float[Tensor, "row prompt"]:
        """Return KL(whole model || row) at the last position, in nats."""
        return kl(prompts, index, self.logits(prompts, index, masks, constants))


def kl(
    prompts: RowPrompts,
    index: Int[Tensor, "row prompt"],
    logits: Float[Tensor, "row prompt d_vocab"],
) -> Float[Tensor, "row prompt"]:
    """Return KL(whole model || row) in nats, from the rows' logits."""
    return F.kl_div(logits.log_softmax(-1), prompts.probabilities[index], reduction="none").sum(-1)


class _Run:
    """One forward pass of rows."""

    def __init__(
        self,
        weights: RowPass,
        prompts: RowPrompts,
        index: Int[Tensor, "row prompt"],
        masks: Float[Tensor, "row edge"],
        constants: Tensor | None,
    ) -> None:
        graph = weights.graph
        self.weights, self.graph, self.prompts, self.index = weights, graph, prompts, index
        self.matrix = row_matrix(graph, masks)
        self.used = (self.matrix.detach() != 0).any(0).any(0)  # by source
        self.constants = None if constants is None else weights.folded.centre(constants)
        clean = prompts.clean[0][index]
        rows, n, positions, width = clean.shape
        # sources that no edge reads are never computed, and 0 here
        values = clean.new_zeros(rows, graph.n_sources, n, positions, width)
        self.written = Written(values, prompts.first)
        self.token = clean.new_zeros(()).requires_grad_(torch.is_grad_enabled())
        self.n_biases = 0
        self.write(clean[:, None], 0)

    def write(self, outputs: Inputs, start: int, last: bool = False) -> None:
        """Append the outputs of sources."""
        stop = start + outputs.shape[1]
        if self.constants is not None:
            replaced = self.constants.detach()[:, start:stop, None, None]
        else:
            replaced = self.prompts.replacement[start:stop]
            if replaced.shape[1] > 1:
                replaced = replaced[:, self.index].transpose(0, 1)
            else:
                replaced = replaced[None]
        self.token = append(self.token, outputs, replaced, self.written, (start, stop, last))

    def read(self, destinations: Int[Tensor, " destination"], n: int, last: bool = False) -> Inputs:
        """Return the inputs of destinations, which read the first ``n`` sources."""
        masks = self.matrix[:, destinations, :n]
        base = self._base(n, last)
        return read(self.token, masks, self.constants, base, self.written, last)

    def _base(self, n: int, last: bool) -> Tensor:
        """What a destination reads with no edge kept."""
        replaced, clean = self.prompts.sums(n, self.n_biases)
        if self.constants is None:
            chosen = replaced[self.index] if len(replaced) > 1 else replaced[None]
            return (chosen[..., -1:, :] if last else chosen)[:, None]
        total = self.constants.detach()[:, :n].sum(1) + self.prompts.bias(self.n_biases)
        total = total[:, None, None]
        if last:
            return total[:, None]
        positions = self.written.values.shape[3]
        first = clean[self.index]
        total = total.expand(len(first), first.shape[1], positions - first.shape[2], -1)
        return torch.cat([first, total], 2)[:, None]

    def layer(self, layer: int) -> None:
        """Compute one block: its heads, then its MLP."""
        graph, is_last = self.graph, layer == self.graph.n_layers - 1
        n = graph.before(layer)
        last = is_last
        heads = self.used[n : n + graph.n_heads].nonzero().flatten()
        mlp_input = None
        if graph.mlps and graph.parallel and self.used[graph.mlp(layer)]:
            mlp_input = self._mlp_input(layer, n, last)
        if len(heads):
            self._heads(layer, heads, n, last)
        self.n_biases += 1
        if graph.mlps and self.used[graph.mlp(layer)]:
            if mlp_input is None:
                mlp_input = self._mlp_input(layer, n + graph.n_heads, last)
            self.write(self.weights.mlps[layer](mlp_input), graph.mlp(layer), last)

    def _mlp_input(self, layer: int, n: int, last: bool) -> Inputs:
        return self.read(torch.tensor([self.graph.destination(layer, "mlp")]), n, last)

    def _heads(self, layer: int, heads: Int[Tensor, " head"], n: int, last: bool) -> None:
        q, k, v = (
            self._project(layer, number, heads, n, last and number == 0)
            for number in range(len(PARTS))
        )
        weights = self.weights.folded.layers[layer]
        attend = _attend if self.weights.fused[layer] else _attend_written_out
        z = attend(weights, q, k, v, heads)  # row, head, prompt, pos, d_head
        outputs = torch.matmul(z.flatten(2, 3), weights.out[heads]).unflatten(2, z.shape[2:4])
        if len(heads) == self.graph.n_heads:
            self.write(outputs, n, last)
            return
        for place, head in enumerate(heads.tolist()):
            self.write(outputs[:, place : place + 1], n + head, last)

    def _project(
        self, layer: int, number: int, heads: Int[Tensor, " head"], n: int, last: bool
    ) -> Tensor:
        """Return queries, keys or values of heads."""
        folded, part = self.weights.folded, self.weights.parts[layer][number]
        own, place = (heads // part.size).unique(return_inverse=True)
        x = self.read(part.destinations[own.cpu()], n, last)
        found = project(x, part.weights[own], part.biases[own], folded.eps, folded.scaled)
        if (finish := folded.layers[layer].finish) is not None:
            offset = self.written.values.shape[3] - found.shape[3]
            found = finish(number, found.flatten(0, 2), offset).view_as(found)
        return found if part.size == 1 else found[:, place]

    def final(self) -> Float[Tensor, "row prompt d_vocab"]:
        """Return the logits at the last position."""
        graph, folded = self.graph, self.weights.folded
        x = self.read(torch.tensor([graph.n_destinations - 1]), graph.n_sources, True)
        none = folded.unembed_bias[None]
        logits = project(x, folded.unembed[None], none, folded.eps, folded.scaled)
        return attention.capped(logits[:, 0, :, 0], folded.cap)


def _attend(
    layer: Layer, q: Tensor, k: Tensor, v: Tensor, heads: Int[Tensor, " head"]
) -> Float[Tensor, "row head prompt pos d_head"]:
    """Attention of each row's heads; queries may be those of the last position alone."""
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    mask = None
    if shape[3] > 1 or layer.window is not None:
        mask = attention.visible(k.shape[2], layer.window, q.device)[-shape[3] :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).view(shape)


def _attend_written_out(
    layer: Layer, q: Tensor, k: Tensor, v: Tensor, heads: Int[Tensor, " head"]
) -> Float[Tensor, "row head prompt pos d_head"]:
    """The same where scores are more than scaled products."""
    scores = layer.positioned((q @ k.mT).transpose(0, 1), heads.tolist()).transpose(0, 1)
    future = ~attention.visible(k.shape[3], layer.window, q.device)[-q.shape[3] :]
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


def _has_plain_scores(block: TransformerBlock) -> bool:
    """Whether scores are products of queries and keys, whose scale is folded into the queries."""
    cfg = block.cfg
    return (
        attention.is_linear(block.attn)
        and not (cfg.attn_scores_soft_cap or 0) > 0
        and cfg.positional_embedding_type != "alibi"
    )


def _mlp(block: TransformerBlock, folded: Folded) -> Callable[[Inputs], Inputs]:
    """The block's MLP with its norm, its output centred: fused where it is a plain one."""
    mlp = block.mlp
    is_plain = type(mlp) is MLP and isinstance(block.ln2, LayerNorm)
    if not (is_plain and mlp.cfg.act_fn in fast.ACTIVATIONS):
        return lambda x: folded.centre(block.apply_mlp(block.ln2(x.flatten(0, 2)))).view(x.shape)
    activation, plain = fast.ACTIVATIONS[mlp.cfg.act_fn], cast(MLP, mlp)
    into, out = plain.W_in.T, folded.centre(plain.W_out).T.contiguous()
    into_bias, bias = plain.b_in, folded.centre(plain.b_out)

    def apply(x: Inputs) -> Inputs:
        hidden = activation(F.linear(normalise(block.ln2, x), into, into_bias))
        return F.linear(hidden, out, bias)

    return apply


def row_matrix(graph: Graph, masks: Float[Tensor, "row edge"]) -> Matrix:
    """Return masks of edges as a matrix for each row, 0 where there is no edge; differentiable."""
    empty = masks.new_zeros(len(masks), graph.n_destinations * graph.n_sources)
    at = graph.edge_destination * graph.n_sources + graph.edge_source
    filled = empty.index_copy(1, at.to(masks.device), masks)
    return filled.view(-1, graph.n_destinations, graph.n_sources)


def live_edges(graph: Graph, present: Bool[Tensor, "row edge"]) -> Bool[Tensor, "row edge"]:
    """Return which edges lie on a path from embedding to output, for each row (``on_paths``)."""
    matrix: Tensor = row_matrix(graph, present.float()) > 0
    reached = matrix.new_zeros(len(present), graph.n_sources)
    reached[:, 0] = True
    for node in range(1, graph.n_sources):
        reads = matrix[:, list(graph.fed_by[node])]
        reached[:, node] = (reads & reached[:, None]).flatten(1).any(1)
    leading = torch.zeros_like(reached)
    leads = matrix.new_zeros(len(present), graph.n_destinations)
    leads[:, -1] = True  # the output
    for node in range(graph.n_sources - 1, -1, -1):
        leading[:, node] = (matrix[:, :, node] & leads).any(1)
        leads[:, list(graph.fed_by[node])] |= leading[:, node, None]
    tails, heads = graph.edge_source.to(present.device), graph.edge_destination.to(present.device)
    return present & reached[:, tails] & leads[:, heads]
