"""Attention of the ablated stream: earlier positions are read from the clean stream.

For query position i the keys and values of positions j < i come from the clean stream, those of
j = i from the ablated stream itself; one softmax runs over the mix.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sat_interp.model.kernels import cpu as native

Projections = Float[Tensor, "rows pos 3 heads d_head"]
Z = Float[Tensor, "rows pos units"]
Heads = Float[Tensor, "batch heads pos d_head"]


def causal_attention(clean: Projections, scale: float) -> Z:
    """z of an ordinary stream, from its queries, keys and values."""
    if _is_native(clean):
        return _native(clean, None, 1, scale)
    z = F.scaled_dot_product_attention(*_heads(clean), is_causal=True, scale=scale)
    return z.transpose(1, 2).flatten(2)


def joint_attention(both: Projections, scale: float) -> Z:
    """z of both streams at once, clean rows first in and out."""
    if _is_native(both):
        return _native(both, None, 2, scale)
    clean, ablated = both.chunk(2)
    return torch.cat([causal_attention(clean, scale), ablated_attention(ablated, clean, scale)])


def ablated_attention(ablated: Projections, clean: Projections, scale: float) -> Z:
    """z of the ablated stream over projections that the clean pass has kept."""
    if _is_native(ablated):
        return _native(ablated, clean, 1, scale)
    queries, own_keys, own_values = _heads(ablated)
    _, keys, values = _heads(clean)
    z = mixed_attention(queries, keys, values, own_keys, own_values, scale)
    return z.transpose(1, 2).flatten(2)


def _heads(projections: Projections) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values as (rows, heads, pos, d_head) views."""
    queries, keys, values = projections.permute(2, 0, 3, 1, 4)
    return queries, keys, values


def _is_native(projections: Tensor) -> bool:
    """Whether the kernel takes them; bfloat16 goes through it in float32, as sums should."""
    return projections.shape[-1] in native.D_HEADS and native.takes(projections)


def _native(own: Tensor, read: Tensor | None, streams: int, scale: float) -> Tensor:
    past = None if read is None else read.float()
    z, _ = native.attention(own.float(), past, streams, scale)
    return z.to(own.dtype).flatten(2)


def mixed_scores(
    queries: Heads, clean_keys: Heads, own_keys: Heads, scale: float
) -> Float[Tensor, "batch heads query key"]:
    """Attention scores over the mix: clean keys below the diagonal, own keys on it, -inf above."""
    scores = queries @ clean_keys.transpose(-1, -2) * scale
    own = (queries * own_keys).sum(-1) * scale
    n = scores.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=scores.device)
    future = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
    return torch.where(diagonal, own[..., None], scores).masked_fill(future, -torch.inf)


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
    """z of the ablated stream, without holding the pattern where a fused kernel is at hand."""
    if queries.device.type == "cpu" and queries.shape[-2] > 1:
        z: Tensor = _FlashMixedAttention.apply(
            queries, clean_keys, clean_values, own_keys, own_values, scale
        )
        return z
    pattern = mixed_scores(queries, clean_keys, own_keys, scale).softmax(-1)
    return mixed_values(pattern.to(clean_values.dtype), clean_values, own_values)


class _FlashMixedAttention(torch.autograd.Function):
    """Flash attention over the strict past, merged with the position's own key and value.

    Dropping the first query and the last key turns the kernel's causal mask (j <= i) into the
    strict one (j < i). The kernel returns the log-sum-exp of its scores, so the own score s joins
    the softmax exactly: lse' = logaddexp(lse, s), z = e^(lse-lse') z_past + e^(s-lse') v_own.
    The kernel's backward recomputes the pattern as exp(scores - lse) and needs only
    rowsum(dz * z) beside it: handed the merged z and lse', it returns the exact gradients of the
    past's share, and the own share is four elementwise products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        clean_keys: Tensor,
        clean_values: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        scale: float,
    ) -> Tensor:
        own_score = (queries * own_keys).sum(-1).to(_accumulator(queries)) * scale
        past, past_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[..., 1:, :], clean_keys[..., :-1, :], clean_values[..., :-1, :],
            is_causal=True, scale=scale,
        )  # fmt: skip
        lse = own_score.clone()
        lse[..., 1:] = torch.logaddexp(past_lse, own_score[..., 1:])
        own_weight = (own_score - lse).exp()
        z = own_weight[..., None] * own_values
        z[..., 1:, :] += (past_lse - lse[..., 1:]).exp()[..., None] * past
        z = z.to(queries.dtype)
        ctx.save_for_backward(
            queries, clean_keys, clean_values, own_keys, own_values, z, lse, own_weight
        )
        ctx.scale = scale
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, clean_keys, clean_values, own_keys, own_values, z, lse, own_weight = (
            ctx.saved_tensors
        )
        grad_past_queries, grad_past_keys, grad_past_values = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[..., 1:, :].contiguous(), queries[..., 1:, :], clean_keys[..., :-1, :],
                clean_values[..., :-1, :], z[..., 1:, :], lse[..., 1:].contiguous(), 0.0, True,
                scale=ctx.scale,
            )
        )  # fmt: skip
        weight = own_weight[..., None]
        pull = (grad * (own_values - z)).sum(-1, keepdim=True)  # d own_score, before its weight
        grad_score = weight * pull * ctx.scale
        grad_queries = grad_score * own_keys
        grad_queries[..., 1:, :] += grad_past_queries
        pad = (0, 0, 0, 1)  # the last position is in nobody's past
        return (
            grad_queries.to(queries.dtype),
            torch.nn.functional.pad(grad_past_keys, pad).to(clean_keys.dtype),
            torch.nn.functional.pad(grad_past_values, pad).to(clean_values.dtype),
            (grad_score * queries).to(own_keys.dtype),
            (weight * grad).to(own_values.dtype),
            None,
        )


def _accumulator(tensor: Tensor) -> torch.dtype:
    """The kernel keeps its log-sum-exp in float32 for the half types."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
