"""The unembedding, a block of the vocabulary at a time: logits, and cross-entropy without them.

At a vocabulary of 50,257 the logits are the largest tensors of any pass by far, and on a CPU a
product that writes rows of 200 KB is slower than the same product in blocks. So cross-entropy makes
a block of logits, reads its largest and the sum of its exponentials while it is in the cache, and
puts the blocks together at the end: log sum exp x = log sum_b e^(top_b) sum_b, b a block. Its
gradient keeps the exponentials of a chunk of rows, and never more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sat_interp import native

BLOCK = 1024
"""Entries of the vocabulary in a block, on the CPU; an accelerator takes all of them at once."""
CHUNK = 512
"""Rows of logits held at once: the memory bound, chunk x d_vocab values."""


def logits(
    states: Float[Tensor, "*rows d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"],
) -> Float[Tensor, "*rows d_vocab"]:
    """``states @ W_U + b_U``."""
    needs_grad = torch.is_grad_enabled() and (states.requires_grad or W_U.requires_grad)
    whole = states.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if needs_grad or whole or W_U.shape[1] <= BLOCK:
        return F.linear(states, W_U.T, b_U)
    flat = states.flatten(0, -2)
    found = native.empty_on_large_pages(flat, [len(flat), W_U.shape[1]])
    buffer = flat.new_empty(min(CHUNK, len(flat)) * BLOCK)
    for rows in _pieces(len(flat), CHUNK):
        for block in _pieces(W_U.shape[1], BLOCK):
            product = _product(flat[rows], W_U[:, block], buffer)
            torch.add(product, b_U[block], out=found[rows, block])
    return found.view(*states.shape[:-1], -1)


def token_losses(
    states: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, " tokens"],
    b_U: Float[Tensor, " d_vocab"] | None = None,
    soft_cap: float = 0.0,
) -> Float[Tensor, " tokens"]:
    """Cross-entropy of each token in nats; no gradient, and one block of one chunk of logits held.

    Args:
        soft_cap: where positive, logits are soft_cap * tanh(logits / soft_cap).
    """
    if not len(targets):
        return states.new_zeros(0, dtype=at_least_float32(states.dtype))
    with torch.no_grad():
        W_U = W_U.to(_product_dtype(states))
        parts = []
        for rows in _pieces(len(targets), CHUNK):
            inputs = states[rows].to(W_U.dtype)
            blocks = list(_pieces(W_U.shape[1], _block_size(states)))
            buffer = inputs.new_empty(len(inputs) * (blocks[0].stop - blocks[0].start))
            summary = _Summary(targets[rows])
            for block in blocks:
                product = _product(inputs, W_U[:, block], buffer)
                if b_U is not None:
                    product += b_U[block]
                if soft_cap > 0:
                    product = soft_cap * torch.tanh(product / soft_cap)
                summary.add(block, product.to(at_least_float32(product.dtype)))
            parts.append(summary.nats())
    return torch.cat(parts)


def cross_entropy(
    states: Float[Tensor, "streams tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, " tokens"],
    weights: tuple[float, ...],
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, ""], Float[Tensor, " streams"]]:
    """Weighted sum over streams of the mean cross-entropy of ``states @ W_U`` against targets.

    Returns:
        (the weighted sum, differentiable; each stream's own mean, detached), in nats per token.
    """
    total, means = _CrossEntropy.apply(states, W_U, targets, weights, chunk)
    return total, means


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type losses are summed in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class _Summary:
    """What the cross-entropy of a chunk of rows needs of its logits, gathered block by block."""

    def __init__(self, targets: Int[Tensor, " rows"]) -> None:
        self.targets = targets
        self.tops: list[Tensor] = []
        self.log_sums: list[Tensor] = []
        self.at_target: Tensor | float = 0.0

    def add(self, block: slice, logits: Float[Tensor, "rows block"]) -> None:
        """Turn a block of logits into e^(logit - its row's largest), in place."""
        within = self.targets - block.start
        is_here = (within >= 0) & (within < logits.shape[1])
        picked = logits.gather(1, within.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.at_target = torch.where(is_here, picked, self.at_target)
        top, total = _exponentials(logits)
        self.tops.append(top)
        self.log_sums.append(total.log())

    def log_total(self) -> Float[Tensor, " rows"]:
        """log of the sum of e^logit over the vocabulary."""
        return (torch.stack(self.tops) + torch.stack(self.log_sums)).logsumexp(0)

    def nats(self) -> Float[Tensor, " rows"]:
        return self.log_total() - self.at_target

    def shares(self) -> Float[Tensor, "blocks rows"]:
        """What each block's exponentials are to be multiplied with to become probabilities."""
        return (torch.stack(self.tops) - self.log_total()).exp()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward pass, chunk by chunk.

    dL/dlogits = weight * (softmax - onehot) / tokens needs nothing from later, so each chunk of
    logits becomes its share of the gradients of the states and of W_U, and is dropped. What turns
    exponentials into probabilities is one factor a row and block, applied to the product with the
    states, which is far smaller than the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, W_U: Tensor, targets: Tensor, weights: tuple[float, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        n_tokens, wide = len(targets), at_least_float32(states.dtype)
        needs_grad = states.requires_grad or W_U.requires_grad
        weight_of = W_U.to(_product_dtype(states))
        blocks = list(_pieces(W_U.shape[1], _block_size(states)))
        # One buffer for all chunks: fresh pages for each would cost as much as the product.
        held = min(chunk, n_tokens) * W_U.shape[1]
        buffer = native.empty_on_large_pages(weight_of, [held])
        grad_states = torch.zeros_like(states, dtype=wide)
        grad_embedding = native.empty_on_large_pages(W_U, [*W_U.T.shape]).zero_()
        means = []
        for stream, weight in enumerate(weights):
            total = states.new_zeros((), dtype=torch.float64)
            for rows in _pieces(n_tokens, chunk):
                inputs = states[stream, rows].to(weight_of.dtype)
                summary, exponentials = _Summary(targets[rows]), []
                for block in blocks:
                    room = buffer[len(inputs) * block.start :]
                    product = _product(inputs, weight_of[:, block], room)
                    values = product.to(wide)
                    summary.add(block, values)
                    exponentials.append(product.copy_(values) if values is not product else values)
                total += summary.nats().sum(dtype=torch.float64)
                if needs_grad:
                    _add_gradients(
                        grad_states[stream, rows], grad_embedding, inputs, weight_of.T,
                        zip(blocks, exponentials, summary.shares(), strict=True),
                        targets[rows], weight / n_tokens,
                    )  # fmt: skip
            means.append(total / n_tokens)
        if needs_grad:
            ctx.save_for_backward(grad_states.to(states.dtype), grad_embedding)
        stream_means = torch.stack(means).to(wide)
        ctx.mark_non_differentiable(stream_means)
        return (stream_means * stream_means.new_tensor(weights)).sum(), stream_means

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_means: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_embedding = ctx.saved_tensors
        return grad_states * grad_total, (grad_embedding * grad_total).T, None, None, None


def _add_gradients(
    grad_states: Tensor, grad_embedding: Tensor, inputs: Tensor, embedding: Tensor,
    blocks: Iterator[tuple[slice, Tensor, Tensor]], targets: Tensor, weight: float,
) -> None:  # fmt: skip
    """Add ``weight * (probabilities - onehot)``, times what it is multiplied with, to both."""
    for block, exponentials, share in blocks:
        scale = weight * share[:, None]
        grad_states += scale * (exponentials @ embedding[block])
        scaled = (scale * inputs).to(inputs.dtype)
        if scaled.dtype == grad_embedding.dtype:
            grad_embedding[block].addmm_(exponentials.T, scaled)
        else:
            grad_embedding[block] += exponentials.T @ scaled
    grad_states.sub_(embedding[targets], alpha=weight)
    at_targets = -weight * inputs.to(grad_embedding.dtype)
    if grad_embedding.device.type == "cpu":
        grad_embedding.index_add_(0, targets, at_targets)
    else:  # index_add_ adds up in no fixed order there; this one sorts first
        grad_embedding.index_put_((targets,), at_targets, accumulate=True)


def _exponentials(
    logits: Float[Tensor, "rows block"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Turn logits into e^(logit - top) in place; return each row's top, and its new sum."""
    if native.takes(logits):
        return native.exponentials(logits)
    top = logits.amax(1)
    return top, logits.sub_(top[:, None]).exp_().sum(1)


def _product(inputs: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """``inputs @ weight``, side by side at the beginning of ``room``."""
    shape = len(inputs), weight.shape[1]
    return torch.mm(inputs, weight, out=room[: shape[0] * shape[1]].view(shape))


def _pieces(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _block_size(states: Tensor) -> int:
    return BLOCK if states.device.type == "cpu" else 1 << 62


def _product_dtype(states: Tensor) -> torch.dtype:
    """Under autocast, the products' type is autocast's; a custom function is not told by itself."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
