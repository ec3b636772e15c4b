"""The loss of both streams, with the cross-entropy fused into the unembedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sat_interp._util.errors import UserError
from sat_interp.model.streams import DualStates
from sat_interp.model.transformer import ForwardPath, SelfAblatingTransformer
from sat_interp.model.unembedding import CHUNK, cross_entropy


@dataclass(frozen=True)
class LossWeights:
    """a, b and c of: a CE(clean) + b CE(ablated) + c reconstruction.

    The paper: 1, 1, 0 (section 3.1). The released code's recorded runs: 0.5, 0.5, 0. ``ablated``
    may be a tensor without dimensions, which is not checked.

    Raises:
        UserError: a negative weight, or all of them zero.
    """

    clean: float = 1.0
    ablated: float | Tensor = 1.0
    reconstruction: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.clean, self.ablated, self.reconstruction)
        if isinstance(self.ablated, Tensor):
            return
        if any(not 0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise UserError(f"loss weights must be >= 0, finite and not all 0, not {weights}")


class Losses(NamedTuple):
    """The weighted sum to differentiate, and its parts, detached (nats per token)."""

    total: Tensor
    clean: Tensor
    ablated: Tensor | None
    reconstruction: Tensor | None


def training_loss(
    model: SelfAblatingTransformer,
    windows: Int[Tensor, "batch pos_plus_1"],
    weights: LossWeights,
    chunk: int = CHUNK,
    path: ForwardPath = "fast",
) -> Losses:
    """Next-token loss of both streams over windows of tokens.

    Each window gives pos inputs (all but its last token) and pos targets (all but its first). A
    model without gates has the clean loss alone, at weight 1.
    """
    return next_token_loss(model, windows[:, :-1], windows[:, 1:], weights, chunk, path)


def next_token_loss(
    model: SelfAblatingTransformer,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    weights: LossWeights,
    chunk: int = CHUNK,
    path: ForwardPath = "fast",
) -> Losses:
    """The loss of given tokens against given targets; see :func:`training_loss`."""
    targets = targets.reshape(-1)
    if not model.ablation.is_gated:
        states = model.fast_states(tokens).flatten(0, 1)[None]
        total, means = cross_entropy(states, model.W_U, targets, (1.0,), chunk, model.unembed.b_U)
        return Losses(total, means[0], None, None)
    dual = model.dual_states(tokens, path)
    states = torch.stack([dual.clean.flatten(0, 1), dual.ablated.flatten(0, 1)])
    total, means = cross_entropy(
        states, model.W_U, targets, (weights.clean, weights.ablated), chunk, model.unembed.b_U
    )
    reconstruction = None
    if weights.reconstruction:
        reconstruction = reconstruction_loss(dual)
        total = total + weights.reconstruction * reconstruction
        reconstruction = reconstruction.detach()
    return Losses(total, means[0], means[1], reconstruction)


def reconstruction_loss(dual: DualStates) -> Float[Tensor, ""]:
    """Mean over each block's output and the final LN of the MSE between the L2-normalised streams.

    The released code's third term; its weight is 0 in the paper.
    """
    pairs = [
        *zip(dual.clean_layers, dual.ablated_layers, strict=True),
        (dual.clean, dual.ablated),
    ]
    errors = [
        F.mse_loss(F.normalize(ablated, dim=-1), F.normalize(clean, dim=-1))
        for clean, ablated in pairs
    ]
    return torch.stack(errors).mean()
