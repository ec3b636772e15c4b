"""The fast path: the same numbers as the hooked path, fused, and no hook fires.

Attention goes through fused kernels, Q, K and V through one product, that of both streams wherever
the gates allow it (the local variant; the gates of the global one need the end of the clean stream,
so it reuses the clean stream's keys and values instead). Where a hard mask keeps few
units, the products it enters go from winner to winner and leave out the rest, which are zeros.

Blocks may be sequential or parallel, with LayerNorm or RMSNorm, learned or rotary positions, plain
or gated MLPs, grouped queries, and local attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformer_lens import HookedTransformer
from transformer_lens.components import TransformerBlock

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
    attention_window,
    for_each_query_head,
    is_parallel,
    is_rotary,
    normalise,
    normed_heads,
    projection_weights,
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
    """Token embedding, plus that of the positions 0, 1, 2, ... where positions are learned.

    Args:
        positions: other learned positions.
    """
    embedded = F.embedding(tokens, model.embed.W_E)
    if model.cfg.positional_embedding_type == "rotary":
        return embedded
    table = model.pos_embed.W_pos
    placed = table[: tokens.shape[1]] if positions is None else F.embedding(positions, table)
    return embedded + placed


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
        stream, projected = _run(model, _clean_block, block, stream)
        states.append(stream)
        projections.append(projected)
    return CleanPass(normalise(model.ln_final, stream), states, projections)


def joint_pass(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> DualStates:
    """Both streams side by side, where each block's gates read the clean stream as it enters.

    The rows of the clean stream come before those of the ablated one.
    """
    both = embed(model, tokens)
    both = torch.cat([both, both])
    masks, clean_layers, ablated_layers = [], [], []
    for block in _blocks(model):
        both, own = _run(model, _joint_block, block, both)
        masks.append(own)
        clean_layers.append(both[: len(tokens)])
        ablated_layers.append(both[len(tokens) :])
    clean, ablated = normalise(model.ln_final, both).chunk(2)
    return DualStates.of(clean, ablated, masks, clean_layers, ablated_layers)


def successive_passes(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], masks_of: MasksOf
) -> DualStates:
    """The clean stream, then the ablated one: for gates that read the clean stream's end.

    With weights that are not trained the clean stream needs no gradient, whatever the gates read.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and trains_base(model)):
        clean = clean_pass(model, tokens)
    ablated, masks, ablated_layers = clean.states[0], [], []
    # Each mask is made where it is needed, so that its gradient is used up before the next.
    own_masks = masks_of(clean.states[:-1], clean.final)
    for block, projections, own in zip(_blocks(model), clean.projections, own_masks, strict=True):
        masks.append(own)
        ablated = _run(model, _ablated_block, block, ablated, projections, *own)
        ablated_layers.append(ablated)
    final = normalise(model.ln_final, ablated)
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
    return normalise(model.ln_final, ablated)


def trains_base(model: HookedTransformer) -> bool:
    """Whether any weight besides those of the gates is trained."""
    named = model.named_parameters()
    return any(weight.requires_grad for name, weight in named if "gates." not in name)


def _run(model: HookedTransformer, step: Callable[..., Any], *arguments: Any) -> Any:
    """A step of a pass; where the model says so, it is computed again for its gradient."""
    if not (torch.is_grad_enabled() and getattr(model, "recomputes_blocks", False)):
        return step(*arguments)
    return checkpoint(step, *arguments, use_reentrant=False)


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
    moves = positions is not None and not has_learned_positions_only(model)
    if moves or not has_sites(model, hook_names):
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


def has_learned_positions_only(model: HookedTransformer) -> bool:
    """Whether a token's position enters by its embedding alone: none rotary, no windows."""
    return model.cfg.positional_embedding_type == "standard" and not model.cfg.use_local_attn


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
        project(block, state["hook_resid_pre"]), attention_scale(block), attention_window(block)
    ),
    "hook_attn_out": lambda block, state: _attention_output(block, state["attn.hook_z"]),
    "hook_resid_mid": lambda block, state: state["hook_resid_pre"] + state["hook_attn_out"],
    "mlp.hook_post": lambda block, state: _neurons(
        block, state["hook_resid_pre" if is_parallel(block) else "hook_resid_mid"]
    ),
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
    z = causal_attention(projected, attention_scale(block), attention_window(block))
    return _after_mlp(block, stream, stream + _attention_output(block, z)), projected


def _joint_block(
    block: SelfAblatingBlock, both: Float[Tensor, "two_batch pos d_model"]
) -> tuple[Float[Tensor, "two_batch pos d_model"], Masks]:
    """One block on both streams, clean rows first, and its masks.

    The streams share one product for Q, K and V.
    """
    masks = block.gates(both[: len(both) // 2])
    z = joint_attention(project(block, both), attention_scale(block), attention_window(block))
    (clean_z, ablated_z), (clean, ablated) = z.chunk(2), both.chunk(2)
    clean = _after_mlp(block, clean, clean + _attention_output(block, clean_z))
    return torch.cat([clean, _masked(block, ablated, ablated_z, *masks)]), masks


def _ablated_block(
    block: SelfAblatingBlock,
    ablated: Stream,
    clean_projections: Projections,
    attention_mask: Float[Tensor, "batch pos units"],
    neuron_mask: Float[Tensor, "batch pos neurons"],
) -> Stream:
    """One block on the ablated stream, over keys and values the clean pass has kept."""
    own = project(block, ablated)
    window = attention_window(block)
    z = ablated_attention(own, clean_projections, attention_scale(block), window)
    return _masked(block, ablated, z, attention_mask, neuron_mask)


def project(block: TransformerBlock, stream: Stream) -> Projections:
    """Q, K and V, side by side, as one product; each query head with its key and value.

    With rotary positions queries and keys are rotated.
    """
    weights, biases = projection_weights(block)
    weight = torch.cat(weights)  # (heads and groups, d_model, d_head)
    heads, d_model, d_head = weight.shape
    flat = weight.transpose(1, 2).reshape(heads * d_head, d_model)
    product = F.linear(normalise(block.ln1, stream), flat, torch.cat(biases).flatten())
    product = product.view(*product.shape[:2], heads, d_head)
    if not is_rotary(block) and len(weights[0]) == len(weights[1]):
        separate: Tensor = product.unflatten(2, (3, heads // 3))
        return separate
    return _positioned(block, product, [len(one) for one in weights])


def _positioned(
    block: TransformerBlock,
    product: Float[Tensor, "rows pos heads_and_groups d_head"],
    sizes: list[int],
) -> Projections:
    """Queries and keys normed and rotated as the model has it, then a key for each query head."""
    queries, keys, values = product.split(sizes, dim=2)
    queries, keys = normed_heads(block, queries, keys)
    if is_rotary(block):
        rotate = cast(Any, block.attn).apply_rotary
        queries, keys = rotate(queries).to(values.dtype), rotate(keys).to(values.dtype)
    keys, values = (for_each_query_head(block, groups) for groups in (keys, values))
    return torch.stack([queries.to(values.dtype), keys.to(values.dtype), values], dim=2)


def _attention_output(block: TransformerBlock, z: Tensor) -> Tensor:
    output = block.attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
    return F.linear(z, output.T, block.attn.b_O)


def _neurons(block: TransformerBlock, stream: Tensor) -> Tensor:
    """Values of a block's neurons, as W_out reads them, from the stream that the MLP reads."""
    mlp = cast(Any, block.mlp)
    normed, act = normalise(block.ln2, stream), ACTIVATIONS[str(block.cfg.act_fn)]
    if block.cfg.gated_mlp:
        gate = act(F.linear(normed, mlp.W_gate.T))
        post: Tensor = gate * F.linear(normed, mlp.W_in.T) + mlp.b_in
        return post
    return act(F.linear(normed, mlp.W_in.T, mlp.b_in))


def _mlp_output(block: TransformerBlock, post: Tensor) -> Tensor:
    mlp = cast(Any, block.mlp)
    return F.linear(post, mlp.W_out.T, mlp.b_out)


def _after_mlp(block: TransformerBlock, before: Tensor, middle: Tensor) -> Tensor:
    """The stream after a block, from the stream before it and that after its attention."""
    read = before if is_parallel(block) else middle
    return middle + _mlp_output(block, _neurons(block, read))


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
        middle = ablated + winners_linear(z, coordinates, output, attn.b_O)
    else:
        middle = ablated + _attention_output(block, z * coordinates)
    read = ablated if is_parallel(block) else middle
    if not is_sparse(ablation, ablation.k_neurons, neuron_mask, read):
        return middle + _mlp_output(block, _neurons(block, read) * neuron_mask)
    if block.cfg.gated_mlp or ACTIVATIONS[str(block.cfg.act_fn)] is not _gelu_new:
        post = _neurons(block, read)
        return middle + winners_linear(post, neuron_mask, mlp.W_out, mlp.b_out)
    weights = (mlp.W_in, mlp.b_in, mlp.W_out, mlp.b_out)
    return middle + winners_mlp(normalise(block.ln2, read), neuron_mask, *weights)
