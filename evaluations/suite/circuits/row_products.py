"""Products of masks and outputs, with gradients that are added up in place.

The outputs of all sources minus their replacements are kept once, side by side. Every destination
of a layer is read from them by one matrix product for each row, and the backward pass adds up the
gradients of all reads in one such buffer: the memory is that of two activations for each source,
whatever the number of edges. ``rows`` strings these steps together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "row destination source"]
Inputs = Float[Tensor, "row destination prompt pos d_model"]


@dataclass
class Written:
    """Outputs minus replacements of the sources computed so far, and their gradients."""

    values: Float[Tensor, "row source prompt pos d_model"]
    first: int
    gradient: Tensor | None = None

    def gradients(self) -> Tensor:
        """Return the gradients added up so far, of the shape of the values."""
        if self.gradient is None:
            self.gradient = torch.zeros_like(self.values)
        return self.gradient


class _Append(torch.autograd.Function):
    """Writes outputs of sources; their gradients are those that later reads have added up.

    The token orders the backward pass: a write comes after all reads that follow it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        outputs: Inputs,
        replaced: Tensor,
        written: Written,
        at: tuple[int, int, bool],
    ) -> Tensor:
        ctx.written, ctx.at = written, at
        start, stop, last = at
        if last:
            written.values[:, start:stop, :, -1:] = outputs - replaced[:, :, :, -1:]
        else:
            first = written.first
            after = replaced if replaced.shape[3] == 1 else replaced[:, :, :, first:]
            torch.sub(outputs[:, :, :, first:], after, out=written.values[:, start:stop, :, first:])
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        start, stop, last = ctx.at
        own = ctx.written.gradients()[:, start:stop]
        return gradients[0], own[:, :, :, -1:] if last else own, None, None, None


class _Read(torch.autograd.Function):
    """Reads destinations' inputs from the sources written so far: one matrix product for each row.

    The gradient of a constant is what destinations pass on whose edge from its source is exactly 0;
    for masks of 0 and 1 that is the whole gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        masks: Matrix,
        constants: Float[Tensor, "_ every d_model"] | None,
        base: Tensor,
        written: Written,
        last: bool,
    ) -> Inputs:
        n = masks.shape[2]
        values = _flat(written.values[:, :n], last)
        ctx.save_for_backward(masks)
        ctx.written, ctx.last = written, last
        ctx.constants = None if constants is None else constants.shape
        shape = (*masks.shape[:2], *_shape(written.values, last))
        return torch.bmm(masks, values).view(shape).add_(base)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (masks,) = ctx.saved_tensors
        written, last, n = ctx.written, ctx.last, masks.shape[2]
        gradient = gradients[0]
        flat = gradient.flatten(2)
        own = None
        if ctx.needs_input_grad[1]:
            own = torch.bmm(flat, _flat(written.values[:, :n], last).mT)
        total = written.gradients()[:, :n]
        if last:
            end = total[:, :, :, -1]
            end += torch.bmm(masks.mT, flat).view(end.shape)
        else:
            total.flatten(2).baddbmm_(masks.mT, flat)
        constants = None
        if ctx.needs_input_grad[2]:
            kept = gradient if last else gradient[:, :, :, written.first :]
            passed = torch.bmm((masks == 0).to(masks).mT, kept.sum((2, 3)))
            constants = passed.new_zeros(ctx.constants)
            constants[:, :n] = passed if len(constants) == len(passed) else passed.sum(0)
        return gradient.new_zeros(()), own, constants, None, None, None


def _flat(values: Tensor, last: bool) -> Tensor:
    return values[:, :, :, -1].flatten(2) if last else values.flatten(2)


def _shape(values: Tensor, last: bool) -> tuple[int, ...]:
    _, _, prompts, positions, width = values.shape
    return (prompts, 1 if last else positions, width)


class _Project(torch.autograd.Function):
    """A norm and a linear map of each destination: (x W) / s + b, s the norm's scale of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Inputs, weights: Tensor, biases: Tensor, eps: float, scaled: bool
    ) -> Tensor:
        rows = x.flatten(2, 3)  # row, destination, (prompt, pos), d_model
        mapped = torch.matmul(rows, weights)
        if not scaled:
            ctx.save_for_backward(weights)
            ctx.shape = x.shape
            return (mapped + biases[:, None]).view(*x.shape[:4], -1)
        square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(weights, rows, mapped, scale)
        ctx.shape = x.shape
        return torch.addcmul(biases[:, None], mapped, scale).view(*x.shape[:4], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weights, *saved = ctx.saved_tensors
        gradient = gradients[0].flatten(2, 3)
        if not saved:
            return torch.matmul(gradient, weights.mT).view(ctx.shape), None, None, None, None
        rows, mapped, scale = saved
        along = (gradient * mapped).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(rows.shape[-1])
        own = torch.matmul(gradient * scale, weights.mT)
        return own.addcmul_(rows, along, value=-1).view(ctx.shape), None, None, None, None


def append(
    token: Tensor, outputs: Inputs, replaced: Tensor, written: Written, at: tuple[int, int, bool]
) -> Tensor:
    """Write outputs of sources minus their replacements, and return a token of that.

    Args:
        token: of what was written before.
        outputs: of the sources.
        replaced: their replacements.
        written: where to.
        at: the first source, the end, and whether only the last position is written.
    """
    found: Tensor = _Append.apply(token, outputs, replaced, written, at)  # type: ignore[no-untyped-call]
    return found


def read(
    token: Tensor,
    masks: Matrix,
    constants: Float[Tensor, "_ every d_model"] | None,
    base: Tensor,
    written: Written,
    last: bool,
) -> Inputs:
    """Return inputs of destinations; masks and constants get gradients.

    Args:
        token: of what was written (:func:`append`).
        masks: of the destinations' edges from the first sources.
        constants: that ``base`` is the sum of, one set for all rows or one for each.
        base: what the destinations read with no edge kept.
        written: outputs minus replacements.
        last: whether only the last position is read.
    """
    found: Tensor = _Read.apply(token, masks, constants, base, written, last)  # type: ignore[no-untyped-call]
    return found


def project(
    x: Inputs,
    weights: Float[Tensor, "#destination d_model d_out"],
    biases: Float[Tensor, "#destination d_out"],
    eps: float,
    scaled: bool,
) -> Float[Tensor, "row destination prompt pos d_out"]:
    """Return (x W) / s + b of each destination, s the norm's scale of x; 1 unless ``scaled``."""
    found: Tensor = _Project.apply(x, weights, biases, eps, scaled)  # type: ignore[no-untyped-call]
    return found
