"""Attention of the ablated stream by PyTorch's own flash kernel for the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def takes(name: str, tensor: Tensor) -> bool:
    """Whether queries of this shape are taken: on the CPU, more than one position."""
    return tensor.device.type == "cpu" and tensor.shape[-2] > 1


def mixed_attention(
    queries: Tensor,
    clean_keys: Tensor,
    clean_values: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    scale: float,
) -> Tensor:
    """Attention output z of the ablated stream; tensors are (batch, heads, pos, d_head)."""
    z: Tensor = _FlashMixedAttention.apply(
        queries, clean_keys, clean_values, own_keys, own_values, scale
    )
    return z


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
            queries[..., 1:, :],
            clean_keys[..., :-1, :],
            clean_values[..., :-1, :],
            is_causal=True,
            scale=scale,
        )
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
                grad[..., 1:, :].contiguous(),
                queries[..., 1:, :],
                clean_keys[..., :-1, :],
                clean_values[..., :-1, :],
                z[..., 1:, :],
                lse[..., 1:].contiguous(),
                0.0,
                True,
                scale=ctx.scale,
            )
        )
        weight = own_weight[..., None]
        pull = (grad * (own_values - z)).sum(-1, keepdim=True)  # d own_score, before its weight
        grad_score = weight * pull * ctx.scale
        grad_queries = grad_score * own_keys
        grad_queries[..., 1:, :] += grad_past_queries
        pad = (0, 0, 0, 1)  # no later position attends to the last one
        return (
            grad_queries.to(queries.dtype),
            F.pad(grad_past_keys, pad).to(clean_keys.dtype),
            F.pad(grad_past_values, pad).to(clean_values.dtype),
            (grad_score * queries).to(own_keys.dtype),
            (weight * grad).to(own_values.dtype),
            None,
        )


def _accumulator(tensor: Tensor) -> torch.dtype:
    """The kernel keeps its log-sum-exp in float32 for the half types."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
