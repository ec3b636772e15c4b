"""The fast path: the same numbers as the hooked path, fused, and no hook fires.

Attention goes through fused kernels, Q, K and V through one product, both streams through one
product wherever the gates allow it (the local variant; the global one needs the whole clean stream
before its gates can speak, so it reuses the clean stream's keys and values instead).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, TransformerBlock

from sat_interp import native
from sat_interp.attention import (
    Projections,
    ablated_attention,
    causal_attention,
    joint_attention,
)
from sat_interp.block import (
    SelfAblatingBlock,
    Stream,
    attention_scale,
    layer_norm,
    spread_over_coordinates,
)


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


def embed(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Stream:
    """Token plus position embedding."""
    positions = model.pos_embed.W_pos[: tokens.shape[1]]
    return F.embedding(tokens, model.embed.W_E) + positions


def unembed(model: HookedTransformer, states: Stream) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of states that have passed the final LN."""
    return F.linear(states, model.unembed.W_U.T, model.unembed.b_U)


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
    """One block on both streams, clean rows first: every weight is read once."""
    z = joint_attention(project(block, both), attention_scale(block))
    clean_z, ablated_z = z.chunk(2)
    ablated_z = ablated_z * spread_over_coordinates(attention_mask, block.attn.W_Q)
    both = _after_attention(block, both, torch.cat([clean_z, ablated_z]))
    return _after_mlp(block, both, neuron_mask)


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
    z = z * spread_over_coordinates(attention_mask, block.attn.W_Q)
    return _after_mlp(block, _after_attention(block, ablated, z), neuron_mask)


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
    """Add the MLP's output; the mask, where given, is over the last rows: the ablated stream's."""
    mlp = cast(MLP, block.mlp)
    pre = F.linear(layer_norm(block.ln2, stream), mlp.W_in.T, mlp.b_in)
    post = ACTIVATIONS[block.cfg.act_fn](pre)
    if neuron_mask is not None:
        n_clean = len(stream) - len(neuron_mask)
        masked = post[n_clean:] * neuron_mask
        post = torch.cat([post[:n_clean], masked]) if n_clean else masked
    return stream + F.linear(post, mlp.W_out.T, mlp.b_out)
