"""The streams of a model, by its fastest path, and the loss of each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sat_interp.model import unembedding
from sat_interp.model.transformer import SelfAblatingTransformer, tokens_at_once


class Stream(NamedTuple):
    """The state of one stream before the unembedding."""

    name: str
    states: Float[Tensor, "batch pos d_model"]


def token_losses(
    model: HookedTransformer,
    states: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Return the cross-entropy (nats) of each target given the state after the final LN.

    Bias and soft cap are included. Logits are computed in blocks and not kept; there is no
    gradient, and hooks on the unembedding do not fire.
    """
    flat, bias = states.flatten(0, 1), model.unembed.b_U
    soft_cap = model.cfg.output_logits_soft_cap
    losses = unembedding.token_losses(flat, model.W_U, targets.flatten(), bias, soft_cap)
    return losses.view(targets.shape)


def streams(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Iterator[Stream]:
    """Yield every stream of the model by its fastest path; both of a gated model in one pass."""
    if isinstance(model, SelfAblatingTransformer) and not model.weights_processed:
        if model.ablation.variant == "none":
            yield Stream("clean", model.fast_states(tokens))
        else:
            rows = max(1, tokens_at_once(model) // tokens.shape[1])
            parts = [_both(model, some) for some in tokens.split(rows)]
            for name, states in zip(("clean", "ablated"), zip(*parts, strict=True), strict=True):
                yield Stream(name, torch.cat(states))
        return
    states = model(tokens, stop_at_layer=model.cfg.n_layers)
    yield Stream("clean", model.ln_final(states) if hasattr(model, "ln_final") else states)


def _both(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[Tensor, Tensor]:
    """States of the clean and of the ablated stream; masks and layers are dropped."""
    both = model.dual_states(tokens)
    return both.clean, both.ablated
