"""Whole stories in batches for evaluation: every story from its beginning, and no padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sat_interp._util.errors import UserError
from sat_interp.data.corpus import TokenCorpus


@dataclass(frozen=True)
class StoryBatch:
    """Stories of equal length.

    Attributes:
        tokens: the token before a story, the story, end-of-text, cut at n_ctx + 1. Inputs are
            ``tokens[:, :-1]``, targets ``tokens[:, 1:]``.
        index: which stories of the corpus they are.
    """

    tokens: Int64[Tensor, "batch pos"]
    index: Int64[Tensor, "batch"]


def story_batches(
    corpus: TokenCorpus, n_ctx: int, tokens_per_batch: int = 16_384, bos: int | None = None
) -> Iterator[StoryBatch]:
    """Every story of the corpus once, short ones first, each batch of one length.

    A batch holds at most ``tokens_per_batch`` tokens (one story where that is longer). Each story
    is preceded by ``bos``, by default the token that begins the corpus' stories, closed by the
    end-of-text token and cut at n_ctx + 1 tokens: n_ctx inputs and their n_ctx targets. Tokens
    that are cut off are not scored; ``cut_tokens`` counts them.

    Raises:
        UserError: ``n_ctx`` or ``tokens_per_batch`` is under 1.
    """
    if n_ctx < 1 or tokens_per_batch < 1:
        raise UserError("stories need a context and a batch of at least one token")
    lengths = np.minimum(_full_lengths(corpus), n_ctx + 1)
    order = np.argsort(lengths, kind="stable")
    edges = np.flatnonzero(np.diff(lengths[order])) + 1
    for group in np.split(order, edges):
        length = int(lengths[group[0]])
        rows = max(1, tokens_per_batch // length)
        for start in range(0, len(group), rows):
            index = group[start : start + rows]
            tokens = _gather(corpus, index, length, bos)
            yield StoryBatch(tokens, torch.from_numpy(index))


def cut_tokens(corpus: TokenCorpus, n_ctx: int) -> np.ndarray:
    """Count the targets of each story beyond ``n_ctx`` inputs: int64 (n_stories)."""
    cut: np.ndarray = np.maximum(_full_lengths(corpus) - (n_ctx + 1), 0)
    return cut


def _full_lengths(corpus: TokenCorpus) -> np.ndarray:
    return np.diff(corpus.offsets) + 1  # offsets count the closing token, not the first one


def _gather(
    corpus: TokenCorpus, index: np.ndarray, length: int, bos: int | None
) -> Int64[Tensor, "batch pos"]:
    tokens = np.empty((len(index), length), dtype=np.int64)
    tokens[:, 0] = corpus.first_tokens(index) if bos is None else bos
    tokens[:, 1:] = corpus.tokens[corpus.offsets[index][:, None] + np.arange(length - 1)]
    return torch.from_numpy(tokens)
