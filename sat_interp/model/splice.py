"""Activations at hook points without hooks, and the rest of the model from a replaced one.

On the clean stream of a ``SelfAblatingTransformer`` a block is seven steps, each a hook point of
TransformerLens' own name, computed by the same fused operations as ``fast.py``. A pass
stops at the last hook point that is asked for; what follows a replaced activation is computed from
there, not from the beginning. Any other HookedTransformer goes through its own hooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, TransformerBlock

from sat_interp._util.errors import UserError, suggest
from sat_interp.model import fast
from sat_interp.model.attention import causal_attention
from sat_interp.model.block import Stream, attention_scale, layer_norm
from sat_interp.model.positions import position_hooks
from sat_interp.model.transformer import SelfAblatingTransformer

Activation = Float[Tensor, "batch pos *site"]

# Hook points that are no vector of one position, or are read as one but decide nothing by it.
_NO_VECTORS = ("hook_scale", "hook_attn_scores", "hook_pattern", "hook_result")


@dataclass(frozen=True)
class Splice:
    """A pass stopped at one hook point.

    Attributes:
        activation: what stands at the hook point, in TransformerLens' shape.
        finish: takes another activation of that shape and returns the clean states after the final
            LN, (batch, pos, d_model), as the model goes on from it.
    """

    activation: Activation
    finish: Callable[[Tensor], Stream]


def fast_activations(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    hook_names: Sequence[str],
    positions: Int[Tensor, "batch pos"] | None = None,
) -> dict[str, Tensor]:
    """What ``run_with_cache`` would hold at these hook points; nothing after the last is computed.

    Args:
        positions: of the tokens, where they are not 0, 1, 2, ... (see ``positions.py``).

    Raises:
        UserError: a hook point the model does not have; positions it cannot be given.
    """
    layers = [layer_of(model, name) for name in hook_names]
    if not _is_fast(model, hook_names):
        stop = max(layers) + 1
        moved = [] if positions is None else position_hooks(model, positions, stop)
        with model.hooks(fwd_hooks=moved):
            _, cache = model.run_with_cache(
                tokens, names_filter=list(hook_names), stop_at_layer=stop
            )
        return {name: cache[name] for name in hook_names}
    found: dict[str, Tensor] = {}
    stream, wanted = fast.embed(model, tokens, positions), set(hook_names)
    for layer in range(max(layers) + 1):
        block = model.blocks[layer]
        state = {_RESIDUAL_IN: stream}
        for site in _SITES:
            name = f"blocks.{layer}.{site}"
            state[site] = _step(block, site, state)
            if name in wanted:
                found[name] = _outward(block, site, state[site])
            if len(found) == len(wanted):
                return found
        stream = state[_RESIDUAL_OUT]
    return found


def splice(model: HookedTransformer, tokens: Int[Tensor, "batch pos"], hook_name: str) -> Splice:
    """The activation at one hook point, and the model from there on.

    Raises:
        UserError: a hook point the model does not have.
    """
    layer = layer_of(model, hook_name)
    if not _is_fast(model, [hook_name]):
        return _hooked_splice(model, tokens, hook_name, layer)
    stop = hook_name.removeprefix(f"blocks.{layer}.")
    stream = fast.embed(model, tokens)
    for before in range(layer):
        stream = _block(model.blocks[before], stream)
    block = model.blocks[layer]
    state = {_RESIDUAL_IN: stream}
    place = _SITES.index(stop)
    for site in _SITES[: place + 1]:
        state[site] = _step(block, site, state)

    def finish(replacement: Tensor) -> Tensor:
        rest = {**state, stop: _inward(stop, replacement)}
        for site in _SITES[place + 1 :]:
            rest[site] = _step(block, site, rest)
        stream = rest[_RESIDUAL_OUT]
        for after in range(layer + 1, model.cfg.n_layers):
            stream = _block(model.blocks[after], stream)
        return layer_norm(model.ln_final, stream)

    return Splice(_outward(block, stop, state[stop]), finish)


def layer_of(model: HookedTransformer, hook_name: str) -> int:
    """The block a hook point lies in.

    Raises:
        UserError: the model has no such hook point, or it is none whose value is a vector for each
            position (or one for each position and head).
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if found is None or hook_name not in model.hook_dict or not _is_vector(hook_name):
        known = [one for one in model.hook_dict if one.startswith("blocks.") and _is_vector(one)]
        near = suggest("hook point", hook_name, known)
        raise UserError(f"{near} (the model has blocks 0 to {model.cfg.n_layers - 1})")
    return int(found[1])


def _is_vector(name: str) -> bool:
    ours = ".ablated." in name or ".gates." in name  # of the other stream
    return not name.endswith(_NO_VECTORS) and not ours


def _is_fast(model: HookedTransformer, hook_names: Sequence[str]) -> bool:
    sites = [re.sub(r"^blocks\.\d+\.", "", name) for name in hook_names]
    return (
        isinstance(model, SelfAblatingTransformer)
        and not model.weights_processed
        and set(sites) <= set(_SITES)
    )


# The seven steps of a block, in order. Each reads what those before it left.

_RESIDUAL_IN, _RESIDUAL_OUT = "hook_resid_pre", "hook_resid_post"
_SITES = (
    "hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
    "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip


def _step(block: TransformerBlock, site: str, state: dict[str, Tensor]) -> Tensor:
    """The value at ``site``; z is held as W_O reads it, its heads side by side."""
    if site == "hook_resid_pre":
        return state["hook_resid_pre"]
    if site == "attn.hook_z":
        projections = fast.project(block, state["hook_resid_pre"])
        return causal_attention(projections, attention_scale(block))
    if site == "hook_attn_out":
        output = block.attn.W_O.flatten(0, 1)  # (heads * d_head, d_model)
        return F.linear(state["attn.hook_z"], output.T, block.attn.b_O)
    if site == "hook_resid_mid":
        return state["hook_resid_pre"] + state["hook_attn_out"]
    mlp = cast(MLP, block.mlp)
    if site == "mlp.hook_post":
        normed = layer_norm(block.ln2, state["hook_resid_mid"])
        pre = F.linear(normed, mlp.W_in.T, mlp.b_in)
        return fast.ACTIVATIONS[block.cfg.act_fn](pre)
    if site == "hook_mlp_out":
        return F.linear(state["mlp.hook_post"], mlp.W_out.T, mlp.b_out)
    return state["hook_resid_mid"] + state["hook_mlp_out"]


def _block(block: TransformerBlock, stream: Stream) -> Stream:
    state = {_RESIDUAL_IN: stream}
    for site in _SITES:
        state[site] = _step(block, site, state)
    return state[_RESIDUAL_OUT]


def _outward(block: TransformerBlock, site: str, value: Tensor) -> Tensor:
    """In TransformerLens' shape: z has an axis for the heads."""
    heads, d_head = block.attn.W_O.shape[:2]
    return value.unflatten(-1, (heads, d_head)) if site == "attn.hook_z" else value


def _inward(site: str, value: Tensor) -> Tensor:
    return value.flatten(2) if site == "attn.hook_z" else value


def _hooked_splice(model: HookedTransformer, tokens: Tensor, hook_name: str, layer: int) -> Splice:
    """The same through TransformerLens' hooks, from the block of the hook point on."""
    before = f"blocks.{layer}.hook_resid_pre"
    _, cache = model.run_with_cache(
        tokens, names_filter=[before, hook_name], stop_at_layer=layer + 1
    )

    def finish(replacement: Tensor) -> Tensor:
        states = model.run_with_hooks(
            cache[before],
            start_at_layer=layer,
            stop_at_layer=model.cfg.n_layers,
            fwd_hooks=[(hook_name, lambda value, hook: replacement)],
        )
        assert isinstance(states, torch.Tensor)
        return model.ln_final(states) if hasattr(model, "ln_final") else states

    return Splice(cache[hook_name], finish)
