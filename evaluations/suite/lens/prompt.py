"""The lenses applied to one prompt: the top token of each lens at each layer and position."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evaluations.core.ablation_pass import passes
from evaluations.core.text import Text
from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.lenses import Lenses
from evaluations.suite.lens.measure import bank_rows
from sat_interp._util.errors import UserError, shown

SHOWN = 12
"""Tokens of a prompt that is none of the user's."""


def prompt_tokens(ending: Ending, text: Text, prompt: str) -> Int[Tensor, " pos"]:
    """Return the tokens of a prompt, the one that begins stories before them.

    Raises:
        UserError: the prompt is empty, longer than the context, or has tokens the model lacks.
    """
    cfg, tokenizer = ending.model.cfg, text.tokenizer
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    if not ids:
        raise UserError(f"the prompt {shown(prompt)} has no tokens")
    if len(ids) + 1 > int(cfg.n_ctx):
        raise UserError(
            f"the prompt has {len(ids) + 1} tokens, its beginning included; the model reads "
            f"{int(cfg.n_ctx)}"
        )
    if max(ids) >= int(cfg.d_vocab):
        raise UserError(f"the prompt has token number {max(ids):,}, which the model does not know")
    return torch.tensor([text.start, *ids])


def read_prompt(
    ending: Ending, lenses: Lenses, text: Text, tokens: Int[Tensor, " pos"], seed: int
) -> dict[str, Any]:
    """Return tokens, the model's top prediction, and that of each lens at each layer.

    Of each prediction the token, its probability, and the KL of the model's from the lens's.
    """
    with torch.no_grad():
        found = passes(ending.model).streams(tokens[None].to(ending.model.W_E.device))
        streams = [stream[0] for stream in found]
        target = ending.log_probs(streams[-1])
        p = target.exp()
        partners = bank_rows(lenses, len(tokens), seed)
        by_lens = {}
        for kind in lenses.kinds:
            layers = []
            for layer in range(ending.n_layers):
                end = lenses.end(ending, kind, layer, streams[layer], partners)
                log_q = ending.log_probs(end)
                kl = (p * (target - log_q)).sum(-1)
                layers.append({**_top(log_q, text.tokenizer), "kl": kl.tolist()})
            by_lens[kind] = layers
    words = [_word(text.tokenizer, token) for token in tokens.tolist()]
    return {"tokens": words, "model": _top(target, text.tokenizer), "lenses": by_lens}


def _top(log_probs: Tensor, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Any]]:
    value, token = log_probs.max(-1)
    return {
        "top": [_word(tokenizer, one) for one in token.tolist()],
        "p": value.exp().tolist(),
    }


def _word(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    return str(tokenizer.decode([token]))
