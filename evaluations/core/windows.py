"""Windows of text: the beginning of each story, some to fit on and others to measure on."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from evaluations.core.text import Text
from sat_interp._util.errors import UserError

LEAST = 8
"""Fewest prompts or windows that anything is fitted or measured on."""


@dataclass(frozen=True)
class Windows:
    """Windows of one side.

    Attributes:
        tokens: a row for each story: the token before it and its first ones.
        left_out: stories of the text that are too short, or begin like an earlier one.
    """

    tokens: Int[Tensor, "windows pos"]
    left_out: int

    def __len__(self) -> int:
        return len(self.tokens)


def split_windows(
    text: Text, n_fit: int, n_held: int, window: int, seed: str
) -> tuple[Windows, Windows]:
    """Return windows to fit on and windows of other stories to measure on.

    Where there are too few stories for both, they are divided in the ratio asked for.

    Args:
        window: tokens of each, the one before the story included.
        seed: decides which stories are on which side.

    Raises:
        UserError: too few stories are long enough.
    """
    rows: dict[tuple[int, ...], None] = {}
    for story in range(len(text)):
        tokens = np.asarray(text.corpus.story(story))[: window - 1].tolist()
        if len(tokens) == window - 1:
            rows.setdefault((text.start, *tokens))
    chosen = list(rows)
    if len(chosen) < 2 * LEAST:
        raise UserError(
            f"{len(chosen)} different stories have {window - 1} tokens or more, too few to fit "
            f"constants on some and measure them on others; it takes {2 * LEAST}: try --window"
        )
    left_out = len(text) - len(chosen)
    random.Random(seed).shuffle(chosen)
    n_held = min(n_held, max(LEAST, round(len(chosen) * n_held / (n_fit + n_held))))
    held, fit = chosen[:n_held], chosen[n_held : n_held + n_fit]
    assert not set(fit) & set(held)
    return Windows(torch.tensor(fit), left_out), Windows(torch.tensor(held), left_out)
