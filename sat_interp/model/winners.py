"""Products under a hard mask that keeps few units: from winner to winner, the rest being zeros."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.kernels import kernel

SPARSE = 8
"""A hard mask keeps few units where it keeps at most one in this many."""


def is_sparse(ablation: SelfAblationConfig, k: int, mask: Tensor, stream: Tensor) -> bool:
    """Whether so few units are kept that going from one to the next beats a whole product."""
    return (
        ablation.forward_mask == "hard"
        and ablation.gates != "dropout"
        and SPARSE * k <= mask.shape[-1]
        and mask.dtype == stream.dtype == torch.float32
        and not torch.is_autocast_enabled(stream.device.type)
        and kernel("winners_product", stream) is not None
    )


def winners_linear(
    x: Float[Tensor, "batch pos units"],
    mask: Float[Tensor, "batch pos units"],
    weight: Float[Tensor, "units width"],
    bias: Float[Tensor, " width"],
) -> Float[Tensor, "batch pos width"]:
    """``(mask * x) @ weight + bias`` under a mask of few ones."""
    product: Tensor = _WinnersLinear.apply(x, mask, weight, bias)
    return product


def winners_mlp(
    x: Float[Tensor, "batch pos d_model"],
    mask: Float[Tensor, "batch pos neurons"],
    W_in: Float[Tensor, "d_model neurons"],
    b_in: Float[Tensor, " neurons"],
    W_out: Float[Tensor, "neurons d_model"],
    b_out: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """``(mask * gelu_new(x @ W_in + b_in)) @ W_out + b_out`` under a mask of few ones."""
    output: Tensor = _WinnersMLP.apply(x, mask, W_in, b_in, W_out, b_out)
    return output


class _WinnersLinear(torch.autograd.Function):
    """See :func:`winners_linear`.

    The straight-through gradient of the mask asks for every unit's pull, a whole product; the
    value and the weight's gradient ask for the winners alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, mask, weight)
        product: Tensor = _fused("winners_product", _flat(x), _flat(mask), weight, False)
        return product.add_(bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mask, weight = ctx.saved_tensors
        flat = _flat(grad)
        pull = (flat @ weight.T).view_as(x)
        grad_weight = _fused("winners_outer", _flat(x), _flat(mask), flat, False)
        return pull * mask, pull * x, grad_weight, flat.sum(0)


class _WinnersMLP(torch.autograd.Function):
    """See :func:`winners_mlp`.

    As above; and nothing flows back through a unit that has lost, so of the six products of an MLP
    two stay whole: the pre-activations, and the pull on the mask.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, W_in: Tensor, b_in: Tensor, W_out: Tensor, b_out: Tensor
    ) -> Tensor:
        pre = torch.addmm(b_in, _flat(x), W_in)
        ctx.save_for_backward(x, mask, pre, W_in, W_out)
        product: Tensor = _fused("winners_product", pre, _flat(mask), W_out, True)
        return product.add_(b_out).view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mask, pre, W_in, W_out = ctx.saved_tensors
        flat, flat_mask = _flat(grad), _flat(mask)
        grad_pre, grad_mask = _fused("masked_gelu_backward", flat @ W_out.T, pre, flat_mask)
        grad_x = _fused("winners_product", grad_pre, flat_mask, W_in.T, False)
        return (
            grad_x.view_as(x),
            grad_mask.view_as(mask),
            _fused("winners_outer", grad_pre, flat_mask, _flat(x), False).T,
            grad_pre.sum(0),
            _fused("winners_outer", pre, flat_mask, flat, True),
            flat.sum(0),
        )


def _fused(name: str, first: Tensor, *others: Any) -> Any:
    """Result of a kernel that :func:`is_sparse` has seen to be there."""
    operator = kernel(name, first)
    assert operator is not None
    return operator(first, *others)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, -2)
