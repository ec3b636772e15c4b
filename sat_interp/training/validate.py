"""Validation: mean next-token loss of both streams over every story of the split."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch

from sat_interp.data.batches import story_batches
from sat_interp.data.corpus import TokenCorpus
from sat_interp.model.transformer import SelfAblatingTransformer, tokens_at_once
from sat_interp.model.unembedding import token_losses
from sat_interp.training.distributed import Processes

MOST_TOKENS = 16_384
"""Of a batch."""


class Validation(NamedTuple):
    """Mean cross-entropy per token, in nats; perplexity is its exponential."""

    clean: float
    ablated: float | None
    tokens: int


def validate(
    model: SelfAblatingTransformer, corpus: TokenCorpus, processes: Processes, seed: int = 0
) -> Validation:
    """Loss of both streams over the whole split: every story once, from its beginning.

    Each token of a story and its closing end-of-text token is predicted from all before it; what
    lies beyond n_ctx is not scored. Products are in the weights' own precision. The processes
    share the stories out; ``seed`` decides random gates.
    """
    was_training = model.training
    model.eval()
    torch.manual_seed(seed)
    sums = torch.zeros(3, dtype=torch.float64, device=processes.device)
    b_U = model.unembed.b_U
    batches = story_batches(corpus, model.cfg.n_ctx, min(MOST_TOKENS, tokens_at_once(model)))
    with torch.no_grad():
        for batch in islice(batches, processes.rank, None, processes.world):
            tokens = batch.tokens.to(processes.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
            if model.ablation.is_gated:
                states = model.dual_states(inputs, "fast")
                ablated = token_losses(states.ablated.flatten(0, 1), model.W_U, targets, b_U)
                sums[1] += ablated.double().sum()
                clean_states = states.clean
            else:
                clean_states = model.fast_states(inputs)
            clean = token_losses(clean_states.flatten(0, 1), model.W_U, targets, b_U)
            sums[0] += clean.double().sum()
            sums[2] += len(targets)
    model.train(was_training)
    clean_sum, ablated_sum, tokens = processes.total(sums).tolist()
    return Validation(
        clean_sum / tokens, ablated_sum / tokens if model.ablation.is_gated else None, int(tokens)
    )
