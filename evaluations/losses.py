"""Every stream a model has, by its fastest path, and what each token costs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.utilities.activation_functions import apply_softcap

from sat_interp.transformer import SelfAblatingTransformer

# Logits held at once: 2^24 float32 entries are 64 MiB, however large batch or vocabulary are.
LOGITS = 1 << 24


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

    The unembedding is TransformerLens' own, bias and soft cap included; logits are made and dropped
    in chunks.
    """
    flat, wanted = states.flatten(0, 1), targets.flatten()
    rows = max(1, LOGITS // model.cfg.d_vocab_out)
    chunks = []
    for first in range(0, len(flat), rows):
        logits = model.unembed(flat[None, first : first + rows])[0]
        logits = apply_softcap(logits, model.cfg.output_logits_soft_cap)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        chunks.append(F.cross_entropy(logits, wanted[first : first + rows], reduction="none"))
    return torch.cat(chunks).view(targets.shape)


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
