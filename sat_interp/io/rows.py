"""A table of parameters under two names, which serves both directions of a conversion.

A row of the table names one tensor of theirs and the parameters of ours that it holds: one, or
several side by side, such as the queries, keys and values of GPT-2 and GPT-NeoX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from sat_interp._util.errors import UserError
from sat_interp.io.protocol import GatedTransformer, some_of


@dataclass(frozen=True)
class Row:
    """A tensor of theirs, ours, and the order of the axes on either side (einops).

    Attributes:
        ours: names of our parameters; of several the axis ``part`` counts them.
        our_axes, their_axes: both empty where the order is the same.
        heads: size of the axis ``heads``.
    """

    ours: tuple[str, ...]
    theirs: str
    our_axes: str = ""
    their_axes: str = ""
    heads: int = 1

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Their tensor in our order; of several parameters, stacked."""
        return self._moved(tensor, self.their_axes, self.our_axes)

    def to_theirs(self, tensor: Tensor) -> Tensor:
        """Our parameter, or several stacked, in their order."""
        return self._moved(tensor, self.our_axes, self.their_axes)

    def _moved(self, tensor: Tensor, source: str, target: str) -> Tensor:
        if not source:
            return tensor
        sizes = {"heads": self.heads, "part": len(self.ours)}
        used = {axis: size for axis, size in sizes.items() if axis in source}
        return rearrange(tensor, f"{source} -> {target}", **used)


def linear(ours: str, theirs: str) -> Iterator[Row]:
    """Weight and bias of a linear map that they store as (outputs, inputs).

    Args:
        ours: our name, with {} in the place of W and b.
    """
    yield matrix(ours.format("W"), f"{theirs}.weight")
    yield Row((ours.format("b"),), f"{theirs}.bias")


def matrix(ours: str, theirs: str) -> Row:
    """The weight of a linear map that they store as (outputs, inputs)."""
    return Row((ours,), theirs, "inputs outputs", "outputs inputs")


def affine(ours: str, theirs: str) -> Iterator[Row]:
    """Gain and bias of a LayerNorm; {} in our name is in the place of w and b."""
    yield Row((ours.format("w"),), f"{theirs}.weight")
    yield Row((ours.format("b"),), f"{theirs}.bias")


def projection(ours: str, theirs: str, heads: int) -> Row:
    """W_Q, W_K or W_V, which they store as (heads * d_head, d_model)."""
    return Row((ours,), theirs, "heads d_model d_head", "(heads d_head) d_model", heads)


def output(ours: str, theirs: str, heads: int) -> Row:
    """W_O, which they store as (d_model, heads * d_head)."""
    return Row((ours,), theirs, "heads d_head d_model", "d_model (heads d_head)", heads)


def fill(model: GatedTransformer, weights: Mapping[str, Tensor], rows: Iterable[Row]) -> None:
    """Copy ``weights``, under their names, into ``model``.

    Raises:
        UserError: a name is missing or left over, or a shape does not fit.
    """
    rows = list(rows)
    wanted = {row.theirs for row in rows}
    if missing := sorted(wanted - set(weights)):
        raise UserError(f"the weights lack {some_of(missing)}")
    if unknown := sorted(set(weights) - wanted):
        raise UserError(f"the weights hold unknown names: {some_of(unknown)}")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for row in rows:
            given = weights[row.theirs]
            shape = row.to_theirs(_stacked(parameters, row)).shape
            if given.shape != shape:
                raise UserError(
                    f"{row.theirs} has shape {tuple(given.shape)}, the others ask for "
                    f"{tuple(shape)}; check n_heads, the attention unit and where the weights "
                    "come from"
                )
            tensor = row.to_ours(given)
            parts = tensor if len(row.ours) > 1 else [tensor]
            for name, part in zip(row.ours, parts, strict=True):
                parameters[name].copy_(part)


def collect(model: GatedTransformer, rows: Iterable[Row]) -> dict[str, Tensor]:
    """Copies of ``model``'s weights under their names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        return {row.theirs: row.to_theirs(_stacked(parameters, row)).clone() for row in rows}


def _stacked(parameters: Mapping[str, Tensor], row: Row) -> Tensor:
    own = [parameters[name].detach() for name in row.ours]
    return own[0] if len(own) == 1 else torch.stack(own)
