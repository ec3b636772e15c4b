"""The fast path: the same numbers as the hooked path, fused, and no hook fires.

Attention goes through fused kernels, Q, K and V through one product, that of both streams wherever
the gates allow it (the local variant; the gates of the global one need the end of the clean stream,
so it reuses the clean stream's keys and values instead). Where a hard mask keeps few
units, the products it enters go from winner to winner and leave out the rest, which are zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, TransformerBlock

from sat_interp._util.errors import UserError, suggest
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
from sat_interp.model.kernels import kernel
from sat_interp.model.positions import position_hooks
from sat_interp.model.streams import DualStates
from sat_interp.model.unembedding import logits
from sat_interp.model.winners import is_sparse, winners_linear, winners_mlp


def _gelu_new(pre: Tensor) -> Tensor:
    if (fused := kernel("gelu_new", pre)) is not None:
        post: Tensor = fused(pre.float()).to(pre.dtype)
        return post
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

# Hook points whose value is not one vector per position, or does not act through that vector.
_NO_VECTORS = ("hook_scale", "hook_attn_scores", "hook_pattern", "hook_result")

Masks = tuple[Tensor, Tensor]
"""A layer's masks of attention units, (batch, pos, units), and of neurons, (batch, pos, d_mlp)."""
MasksOf = Callable[[list[Tensor], Tensor], Iterator[Masks]]
"""The clean stream as it enters each block, and after the final LN, to each block's masks."""


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
    """Values that one pass of the clean stream keeps.

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
        stream, projected = _clean_block(block, stream)
        states.append(stream)
        projections.append(projected)
    return CleanPass(layer_norm(model.ln_final, stream), states, projections)


def joint_pass(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> DualStates:
    """Both streams side by side, where each block's gates read the clean stream as it enters.

    The rows of the clean stream come before those of the ablated one.
    """
    both = embed(model, tokens)
    both = torch.cat([both, both])
    masks, clean_layers, ablated_layers = [], [], []
    for block in _blocks(model):
        masks.append(block.gates(both[: len(tokens)]))
        both = _joint_block(block, both, *masks[-1])
        clean_layers.append(both[: len(tokens)])
        ablated_layers.append(both[len(tokens) :])
    clean, ablated = layer_norm(model.ln_final, both).chunk(2)
    return DualStates.of(clean, ablated, masks, clean_layers, ablated_layers)


def successive_passes(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], masks_of: MasksOf
) -> DualStates:
    """The clean stream, then the ablated one, where all gates read the clean stream's end."""
    clean = clean_pass(model, tokens)
    ablated, masks, ablated_layers = clean.states[0], [], []
    # Each mask is made where it is needed, so that its gradient is used up before the next.
    own_masks = masks_of(clean.states[:-1], clean.final)
    for block, projections, own in zip(_blocks(model), clean.projections, own_masks, strict=True):
        masks.append(own)
        ablated = _ablated_block(block, ablated, projections, *own)
        ablated_layers.append(ablated)
    final = layer_norm(model.ln_final, ablated)
    return DualStates.of(clean.final, final, masks, clean.states[1:], ablated_layers)


def ablated_pass(
    model: HookedTransformer, clean: CleanPass, masks: Sequence[Masks]
) -> Float[Tensor, "batch pos d_model"]:
    """The ablated stream after the final LN, under any (attention, neuron) masks; no hooks.

    Args:
        clean: of the same tokens.
        masks: of each layer, (batch, pos, units) and (batch, pos, d_mlp).
    """
    ablated = clean.states[0]
    for block, projections, own in zip(_blocks(model), clean.projections, masks, strict=True):
        ablated = _ablated_block(block, ablated, projections, *own)
    return layer_norm(model.ln_final, ablated)


def fast_activations(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    hook_names: Sequence[str],
    positions: Int[Tensor, "batch pos"] | None = None,
) -> dict[str, Tensor]:
    """What ``run_with_cache`` would hold at these hook points; nothing after the last is computed.

    A model or a hook point that the fused path does not cover goes through the model's own hooks.

    Args:
        positions: of the tokens, where they are not 0, 1, 2, ... (see ``positions.py``).

    Raises:
        UserError: a hook point the model does not have; positions it cannot be given.
    """
    n_layers = max(layer_of(model, name) for name in hook_names) + 1
    if not has_sites(model, hook_names):
        moved = [] if positions is None else position_hooks(model, positions, n_layers)
        with model.hooks(fwd_hooks=moved):
            _, cache = model.run_with_cache(
                tokens, names_filter=list(hook_names), stop_at_layer=n_layers
            )
        return {name: cache[name] for name in hook_names}
    activations: dict[str, Tensor] = {}
    stream, wanted = embed(model, tokens, positions), set(hook_names)
    for layer in range(n_layers):
        block, state = model.blocks[layer], {RESIDUAL_IN: stream}
        for site, value in steps(block, state):
            name = f"blocks.{layer}.{site}"
            if name in wanted:
                activations[name] = with_heads(block, site, value)
            if len(activations) == len(wanted):
                return activations
        stream = state[RESIDUAL_OUT]
    return activations


def blocks_pass(model: HookedTransformer, stream: Stream, layers: Iterable[int]) -> Stream:
    """The clean stream after these blocks."""
    for layer in layers:
        stream, _ = _clean_block(model.blocks[layer], stream)
    return stream


def layer_of(model: HookedTransformer, hook_name: str) -> int:
    """Index of the block of a hook point.

    Raises:
        UserError: the model has no such hook point, or its value is not a vector for each position
            (or for each position and head).
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if match is None or hook_name not in model.hook_dict or not _is_vector(hook_name):
        known = [
            item for item in model.hook_dict if item.startswith("blocks.") and _is_vector(item)
        ]
        near = suggest("hook point", hook_name, known)
        raise UserError(f"{near} (the model has blocks 0 to {model.cfg.n_layers - 1})")
    return int(match[1])


def _is_vector(name: str) -> bool:
    ours = ".ablated." in name or ".gates." in name  # of the other stream
    return not name.endswith(_NO_VECTORS) and not ours


# One block of the clean stream in seven steps, each a hook point of TransformerLens' own name.

RESIDUAL_IN, RESIDUAL_OUT = "hook_resid_pre", "hook_resid_post"
SITES = (
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)


def has_sites(model: HookedTransformer, hook_names: Collection[str]) -> bool:
    """Whether these are steps of a SelfAblatingTransformer with unprocessed weights."""
    sites = {re.sub(r"^blocks\.\d+\.", "", name) for name in hook_names}
    is_ours = all(isinstance(block, SelfAblatingBlock) for block in model.blocks)
    return is_ours and not getattr(model, "weights_processed", True) and sites <= set(SITES)


def steps(block: TransformerBlock, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Compute the sites of a block that ``state`` lacks, one after another; they are added to it.

    The state holds at least ``hook_resid_pre``; z is as W_O reads it, its heads side by side.
    """
    for site in SITES:
        if site not in state:
            state[site] = STEPS[site](block, state)
        yield site, state[site]


STEPS: dict[str, Callable[[TransformerBlock, dict[str, Tensor]], Tensor]] = {
    "attn.hook_z": lambda block, state: causal_attention(
        project(block, state["hook_resid_pre"]), attention_scale(block)
    ),
    "hook_attn_out": lambda block, state: _attention_output(block, state["attn.hook_z"]),
    "hook_resid_mid": lambda block, state: state["hook_resid_pre"] + state["hook_attn_out"],
    "mlp.hook_post": lambda block, state: _neurons(block, state["hook_resid_mid"]),
    "hook_mlp_out": lambda block, state: _mlp_output(block, state["mlp.hook_post"]),
    "hook_resid_post": lambda block, state: state["hook_resid_mid"] + state["hook_mlp_out"],
}
"""Each site from those before it; all but z take values with any axes in front of the position."""


def with_heads(block: TransformerBlock, site: str, value: Tensor) -> Tensor:
    """A step's value in TransformerLens' shape: z has an axis for the heads."""
    heads, d_head = block.attn.W_O.shape[:2]
    return value.unflatten(-1, (heads, d_head)) if site == "attn.hook_z" else value


def _blocks(model: HookedTransformer) -> Iterable[SelfAblatingBlock]:
    return cast(Iterable[SelfAblatingBlock], model.blocks)


def _clean_block(block: TransformerBlock, stream: Stream) -> tuple[Stream, Projections]:
    projected = project(block, stream)
    z = causal_attention(projected, attention_scale(block))
    return _after_mlp(block, stream + _attention_output(block, z)), projected


def _joint_block(
    block: SelfAblatingBlock,
    both: Float[Tensor, "two_batch pos d_model"],
    attention_mask: Float[Tensor, "batch pos units"],
    neuron_mask: Float[Tensor, "batch pos neurons"],
) -> Float[Tensor, "two_batch pos d_model"]:
    """One block on both streams, clean rows first; they share one product for Q, K and V."""
    clean_z, ablated_z = joint_attention(project(block, both), attention_scale(block)).chunk(2)
    clean, ablated = both.chunk(2)
    clean = _after_mlp(block, clean + _attention_output(block, clean_z))
    return torch.cat([clean, _masked(block, ablated, ablated_z, attention_mask, neuron_mask)])


def _ablated_block(
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


def project(block: TransformerBlock, stream: Stream) -> Projections:
    """Q, K and V, side by side, as one product."""
    attn = block.attn
    weight = torch.cat([attn.W_Q, attn.W_K, attn.W_V])  # (3 heads, d_model, d_head)
    heads3, d_model, d_head = weight.shape
    flat = weight.transpose(1, 2).reshape(heads3 * d_head, d_model)
    bias = torch.cat([attn.b_Q, attn.b_K, attn.b_V]).flatten()
    product = F.linear(layer_norm(block.ln1, stream), flat, bias)
    return product.view(*product.shape[:2], 3, heads3 // 3, d_head)


def _attention_output(block: TransformerBlock, z: Tensor) -> Tensor:
    output = block.attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
    return F.linear(z, output.T, block.attn.b_O)


def _neurons(block: TransformerBlock, stream: Tensor) -> Tensor:
    """Post-activations of a block's MLP, from the stream after attention."""
    mlp = cast(MLP, block.mlp)
    pre = F.linear(layer_norm(block.ln2, stream), mlp.W_in.T, mlp.b_in)
    return ACTIVATIONS[block.cfg.act_fn](pre)


def _mlp_output(block: TransformerBlock, post: Tensor) -> Tensor:
    mlp = cast(MLP, block.mlp)
    return F.linear(post, mlp.W_out.T, mlp.b_out)


def _after_mlp(
    block: TransformerBlock, stream: Tensor, neuron_mask: Tensor | None = None
) -> Tensor:
    post = _neurons(block, stream)
    return stream + _mlp_output(block, post if neuron_mask is None else post * neuron_mask)


def _masked(
    block: SelfAblatingBlock,
    ablated: Tensor,
    z: Tensor,
    attention_mask: Tensor,
    neuron_mask: Tensor,
) -> Tensor:
    """The rest of a block after attention, on the ablated stream."""
    ablation, attn, mlp = block.ablation, block.attn, block.mlp
    coordinates = spread_over_coordinates(attention_mask, attn.W_Q)
    if is_sparse(ablation, ablation.k_attention, attention_mask, z):
        output = attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
        ablated = ablated + winners_linear(z, coordinates, output, attn.b_O)
    else:
        ablated = ablated + _attention_output(block, z * coordinates)
    is_gelu = ACTIVATIONS[block.cfg.act_fn] is _gelu_new
    if not (is_sparse(ablation, ablation.k_neurons, neuron_mask, ablated) and is_gelu):
        return _after_mlp(block, ablated, neuron_mask)
    weights = (mlp.W_in, mlp.b_in, mlp.W_out, mlp.b_out)
    return ablated + winners_mlp(layer_norm(block.ln2, ablated), neuron_mask, *weights)
