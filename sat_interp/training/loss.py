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
from sat_interp.model.unembedding import cross_entropy, divergence, token_losses


@dataclass(frozen=True)
class LossWeights:
    """a, b, c and d of: a CE(clean) + b CE(ablated) + c reconstruction + d KL(original || clean).

    The paper: 1, 1, 0, 0 (section 3.1). The released code's recorded runs: 0.5, 0.5, 0, 0.
    ``ablated`` may be a tensor without dimensions, which is not checked.

    Raises:
        UserError: a negative weight, or all of them zero.
    """

    clean: float = 1.0
    ablated: float | Tensor = 1.0
    reconstruction: float = 0.0
    held: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.clean, self.ablated, self.reconstruction, self.held)
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
    held: Tensor | None = None


def training_loss(
    model: SelfAblatingTransformer,
    windows: Int[Tensor, "batch pos_plus_1"],
    weights: LossWeights,
    chunk: int | None = None,
    path: ForwardPath = "fast",
    original: SelfAblatingTransformer | None = None,
) -> Losses:
    """Next-token loss of both streams over windows of tokens.

    Each window gives pos inputs (all but its last token) and pos targets (all but its first). A
    model without gates has the clean loss alone, at weight 1, and the divergence where it is held.

    Args:
        original: the model whose predictions the clean stream is held to; needed where
            ``weights.held`` is not 0.
    """
    return next_token_loss(model, windows[:, :-1], windows[:, 1:], weights, chunk, path, original)


def next_token_loss(
    model: SelfAblatingTransformer,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    weights: LossWeights,
    chunk: int | None = None,
    path: ForwardPath = "fast",
    original: SelfAblatingTransformer | None = None,
) -> Losses:
    """The loss of given tokens against given targets; see :func:`training_loss`."""
    targets = targets.reshape(-1)
    if not model.ablation.is_gated:
        states = model.fast_states(tokens).flatten(0, 1)[None]
        total, means = cross_entropy(states, model.W_U, targets, (1.0,), chunk, model.unembed.b_U)
        losses = Losses(total, means[0], None, None)
        return _held(losses, model, states[0], tokens, weights, original, chunk)
    dual = model.dual_states(tokens, path)
    total, means = _of_both(model, dual, targets, weights, chunk)
    reconstruction = None
    if weights.reconstruction:
        reconstruction = reconstruction_loss(dual)
        total = total + weights.reconstruction * reconstruction
        reconstruction = reconstruction.detach()
    losses = Losses(total, means[0], means[1], reconstruction)
    return _held(losses, model, dual.clean.flatten(0, 1), tokens, weights, original, chunk)


def _of_both(
    model: SelfAblatingTransformer,
    dual: DualStates,
    targets: Int[Tensor, " tokens"],
    weights: LossWeights,
    chunk: int | None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " streams"]]:
    """Weighted cross-entropy of both streams, and each one's own.

    Of a clean stream that is not trained only the value is computed.
    """
    clean, ablated = dual.clean.flatten(0, 1), dual.ablated.flatten(0, 1)
    b_U = model.unembed.b_U
    if clean.requires_grad or not ablated.requires_grad:
        states, both = torch.stack([clean, ablated]), (weights.clean, weights.ablated)
        return cross_entropy(states, model.W_U, targets, both, chunk, b_U)
    fixed = token_losses(clean, model.W_U, targets, b_U).mean()
    total, means = cross_entropy(ablated[None], model.W_U, targets, (weights.ablated,), chunk, b_U)
    return total + weights.clean * fixed, torch.stack([fixed, means[0]])


def _held(
    losses: Losses,
    model: SelfAblatingTransformer,
    clean: Float[Tensor, "tokens d_model"],
    tokens: Int[Tensor, "batch pos"],
    weights: LossWeights,
    original: SelfAblatingTransformer | None,
    chunk: int | None,
) -> Losses:
    """Add the divergence of the clean stream from the original model, where it is held."""
    if not weights.held:
        return losses
    if original is None:
        raise UserError("a weight for the divergence needs the original model: pass original")
    with torch.no_grad():
        states = original.fast_states(tokens).flatten(0, 1)
    fixed = (states, original.W_U, original.unembed.b_U)
    held = divergence(clean, model.W_U, model.unembed.b_U, fixed, chunk)
    return losses._replace(total=losses.total + weights.held * held, held=held.detach())


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
