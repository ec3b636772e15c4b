"""Indirect-object identification: can the model do the task at all?

An edge count or a circuit of a model that sits at chance means nothing, so competence is measured
first (Wang et al. 2023, arXiv 2211.00593, section 2, for the task).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerBase

from sat_interp.data.stories import IOIPrompt
from sat_interp.data.tokenizer import END_OF_TEXT
from sat_interp.errors import UserError

_Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Competence:
    """How well a model tells the indirect object from the subject.

    Attributes:
        accuracy: share of prompts where the indirect object's logit is above the subject's; chance
            is 0.5.
        low, high: 95 % Wilson interval of the accuracy.
        top: share of prompts where the indirect object has the highest logit of all.
        logit_difference: mean of logit(IO) - logit(S), in nats.
        n: prompts scored.
        n_left_out: prompts with a name that is not one token, by the model's tokenizer.
    """

    accuracy: float
    low: float
    high: float
    top: float
    logit_difference: float
    n: int
    n_left_out: int


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson 1927): honest near 0 and 1.

    With p = successes / n and z the normal quantile, centre (p + z^2/2n) / (1 + z^2/n) and half
    width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    """
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def competence(
    model: HookedTransformer, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[IOIPrompt]
) -> Competence:
    """Score prompts on the clean stream, each after the end-of-text token, as stories begin.

    Prompts of one length go through together, so nothing is padded.

    Raises:
        UserError: no prompt whose two names are one token each.
    """
    start = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    by_length: dict[int, list[tuple[list[int], int, int]]] = {}
    n_left_out = 0
    for prompt in prompts:
        right, wrong = (tokenizer.encode(f" {name}") for name in (prompt.io, prompt.s))
        if len(right) != 1 or len(wrong) != 1:
            n_left_out += 1
            continue
        ids = [start, *tokenizer.encode(prompt.text)]
        by_length.setdefault(len(ids), []).append((ids, right[0], wrong[0]))
    if not by_length:
        raise UserError("no IOI prompt's names are single tokens of this model's tokenizer")
    differences, at_top = [], []
    with torch.inference_mode():
        for batch in by_length.values():
            tokens, right, wrong = (torch.tensor(part) for part in zip(*batch, strict=True))
            logits = model(tokens.to(model.cfg.device), return_type="logits")[:, -1].cpu()
            rows = torch.arange(len(batch))
            differences.append(logits[rows, right] - logits[rows, wrong])
            at_top.append(logits.argmax(-1) == right)
    difference, top = torch.cat(differences).double(), torch.cat(at_top).double()
    n, successes = len(difference), int((difference > 0).sum())
    low, high = wilson(successes, n)
    return Competence(
        accuracy=successes / n, low=low, high=high, top=float(top.mean()),
        logit_difference=float(difference.mean()), n=n, n_left_out=n_left_out,
    )  # fmt: skip
