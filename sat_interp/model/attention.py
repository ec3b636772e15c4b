"""Attention of the ablated stream: earlier positions are read from the clean stream.

For query position i the keys and values of positions j < i come from the clean stream, those of
j = i from the ablated stream itself; one softmax runs over the mix. In a layer of local attention
positions j <= i - window are left out; the fused kernels do not cover a window.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sat_interp.model.kernels import kernel

Projections = Float[Tensor, "rows pos 3 heads d_head"]
Z = Float[Tensor, "rows pos units"]
Heads = Float[Tensor, "batch heads pos d_head"]


def causal_attention(clean: Projections, scale: float, window: int | None = None) -> Z:
    """Attention output z of an ordinary stream, from its queries, keys and values.

    Args:
        window: positions that a query sees, its own included; None for all before it.
    """
    n = clean.shape[1]
    if _is_cut(window, n):
        visible = ~_hidden(n, window, clean.device)
        z = F.scaled_dot_product_attention(*_heads(clean), attn_mask=visible, scale=scale)
        return z.transpose(1, 2).flatten(2)
    if (fused := _fused(clean, None, 1, scale)) is not None:
        return fused
    z = F.scaled_dot_product_attention(*_heads(clean), is_causal=True, scale=scale)
    return z.transpose(1, 2).flatten(2)


def joint_attention(both: Projections, scale: float, window: int | None = None) -> Z:
    """Attention output z of both streams at once, clean rows first in and out."""
    is_whole = not _is_cut(window, both.shape[1])
    if is_whole and (fused := _fused(both, None, 2, scale)) is not None:
        return fused
    clean, ablated = both.chunk(2)
    own = ablated_attention(ablated, clean, scale, window)
    return torch.cat([causal_attention(clean, scale, window), own])


def ablated_attention(
    ablated: Projections, clean: Projections, scale: float, window: int | None = None
) -> Z:
    """Attention output z of the ablated stream over projections that the clean pass has kept."""
    queries, own_keys, own_values = _heads(ablated)
    _, keys, values = _heads(clean)
    if _is_cut(window, ablated.shape[1]):
        pattern = mixed_scores(queries, keys, own_keys, scale, window).softmax(-1)
        z = mixed_values(pattern.to(values.dtype), values, own_values)
        return z.transpose(1, 2).flatten(2)
    if (fused := _fused(ablated, clean, 1, scale)) is not None:
        return fused
    z = mixed_attention(queries, keys, values, own_keys, own_values, scale)
    return z.transpose(1, 2).flatten(2)


def _is_cut(window: int | None, n: int) -> bool:
    """Whether a window hides anything among n positions."""
    return window is not None and window < n


def _hidden(n: int, window: int | None, device: torch.device) -> Bool[Tensor, "query key"]:
    """Which keys a query does not see: later ones, and those outside its window."""
    everything = torch.ones(n, n, dtype=torch.bool, device=device)
    future = everything.triu(1)
    return future if window is None else future | everything.tril(-window)


def _heads(projections: Projections) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values as (rows, heads, pos, d_head) views."""
    queries, keys, values = projections.permute(2, 0, 3, 1, 4)
    return queries, keys, values


def _fused(own: Projections, read: Projections | None, streams: int, scale: float) -> Z | None:
    """Attention output z by the device's kernel, computed in float32; None if there is none."""
    if (attention := kernel("attention", own)) is None:
        return None
    z: Tensor = attention(own.float(), None if read is None else read.float(), streams, scale)[0]
    return z.to(own.dtype).flatten(2)


def mixed_scores(
    queries: Heads,
    clean_keys: Heads,
    own_keys: Heads,
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Attention scores over the mix: clean keys below the diagonal, own keys on it, -inf above.

    Outside the window, where there is one, they are -inf too.
    """
    scores = queries @ clean_keys.transpose(-1, -2) * scale
    own = (queries * own_keys).sum(-1) * scale
    n = scores.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=scores.device)
    hidden = _hidden(n, window, scores.device)
    return torch.where(diagonal, own[..., None], scores).masked_fill(hidden, -torch.inf)


def mixed_values(
    pattern: Float[Tensor, "batch heads query key"], clean_values: Heads, own_values: Heads
) -> Heads:
    """z: the pattern's average of clean values of earlier positions and the own value."""
    own_weight = pattern.diagonal(dim1=-2, dim2=-1)[..., None]
    return pattern.tril(-1) @ clean_values + own_weight * own_values


def mixed_attention(
    queries: Heads,
    clean_keys: Heads,
    clean_values: Heads,
    own_keys: Heads,
    own_values: Heads,
    scale: float,
) -> Heads:
    """Attention output z of the ablated stream, by a fused kernel where there is one."""
    if (fused := kernel("mixed_attention", queries)) is not None:
        z: Tensor = fused(queries, clean_keys, clean_values, own_keys, own_values, scale)
        return z
    pattern = mixed_scores(queries, clean_keys, own_keys, scale).softmax(-1)
    return mixed_values(pattern.to(clean_values.dtype), clean_values, own_values)
