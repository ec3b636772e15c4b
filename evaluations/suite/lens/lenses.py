"""The lenses: what a model would predict if it ended at a layer.

A lens of layer l reads the stream h before block l, at one position, and gives log-probabilities.
LN_f and U are the model's last norm and its unembedding, c replaces a block's attention output (its
bias b_O included):

- ``logit``: U(LN_f(h)) (nostalgebraist 2020).
- ``tuned``: U(LN_f(h + W_l h + b_l)) (Belrose et al. 2023, arXiv 2303.08112).
- ``tuned-paper``: the same map, fitted as Li and Janson fit their baseline.
- ``oca``: for j = l .. L-1, h += c_{l,j}, h += MLP_j(h); then U(LN_f(h)). The constants of each
  layer l are those that cost least: optimal constant attention (Li and Janson 2024, arXiv
  2409.09951, section 5).
- ``shared``: one constant c_j for all l, fitted together.
- ``mean``: c_j is the mean attention output of block j.
- ``resample``: c_j are the attention outputs of one random other position, the same for all j.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.suite.lens.ending import Ending

MAPS = ("tuned", "tuned-paper")
"""Lenses that map the stream linearly."""


@dataclass(frozen=True)
class Spent:
    """What a lens took.

    Attributes:
        parameters: numbers estimated from text.
        tokens: different positions of text that they were estimated from, or, of ``resample``,
            that its other positions are drawn from.
        read: positions evaluated in all, each as often as it was.
        seconds: of processor time.
    """

    parameters: int
    tokens: int
    read: int
    seconds: float


@dataclass
class Lenses:
    """Fitted lenses of one model.

    Attributes:
        tensors: by kind and name, such as ``tuned/W`` (layer, d_model, d_model), ``tuned/b``,
            ``oca/c`` (layer l, block j, d_model; zero for j < l), ``shared/c`` and ``mean/c``
            (block, d_model), ``resample/bank`` (block, position, d_model).
        spent: what each lens took.
        fits: by kind, per layer: KL on the text fitted on, and the certificate of the fit.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    fits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The lenses there are."""
        return tuple(self.spent)

    def end(
        self,
        ending: Ending,
        kind: str,
        layer: int,
        stream: Float[Tensor, "rows d_model"],
        partners: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows d_model"]:
        """Return the stream before the last norm that a lens makes of the stream before a block.

        Args:
            partners: for ``resample``, whose attention outputs of the bank each row receives.
        """
        stream = stream.to(ending.device)
        if kind == "logit":
            return stream
        if kind in MAPS:
            matrix, bias = (self.tensors[f"{kind}/{name}"][layer] for name in ("W", "b"))
            return stream + stream @ matrix.T.to(stream) + bias.to(stream)
        return run_blocks(ending, layer, stream, self.constants(kind, layer, partners))

    def constants(
        self, kind: str, layer: int, partners: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "blocks *rows d_model"]:
        """Return what replaces the attention outputs of the blocks from a layer on.

        Raises:
            ValueError: a lens that replaces none, or ``resample`` without partners.
        """
        if kind == "oca":
            return self.tensors["oca/c"][layer, layer:]
        if kind in ("shared", "mean"):
            return self.tensors[f"{kind}/c"][layer:]
        if kind == "resample" and partners is not None:
            return self.tensors["resample/bank"][layer:][:, partners]
        raise ValueError(f"no constants of {kind}")


def run_blocks(
    ending: Ending,
    layer: int,
    stream: Float[Tensor, "rows d_model"],
    constants: Float[Tensor, "blocks *rows d_model"],
) -> Float[Tensor, "rows d_model"]:
    """Return the stream after the last block, attention outputs from a layer on being given."""
    stream = stream.to(ending.device)
    for block, constant in zip(range(layer, ending.n_layers), constants, strict=True):
        stream = ending.block(block, stream, constant.to(stream))
    return stream


def shapes(kind: str, n_layers: int, d_model: int) -> dict[str, tuple[int | None, ...]]:
    """Return names and shapes of a lens's tensors; None stands for any size."""
    if kind in MAPS:
        return {f"{kind}/W": (n_layers, d_model, d_model), f"{kind}/b": (n_layers, d_model)}
    known: dict[str, dict[str, tuple[int | None, ...]]] = {
        "oca": {"oca/c": (n_layers, n_layers, d_model)},
        "shared": {"shared/c": (n_layers, d_model)},
        "mean": {"mean/c": (n_layers, d_model)},
        "resample": {"resample/bank": (n_layers, None, d_model)},
    }
    return known.get(kind, {})


def parameters(kind: str, n_layers: int, d_model: int) -> int:
    """Return how many numbers a lens estimates from text."""
    if kind in MAPS:
        return n_layers * (d_model**2 + d_model)
    if kind == "oca":
        return n_layers * (n_layers + 1) // 2 * d_model
    return n_layers * d_model if kind in ("shared", "mean") else 0


def draw_partners(n_rows: int, n_bank: int, seed: int) -> Int[Tensor, " rows"]:
    """Draw for each row the position of the bank that it is resampled from."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n_bank, (n_rows,), generator=generator)
