"""One block's attention, from the inputs of its destinations to the outputs of its heads.

Every shape that circuits cover: learned, rotary and ALiBi positions, windows, grouped keys and
values, norms of queries and keys (Qwen 3, Gemma 3), clipped projections (OLMo) and soft caps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.components import AbstractAttention

QUERIES, KEYS, VALUES = range(3)

Projected = Float[Tensor, "heads batch pos d_head"]
Scores = Float[Tensor, "*heads query key"]


def group_size(attn: AbstractAttention) -> int:
    """Return the number of heads that share keys and values; 1 without grouped queries."""
    groups = attn.cfg.n_key_value_heads
    return 1 if groups is None else attn.cfg.n_heads // groups


def heads(
    attn: AbstractAttention,
    queries: Float[Tensor, "#heads batch pos d_model"],
    keys: Float[Tensor, "groups batch pos d_model"],
    values: Float[Tensor, "groups batch pos d_model"],
) -> Float[Tensor, "heads batch pos d_model"]:
    """Return the output of each head, without the bias, for normalised inputs.

    Inputs of keys and values may be one for each head, one for each group or one for all.
    """
    q, k, v = (
        _expanded(attn, project(attn, part, x)) for part, x in enumerate((queries, keys, values))
    )
    scores = positioned(attn, q @ k.mT / attn.attn_scale)
    future = ~visible(q.shape[-2], window(attn), q.device)
    return _per_head(scores.masked_fill(future, -torch.inf).softmax(-1) @ v, attn.W_O)


def project(
    attn: AbstractAttention, part: int, read: Float[Tensor, "#heads batch pos d_model"]
) -> Projected:
    """Return queries, keys or values; those of one input for all are computed once for a group."""
    weights: Tensor = (attn.W_Q, attn.W_K, attn.W_V)[part]
    biases: Tensor = (attn.b_Q, attn.b_K, attn.b_V)[part]
    size = group_size(attn)
    if part != QUERIES and size > 1 and len(read) != attn.cfg.n_heads:
        weights, biases = weights[::size], biases[::size]
    return finished(attn, part, _per_head(read, weights) + biases[:, None, None])


def _per_head(
    read: Float[Tensor, "#heads batch pos width"], weights: Float[Tensor, "heads width out"]
) -> Float[Tensor, "heads batch pos out"]:
    """Return the products with each head's matrix.

    Over the tokens of all prompts together: for each prompt, matmul would copy the matrices.
    """
    rows = read.flatten(1, 2) @ weights
    products: Tensor = rows.unflatten(1, read.shape[1:3])
    return products


def finished(
    attn: AbstractAttention, part: int, projected: Projected, offset: int = 0
) -> Projected:
    """Return queries, keys or values with everything done between projection and scores.

    Args:
        attn: the attention of a block.
        part: ``QUERIES``, ``KEYS`` or ``VALUES``.
        projected: inputs times weights, biases added; the first of them at position ``offset``.
        offset: positions before the first.
    """
    if part != VALUES and attn.cfg.use_qk_norm:
        norm: Any = attn.q_norm if part == QUERIES else attn.k_norm
        projected = norm(projected.flatten(0, -2)).view_as(projected)
    if (most := attn.cfg.clip_qkv) is not None:
        projected = projected.clamp(-most, most)
    if part != VALUES and attn.cfg.positional_embedding_type == "rotary":
        rows = projected.flatten(0, 1)[:, :, None]
        projected = attn.apply_rotary(rows, offset)[:, :, 0].view_as(projected)
    return projected


def is_linear(attn: AbstractAttention) -> bool:
    """Return whether queries and keys are linear in the normalised input but for their position."""
    return not attn.cfg.use_qk_norm and attn.cfg.clip_qkv is None


def positioned(
    attn: AbstractAttention, scores: Scores, chosen: Sequence[int] | None = None
) -> Scores:
    """Return scaled scores with soft cap and ALiBi; queries are the last of the positions.

    Args:
        attn: the attention of a block.
        scores: scores of heads.
        chosen: the heads, by default all.
    """
    scores = capped(scores, attn.cfg.attn_scores_soft_cap)
    if attn.cfg.positional_embedding_type != "alibi":
        return scores
    n_queries, n_keys = scores.shape[-2:]
    bias = AbstractAttention.create_alibi_bias(attn.cfg.n_heads, n_keys, scores.device)
    bias = bias[:, n_keys - n_queries :].to(scores)
    bias = bias if chosen is None else bias[list(chosen)]
    return scores + bias.view(len(bias), *[1] * (scores.ndim - 3), n_queries, n_keys)


def capped(values: Float[Tensor, "*any"], cap: float | None) -> Float[Tensor, "*any"]:
    """Return values under a soft cap, cap tanh(value / cap); no positive cap changes nothing."""
    return values if cap is None or cap <= 0 else cap * torch.tanh(values / cap)


def window(attn: AbstractAttention) -> int | None:
    """Return the number of positions that a query attends to, its own included; None for all."""
    return attn.cfg.window_size if attn.attn_type == "local" else None


def visible(n: int, window: int | None, device: torch.device) -> Bool[Tensor, "query key"]:
    """Return the causal mask: a query attends to its own and earlier positions, in the window."""
    past = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    return past if window is None else past.triu(1 - window)


def _expanded(attn: AbstractAttention, projected: Tensor) -> Projected:
    """Repeat what a group has once for each of its heads."""
    repeats = attn.cfg.n_heads // len(projected)
    return projected if repeats == 1 else projected.repeat_interleave(repeats, 0)
