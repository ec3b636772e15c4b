"""The fast path: the same numbers as the hooked path, fused, and no hook fires.

Attention goes through fused kernels, Q, K and V through one product, that of both streams wherever
the gates allow it (the local variant; the global one needs the whole clean stream before its gates
can speak, so it reuses the clean stream's keys and values instead). Where a hard mask keeps few
units, the products it enters go from winner to winner and leave out the rest, which are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, TransformerBlock

from sat_interp.model.attention import (
    Projections,
    ablated_attention,
    causal_attention,
    joint_attention,
)
from sat_interp.model.block import (
    SelfAblatingBlock,
    Stream,
    attention_scale,
    layer_norm,
    spread_over_coordinates,
)
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.kernels import cpu as native
from sat_interp.model.unembedding import logits


def _gelu_new(pre: Tensor) -> Tensor:
    if native.takes(pre):
        return native.gelu_new(pre.float()).to(pre.dtype)
    return F.gelu(pre, approximate="tanh")


# TransformerLens writes gelu_new and gelu_fast out in elementary operations; these are the same
# functions as one kernel each.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": _gelu_new,
    "gelu_fast": _gelu_new,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}

SPARSE = 8
"""A hard mask keeps few units where it keeps at most one in this many."""


def embed(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    positions: Int[Tensor, "batch pos"] | None = None,
) -> Stream:
    """Token plus position embedding; the positions are 0, 1, 2, ... by default."""
    table = model.pos_embed.W_pos
    placed = table[: tokens.shape[1]] if positions is None else F.embedding(positions, table)
    return F.embedding(tokens, model.embed.W_E) + placed


def unembed(model: HookedTransformer, states: Stream) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of states that have passed the final LN."""
    return logits(states, model.unembed.W_U, model.unembed.b_U)


@dataclass
class CleanPass:
    """What one pass of the clean stream leaves behind.

    Attributes:
        final: state after the final LN.
        states: stream before block 0, then after each block.
        projections: per block, queries, keys and values, (batch, pos, 3, heads, d_head).
    """

    final: Stream
    states: list[Tensor]
    projections: list[Tensor]


def clean_pass(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> CleanPass:
    """The clean stream alone, keeping what a later pass over the ablated stream will read."""
    stream = embed(model, tokens)
    states, projections = [stream], []
    for block in model.blocks:
        projected = project(block, stream)
        z = causal_attention(projected, attention_scale(block))
        stream = _after_mlp(block, _after_attention(block, stream, z))
        states.append(stream)
        projections.append(projected)
    return CleanPass(layer_norm(model.ln_final, stream), states, projections)


def joint_block(
    block: SelfAblatingBlock,
    both: Float[Tensor, "two_batch pos d_model"],
    attention_mask: Float[Tensor, "batch pos units"],
    neuron_mask: Float[Tensor, "batch pos neurons"],
) -> Float[Tensor, "two_batch pos d_model"]:
    """One block on both streams, clean rows first; they share one product for Q, K and V."""
    clean_z, ablated_z = joint_attention(project(block, both), attention_scale(block)).chunk(2)
    clean, ablated = both.chunk(2)
    clean = _after_mlp(block, _after_attention(block, clean, clean_z))
    return torch.cat([clean, _masked(block, ablated, ablated_z, attention_mask, neuron_mask)])


def ablated_block(
    block: SelfAblatingBlock,
    ablated: Stream,
    clean_projections: Projections,
    attention_mask: Float[Tensor, "batch pos units"],
    neuron_mask: Float[Tensor, "batch pos neurons"],
) -> Stream:
    """One block on the ablated stream, over keys and values the clean pass has kept."""
    own = project(block, ablated)
    z = ablated_attention(own, clean_projections, attention_scale(block))
    return _masked(block, ablated, z, attention_mask, neuron_mask)


def ablated_pass(
    model: HookedTransformer, clean: CleanPass, masks: Sequence[tuple[Tensor, Tensor]]
) -> Float[Tensor, "batch pos d_model"]:
    """The ablated stream after the final LN, under any (attention, neuron) masks; no hooks.

    Args:
        clean: of the same tokens.
        masks: of each layer, (batch, pos, units) and (batch, pos, d_mlp).
    """
    ablated = clean.states[0]
    for block, projections, own in zip(model.blocks, clean.projections, masks, strict=True):
        ablated = ablated_block(cast(SelfAblatingBlock, block), ablated, projections, *own)
    return layer_norm(model.ln_final, ablated)


def project(block: TransformerBlock, stream: Stream) -> Projections:
    """Q, K and V, side by side, as one product."""
    attn = block.attn
    weight = torch.cat([attn.W_Q, attn.W_K, attn.W_V])  # (3 heads, d_model, d_head)
    heads3, d_model, d_head = weight.shape
    flat = weight.transpose(1, 2).reshape(heads3 * d_head, d_model)
    bias = torch.cat([attn.b_Q, attn.b_K, attn.b_V]).flatten()
    product = F.linear(layer_norm(block.ln1, stream), flat, bias)
    return product.view(*product.shape[:2], 3, heads3 // 3, d_head)


def _after_attention(block: TransformerBlock, stream: Tensor, z: Tensor) -> Tensor:
    output = block.attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
    return stream + F.linear(z, output.T, block.attn.b_O)


def _after_mlp(
    block: TransformerBlock, stream: Tensor, neuron_mask: Tensor | None = None
) -> Tensor:
    mlp = cast(MLP, block.mlp)
    pre = F.linear(layer_norm(block.ln2, stream), mlp.W_in.T, mlp.b_in)
    post = ACTIVATIONS[block.cfg.act_fn](pre)
    post = post if neuron_mask is None else post * neuron_mask
    return stream + F.linear(post, mlp.W_out.T, mlp.b_out)


def _masked(
    block: SelfAblatingBlock, ablated: Tensor, z: Tensor, attention_mask: Tensor,
    neuron_mask: Tensor,
) -> Tensor:  # fmt: skip
    """What follows attention in a block, on the ablated stream."""
    ablation, attn, mlp = block.ablation, block.attn, block.mlp
    coordinates = spread_over_coordinates(attention_mask, attn.W_Q)
    if _is_sparse(ablation, ablation.k_attention, attention_mask, z):
        output = attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
        ablated = ablated + _WinnersLinear.apply(z, coordinates, output, attn.b_O)
    else:
        ablated = _after_attention(block, ablated, z * coordinates)
    is_gelu = ACTIVATIONS[block.cfg.act_fn] is _gelu_new
    if not (_is_sparse(ablation, ablation.k_neurons, neuron_mask, ablated) and is_gelu):
        return _after_mlp(block, ablated, neuron_mask)
    weights = (mlp.W_in, mlp.b_in, mlp.W_out, mlp.b_out)
    return ablated + _WinnersMLP.apply(layer_norm(block.ln2, ablated), neuron_mask, *weights)


def _is_sparse(ablation: SelfAblationConfig, k: int, mask: Tensor, stream: Tensor) -> bool:
    """Whether so few units are kept that going from one to the next beats a whole product."""
    return (
        ablation.forward_mask == "hard"
        and ablation.gates != "dropout"
        and SPARSE * k <= mask.shape[-1]
        and mask.dtype == stream.dtype == torch.float32
        and not torch.is_autocast_enabled(stream.device.type)
        and native.takes(stream)
    )


class _WinnersLinear(torch.autograd.Function):
    """``(mask * x) @ weight + bias`` under a mask of few ones.

    The straight-through gradient of the mask asks for every unit's pull, a whole product; the
    value and the weight's gradient ask for the winners alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, mask, weight)
        product = native.winners_product(_flat(x), _flat(mask), weight, False)
        return product.add_(bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mask, weight = ctx.saved_tensors
        flat = _flat(grad)
        pull = (flat @ weight.T).view_as(x)
        grad_weight = native.winners_outer(_flat(x), _flat(mask), flat, False)
        return pull * mask, pull * x, grad_weight, flat.sum(0)


class _WinnersMLP(torch.autograd.Function):
    """``(mask * gelu_new(x @ W_in + b_in)) @ W_out + b_out`` under a mask of few ones.

    As above; and nothing flows back through a unit that has lost, so of the six products of an MLP
    two stay whole: the pre-activations, and the pull on the mask.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, W_in: Tensor, b_in: Tensor, W_out: Tensor, b_out: Tensor
    ) -> Tensor:
        pre = torch.addmm(b_in, _flat(x), W_in)
        ctx.save_for_backward(x, mask, pre, W_in, W_out)
        product = native.winners_product(pre, _flat(mask), W_out, True)
        return product.add_(b_out).view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mask, pre, W_in, W_out = ctx.saved_tensors
        flat, flat_mask = _flat(grad), _flat(mask)
        grad_pre, grad_mask = native.masked_gelu_backward(flat @ W_out.T, pre, flat_mask)
        grad_x = native.winners_product(grad_pre, flat_mask, W_in.T, False)
        return (
            grad_x.view_as(x),
            grad_mask.view_as(mask),
            native.winners_outer(grad_pre, flat_mask, _flat(x), False).T,
            grad_pre.sum(0),
            native.winners_outer(pre, flat_mask, flat, True),
            flat.sum(0),
        )


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, -2)
