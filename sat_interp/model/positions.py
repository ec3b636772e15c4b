"""Tokens read at positions other than 0, 1, 2, ...: hooks that move them, for any model.

A model places the tokens of a row at positions 0, 1, 2, .... With these hooks token i of row r is
at ``positions[r, i]`` instead: a few tokens of a long text, and the token that begins it, can be
read where they stand in the text, with nothing else in attention. The result is what the model
computes of the whole text when the keys of all other tokens are masked. For each way of encoding
positions:

- learned, sinusoidal, shortformer: the embeddings of these positions take the place of the first
  ones, at ``hook_pos_embed``;
- rotary: queries and keys are turned on by the difference, at ``hook_rot_q`` and ``hook_rot_k``.
  Only distances count, so moving tokens by the same amount changes nothing: a window of consecutive
  tokens differs only in how far the token that begins the text is from it;
- ALiBi: the bias of the difference is added, at ``hook_attn_scores``;
- a model with ``hook_positions`` takes the positions themselves there;
- local attention: what is farther away than the layer's window is masked, at ``hook_attn_scores``.

Two options of TransformerLens are left as they are, since they depend on the length of the whole
row and not on positions alone: the widening of the rotary base and the scaling of queries in texts
longer than the training length (``use_dynamic_ntk_rope`` and ``use_logn_attn``, both of Qwen 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sat_interp._util.errors import UserError

POSITIONS = "hook_positions"
"""Hook point of a model that is given positions, where one has it."""

Positions = Int[Tensor, "batch pos"]
Hook = tuple[str | Callable[..., Any], Callable[..., Any]]


def position_hooks(model: HookedTransformer, positions: Positions, n_layers: int) -> list[Hook]:
    """Return the forward hooks with which the tokens of a row are read at ``positions``.

    Args:
        positions: below ``n_ctx``, increasing in each row.
        n_layers: how many of the model's blocks will run.

    Raises:
        UserError: the model encodes positions in another way than those above.
    """
    if POSITIONS in model.hook_dict:
        return [(POSITIONS, lambda value, hook: positions)]
    kind = model.cfg.positional_embedding_type
    hooks: list[Hook] = []
    if kind in ("standard", "shortformer"):
        hooks.append(("hook_pos_embed", _embeddings(model, positions)))
    elif kind not in ("rotary", "alibi"):
        raise UserError(f"windows cannot be read at their own positions with {kind} positions")
    for layer in range(n_layers):
        own = _of_attention(model, layer, kind, positions)
        for stream in ("", "ablated."):  # the ablated stream has points of its own
            named = [(f"blocks.{layer}.{stream}attn.{point}", hook) for point, hook in own]
            hooks += [(name, hook) for name, hook in named if name in model.hook_dict]
    return hooks


def _of_attention(
    model: HookedTransformer, layer: int, kind: str, positions: Positions
) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks of one layer's attention, each with the name of its point there."""
    attention = model.blocks[layer].attn
    hooks: list[tuple[str, Callable[..., Any]]] = []
    if kind == "rotary":
        turn = _turned(attention, positions)
        hooks += [("hook_rot_q", turn), ("hook_rot_k", turn)]
    elif kind == "alibi":
        hooks.append(("hook_attn_scores", _biased(attention, positions)))
    if attention.attn_type == "local":
        window = int(model.cfg.window_size or 0)
        hooks.append(("hook_attn_scores", _masked(window, positions)))
    return hooks


def _embeddings(model: HookedTransformer, positions: Positions) -> Callable[..., Tensor]:
    def replace(value: Tensor, hook: Any) -> Tensor:
        return model.pos_embed.W_pos[positions].to(value)

    return replace


def _turned(attention: Any, positions: Positions) -> Callable[..., Tensor]:
    """Turn queries or keys on from their place in the row to their position."""

    def turn(
        value: Float[Tensor, "batch pos heads d_head"], hook: Any
    ) -> Float[Tensor, "batch pos heads d_head"]:
        difference = positions - torch.arange(positions.shape[1], device=positions.device)
        farthest = int(difference.max())
        if farthest >= len(attention.rotary_cos):  # the table grows when it is asked for more
            attention.apply_rotary(value[:1, :1], past_kv_pos_offset=farthest)
        scale = attention.rotary_cos[0]  # not 1 with YaRN, and in the value already
        cosine = (attention.rotary_cos[difference] / scale)[:, :, None].to(value)
        sine = (attention.rotary_sin[difference] / scale)[:, :, None].to(value)
        dim = cosine.shape[-1]
        turning, rest = value[..., :dim], value[..., dim:]
        turned = turning * cosine + attention.rotate_every_two(turning) * sine
        return torch.cat([turned, rest], dim=-1)

    return turn


def _biased(attention: Any, positions: Positions) -> Callable[..., Tensor]:
    """Add ALiBi's bias of the positions less that of the places in the row."""

    def add(
        value: Float[Tensor, "batch heads query key"], hook: Any
    ) -> Float[Tensor, "batch heads query key"]:
        slopes = attention.create_alibi_multipliers(value.shape[1], value.device)
        places = torch.arange(positions.shape[1], device=positions.device)
        farther = _distances(positions) - _distances(places)
        bias: Tensor = slopes[:, None, None].to(value) * farther[:, None].to(value)
        return value - bias

    return add


def _masked(window: int, positions: Positions) -> Callable[..., Tensor]:
    """Mask keys outside a window of this many positions."""

    def mask(
        value: Float[Tensor, "batch heads query key"], hook: Any
    ) -> Float[Tensor, "batch heads query key"]:
        return value.masked_fill((_distances(positions) >= window)[:, None], -torch.inf)

    return mask


def _distances(positions: Int[Tensor, "*batch pos"]) -> Int[Tensor, "*batch pos pos"]:
    """How far key ``[..., j]`` is behind query ``[..., i]``."""
    return positions[..., :, None] - positions[..., None, :]
