"""The activation at one hook point, and the rest of the model from a replaced one.

On the clean stream of a ``SelfAblatingTransformer`` what follows is computed from the replaced
activation, by the steps of ``fast.py``, and not from the beginning. Any other HookedTransformer
goes through its own hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sat_interp.model import fast
from sat_interp.model.block import Stream, normalise

Activation = Float[Tensor, "batch pos *site"]


@dataclass(frozen=True)
class Splice:
    """A pass stopped at one hook point.

    Attributes:
        activation: value at the hook point, in TransformerLens' shape.
        finish: takes another activation of that shape and returns the clean states after the final
            LN, (batch, pos, d_model), as the model continues from it.
    """

    activation: Activation
    finish: Callable[[Tensor], Stream]


def splice(model: HookedTransformer, tokens: Int[Tensor, "batch pos"], hook_name: str) -> Splice:
    """The activation at one hook point, and the model from there on.

    Raises:
        UserError: a hook point the model does not have.
    """
    layer = fast.layer_of(model, hook_name)
    if not fast.has_sites(model, [hook_name]):
        return _hooked_splice(model, tokens, hook_name, layer)
    stop = hook_name.removeprefix(f"blocks.{layer}.")
    stream = fast.blocks_pass(model, fast.embed(model, tokens), range(layer))
    block, state = model.blocks[layer], {fast.RESIDUAL_IN: stream}
    next(site for site, _ in fast.steps(block, state) if site == stop)

    def finish(replacement: Tensor) -> Tensor:
        rest = {**state, stop: replacement.flatten(2) if stop == "attn.hook_z" else replacement}
        stream = dict(fast.steps(block, rest))[fast.RESIDUAL_OUT]
        stream = fast.blocks_pass(model, stream, range(layer + 1, model.cfg.n_layers))
        return normalise(model.ln_final, stream)

    return Splice(fast.with_heads(block, stop, state[stop]), finish)


def _hooked_splice(model: HookedTransformer, tokens: Tensor, hook_name: str, layer: int) -> Splice:
    """The same through TransformerLens' hooks, from the block of the hook point on.

    A model with ``begins_with_tokens`` cannot begin at a block: all of it is run again.
    """
    before = f"blocks.{layer}.hook_resid_pre"
    _, cache = model.run_with_cache(
        tokens, names_filter=[before, hook_name], stop_at_layer=layer + 1
    )

    whole = getattr(model, "begins_with_tokens", False)
    begin = {"input": tokens} if whole else {"input": cache[before], "start_at_layer": layer}

    def finish(replacement: Tensor) -> Tensor:
        states = model.run_with_hooks(
            **begin,
            stop_at_layer=model.cfg.n_layers,
            fwd_hooks=[(hook_name, lambda value, hook: replacement)],
        )
        assert isinstance(states, torch.Tensor)
        return model.ln_final(states) if hasattr(model, "ln_final") else states

    return Splice(cache[hook_name], finish)
