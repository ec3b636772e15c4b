"""The loss of both streams, with the cross-entropy fused into the unembedding.

At a vocabulary of 50,257 the logits are the largest tensors of a training step by far. They are
made a chunk of rows at a time, turned into the gradient on the spot, and never held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sat_interp import native
from sat_interp.errors import UserError
from sat_interp.streams import DualStates
from sat_interp.transformer import Path, SelfAblatingTransformer

CHUNK = 512
"""Rows of logits held at once: the memory bound, chunk x d_vocab values."""


@dataclass(frozen=True)
class LossWeights:
    """a, b and c of: a CE(clean) + b CE(ablated) + c reconstruction.

    The paper: 1, 1, 0 (section 3.1). The released code's recorded runs: 0.5, 0.5, 0.

    Raises:
        UserError: a negative weight, or all of them zero.
    """

    clean: float = 1.0
    ablated: float = 1.0
    reconstruction: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.clean, self.ablated, self.reconstruction)
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
    path: Path = "fast",
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
    path: Path = "fast",
) -> Losses:
    """The loss of given tokens against given targets; see :func:`training_loss`."""
    targets = targets.reshape(-1)
    if not model.ablation.is_gated:
        states = model.fast_states(tokens).flatten(0, 1)[None]
        total, means = unembedding_cross_entropy(states, model.W_U, targets, (1.0,), chunk)
        return Losses(total, means[0], None, None)
    dual = model.dual_states(tokens, path)
    states = torch.stack([dual.clean.flatten(0, 1), dual.ablated.flatten(0, 1)])
    total, means = unembedding_cross_entropy(
        states, model.W_U, targets, (weights.clean, weights.ablated), chunk
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


def unembedding_cross_entropy(
    states: Float[Tensor, "streams tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, "tokens"],
    weights: tuple[float, ...],
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, ""], Float[Tensor, "streams"]]:
    """Weighted sum over streams of the mean cross-entropy of ``states @ W_U`` against targets.

    Returns:
        (the weighted sum, differentiable; each stream's own mean, detached), in nats per token.
    """
    total, means = _UnembeddingCrossEntropy.apply(states, W_U, targets, weights, chunk)
    return total, means


def token_losses(
    states: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, "tokens"],
    chunk: int = CHUNK,
) -> Float[Tensor, "tokens"]:
    """Cross-entropy of each token in nats: no gradient, never more than a chunk of logits."""
    with torch.no_grad():
        pieces = [
            F.cross_entropy(
                (rows @ W_U).to(_at_least_float32(states.dtype)), row_targets, reduction="none"
            )
            for rows, row_targets in zip(states.split(chunk), targets.split(chunk), strict=True)
        ]
    return torch.cat(pieces)


class _UnembeddingCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward pass, chunk by chunk.

    dL/dlogits = weight * (softmax - onehot) / tokens needs nothing from later, so each chunk of
    logits becomes its share of the gradients of the states and of W_U, and is dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, W_U: Tensor, targets: Tensor, weights: tuple[float, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        n_tokens = len(targets)
        product_dtype = _product_dtype(states)
        embedding = W_U.T.to(product_dtype)  # (d_vocab, d_model), contiguous where tied
        needs_grad = states.requires_grad or W_U.requires_grad
        grad_states = torch.empty_like(states) if needs_grad else None
        grad_embedding = (
            torch.zeros(embedding.shape, dtype=W_U.dtype, device=W_U.device) if needs_grad else None
        )
        # One buffer for all chunks: fresh pages for each would cost as much as the product.
        buffer = states.new_empty(min(chunk, n_tokens), len(embedding), dtype=product_dtype)
        means = []
        for stream, weight in enumerate(weights):
            total = states.new_zeros((), dtype=torch.float64)
            for start in range(0, n_tokens, chunk):
                rows = slice(start, start + chunk)
                inputs = states[stream, rows].to(product_dtype)
                logits = torch.mm(inputs, embedding.T, out=buffer[: len(inputs)])
                nats, gradient = _softmax_gradient(
                    logits.to(_at_least_float32(logits.dtype)), targets[rows], weight / n_tokens
                )
                total += nats.sum(dtype=torch.float64)
                if grad_states is None or grad_embedding is None:
                    continue
                gradient = gradient.to(product_dtype)
                grad_states[stream, rows] = gradient @ embedding
                if product_dtype == W_U.dtype:
                    grad_embedding.addmm_(gradient.T, inputs)
                else:
                    grad_embedding += gradient.T @ inputs
            means.append(total / n_tokens)
        ctx.save_for_backward(grad_states, grad_embedding)
        stream_means = torch.stack(means).to(_at_least_float32(states.dtype))
        ctx.mark_non_differentiable(stream_means)
        return (stream_means * stream_means.new_tensor(weights)).sum(), stream_means

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_means: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_embedding = ctx.saved_tensors
        return grad_states * grad_total, (grad_embedding * grad_total).T, None, None, None


def _softmax_gradient(
    logits: Float[Tensor, "tokens d_vocab"], targets: Int[Tensor, "tokens"], weight: float
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens d_vocab"]]:
    """Cross-entropy in nats, and ``weight * (softmax - onehot)`` in the logits' own memory."""
    if native.takes(logits):
        return native.softmax_gradient(logits, targets, weight), logits
    log_probs = logits.log_softmax(-1)
    nats = -log_probs.gather(1, targets[:, None])
    gradient = log_probs.exp_()
    gradient.scatter_add_(1, targets[:, None], -torch.ones_like(nats))
    return nats.squeeze(1), gradient.mul_(weight)


def _product_dtype(states: Tensor) -> torch.dtype:
    """Under autocast, the products' type is autocast's; a custom function is not told by itself."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
