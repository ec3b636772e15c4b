"""Every stream a model has, by its fastest path, and what each token costs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sat_interp.model import unembedding
from sat_interp.model.transformer import SelfAblatingTransformer


class Stream(NamedTuple):
    """The state of one stream before the unembedding."""

    name: str
    states: Float[Tensor, "batch pos d_model"]


def token_losses(
    model: HookedTransformer,
    states: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Cross-entropy (nats) of each target given the state after the final LN.

    Bias and soft cap included; logits are made and dropped in blocks. No gradient, and hooks on the
    unembedding do not fire.
    """
    flat, b_U = states.flatten(0, 1), model.unembed.b_U
    soft_cap = model.cfg.output_logits_soft_cap
    losses = unembedding.token_losses(flat, model.W_U, targets.flatten(), b_U, soft_cap)
    return losses.view(targets.shape)


def streams(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Iterator[Stream]:
    """Every stream the model has, by its fastest path; both of a gated model in one pass."""
    if isinstance(model, SelfAblatingTransformer) and not model.weights_processed:
        if model.ablation.variant == "none":
            yield Stream("clean", model.fast_states(tokens))
        else:
            both = model.dual_states(tokens)
            yield Stream("clean", both.clean)
            yield Stream("ablated", both.ablated)
        return
    states = model(tokens, stop_at_layer=model.cfg.n_layers)
    yield Stream("clean", model.ln_final(states) if hasattr(model, "ln_final") else states)
