"""The unembedding, a block of the vocabulary at a time: logits, and cross-entropy without them.

At a vocabulary of 50,257 the logits are the largest tensors of any pass by far, and on a CPU a
product that writes rows of 200 KB is slower than the same product in blocks. So cross-entropy makes
a block of logits, reads its largest and the sum of its exponentials while it is in the cache, and
puts the blocks together at the end: log sum exp x = log sum_b e^(top_b) sum_b, b a block. Its
gradient keeps the exponentials of a chunk of rows, and never more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sat_interp._util.errors import UserError
from sat_interp.model.kernels import kernel

BLOCK = 1024
"""Entries of the vocabulary in a block, on the CPU; an accelerator takes all of them at once."""
CHUNK = 512
"""Rows of logits held at once, on the CPU: the memory bound, chunk x d_vocab values."""
LOGIT_BYTES = 1 << 30
"""Bytes of float32 logits held at once on an accelerator. There a chunk costs a dozen launches, and
as many operations of a compiled step: 65,280 rows in chunks of 512 are 20,000 of them."""


def rows_of_a_chunk(W_U: Float[Tensor, "d_model d_vocab"]) -> int:
    """Return how many rows of logits are held at once where cross-entropy has a gradient."""
    if W_U.device.type == "cpu":
        return CHUNK
    return max(CHUNK, LOGIT_BYTES // (4 * W_U.shape[1]))


def logits(
    states: Float[Tensor, "*rows d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"],
) -> Float[Tensor, "*rows d_vocab"]:
    """``states @ W_U + b_U``; on the CPU, where no gradient is asked for, block by block."""
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (states, W_U, b_U))
    is_elsewhere = states.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    is_small = W_U.shape[1] <= BLOCK or states.dim() < 2 or not states.numel()
    if needs_grad or is_elsewhere or is_small:
        return F.linear(states, W_U.T, b_U)
    flat = states.flatten(0, -2)
    result = _empty(flat, [len(flat), W_U.shape[1]])
    buffer = flat.new_empty(min(CHUNK, len(flat)) * BLOCK)
    for rows in _pieces(len(flat), CHUNK):
        for block in _pieces(W_U.shape[1], BLOCK):
            product = _product(flat[rows], W_U[:, block], buffer)
            torch.add(product, b_U[block], out=result[rows, block])
    return result.view(*states.shape[:-1], -1)


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

    Raises:
        UserError: a target that is not in the vocabulary.
    """
    if not len(targets):
        return states.new_zeros(0, dtype=_at_least_float32(states.dtype))
    _check(targets, W_U.shape[1])
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
                summary.add(block, product.to(_at_least_float32(product.dtype)))
            parts.append(summary.result()[0])
    return torch.cat(parts)


def cross_entropy(
    states: Float[Tensor, "streams tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, " tokens"],
    weights: tuple[float | Tensor, ...],
    chunk: int | None = None,
    b_U: Float[Tensor, " d_vocab"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " streams"]]:
    """Weighted sum over streams of the mean cross-entropy of ``states @ W_U + b_U`` and targets.

    Args:
        chunk: rows of logits held at once; by default those of :func:`rows_of_a_chunk`.

    Returns:
        (the weighted sum, differentiable in states and W_U; each stream's own mean, detached), in
        nats per token.

    Raises:
        UserError: a target that is not in the vocabulary.
    """
    _check(targets, W_U.shape[1])
    is_cpu = states.device.type == "cpu"
    if b_U is not None and is_cpu and not b_U.any():
        b_U = None  # as in any model of ours; elsewhere the check would wait for the device
    run = _not_compiled if is_cpu else _CrossEntropy.apply
    total, means = run(states, W_U, b_U, targets, weights, chunk or rows_of_a_chunk(W_U))
    return total, means


def divergence(
    states: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"],
    original: tuple[Tensor, Tensor, Tensor],
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over tokens of KL(p || q) in nats, differentiable in states and W_U.

    q is the distribution of ``states @ W_U + b_U``, p that of the original model.

    Args:
        original: states, (tokens, d_model), W_U and b_U of the original model; no gradient.
    """
    rows = chunk or rows_of_a_chunk(W_U)
    mean: Tensor = _Divergence.apply(states, W_U, b_U, *original, rows)
    return mean


class _Divergence(torch.autograd.Function):
    """See :func:`divergence`.

    dKL/dlogits = (q - p) / tokens, so a chunk's gradient is made with it and the logits dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        W_U: Tensor,
        b_U: Tensor,
        fixed: Tensor,
        fixed_weight: Tensor,
        fixed_bias: Tensor,
        chunk: int,
    ) -> Tensor:
        wide, product = _at_least_float32(states.dtype), _product_dtype(states)
        weight, fixed_weight = W_U.to(product), fixed_weight.to(product)
        grad_states = torch.zeros_like(states, dtype=wide)
        grad_embedding = torch.zeros_like(W_U.T) if W_U.requires_grad else None
        total = states.new_zeros((), dtype=torch.float64)
        for rows in _pieces(len(states), chunk):
            inputs = states[rows].to(product)
            ours = ((inputs @ weight).to(wide) + b_U).log_softmax(-1)
            theirs = ((fixed[rows].to(product) @ fixed_weight).to(wide) + fixed_bias).log_softmax(
                -1
            )
            shares = theirs.exp()
            total += (shares * (theirs - ours)).sum(dtype=torch.float64)
            pull = ((ours.exp() - shares) / len(states)).to(product)
            grad_states[rows] = (pull @ weight.T).to(wide)
            if grad_embedding is not None:
                grad_embedding += pull.T @ inputs
        ctx.save_for_backward(grad_states.to(states.dtype), grad_embedding)
        return (total / len(states)).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_embedding = ctx.saved_tensors
        grad_weight = None if grad_embedding is None else (grad_embedding * grad).T
        return grad_states * grad, grad_weight, None, None, None, None, None


def log_normaliser(
    states: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"],
) -> Float[Tensor, " tokens"]:
    """Log sum_v exp(states @ W_U + b_U)_v of each row, in nats; differentiable in the states alone.

    What a divergence between predictions needs of the logits: KL(p || q) is the sum of p log p,
    minus the logits' mean under p, which is linear in the states, plus this.
    """
    found: Tensor = _LogNormaliser.apply(states, W_U.detach(), b_U.detach())
    return found


class _LogNormaliser(torch.autograd.Function):
    """Its gradient W_U softmax(logits) is made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, W_U: Tensor, b_U: Tensor) -> Tensor:
        gradient = torch.empty_like(states) if states.requires_grad else None
        blocks = list(_pieces(W_U.shape[1], _block_size(states)))
        buffer = _empty(states, [min(CHUNK, len(states)) * W_U.shape[1]])
        found = states.new_empty(len(states))
        for rows in _pieces(len(states), CHUNK):
            tops, totals, kept = [], [], []
            for block in blocks:
                room = buffer[(rows.stop - rows.start) * block.start :]
                values = _product(states[rows], W_U[:, block], room).add_(b_U[block])
                top, total = _exponentials(values)
                tops.append(top)
                totals.append(total.log())
                kept.append(values)
            log_sums = torch.stack(tops) + torch.stack(totals)
            found[rows] = log_sums.logsumexp(0)
            if gradient is not None:
                shares = (torch.stack(tops) - found[rows]).exp()
                gradient[rows] = sum(
                    share[:, None] * (values @ W_U[:, block].T)
                    for share, values, block in zip(shares, kept, blocks, strict=True)
                )
        ctx.save_for_backward(gradient)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None, None


class _Summary:
    """Statistics of a chunk's logits that cross-entropy needs, gathered block by block."""

    def __init__(self, targets: Int[Tensor, " rows"]) -> None:
        self.targets = targets
        self.tops: list[Tensor] = []
        self.log_sums: list[Tensor] = []
        self.at_target: Tensor | float = 0.0

    def add(self, block: slice, logits: Float[Tensor, "rows block"]) -> None:
        """Turn a block of logits into e^(logit - its row's largest), in place."""
        is_here, place = self.place(block)
        self.at_target = torch.where(is_here, logits.gather(1, place)[:, 0], self.at_target)
        top, total = _exponentials(logits)
        self.tops.append(top)
        self.log_sums.append(total.log())

    def set_target(
        self, block: slice, exponentials: Float[Tensor, "rows block"], value: Float[Tensor, " rows"]
    ) -> None:
        """Put each row's value where its target is, in the rows that have it in this block."""
        is_here, place = self.place(block)
        own = value.to(exponentials.dtype)[:, None]
        kept = torch.where(is_here[:, None], own, exponentials.gather(1, place))
        exponentials.scatter_(1, place, kept)

    def place(self, block: slice) -> tuple[Bool[Tensor, " rows"], Int[Tensor, "rows 1"]]:
        """Which rows have their target in this block, and where; 0 for the others."""
        is_here = (self.targets >= block.start) & (self.targets < block.stop)
        return is_here, torch.where(is_here, self.targets - block.start, 0)[:, None]

    def result(self) -> tuple[Float[Tensor, " rows"], Float[Tensor, "blocks rows"]]:
        """Each row's loss in nats, and the factor from each block's exponentials to probabilities.

        Differences from a row's largest keep the digits that a common offset would take.
        """
        tops = torch.stack(self.tops)
        largest = tops.amax(0)
        tops = tops - largest
        log_total = (tops + torch.stack(self.log_sums)).logsumexp(0)
        return log_total - (self.at_target - largest), (tops - log_total).exp()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward pass, chunk by chunk.

    dL/dlogits = weight * (softmax - onehot) / tokens needs nothing from later, so each chunk of
    logits becomes its share of the gradients of the states and of W_U, and is dropped. One
    factor per row and block turns exponentials into probabilities, applied to the product with the
    states, which is far smaller than the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        W_U: Tensor,
        b_U: Tensor | None,
        targets: Tensor,
        weights: tuple[float | Tensor, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        n_tokens, wide = len(targets), _at_least_float32(states.dtype)
        needs_grad = states.requires_grad or W_U.requires_grad
        weight_of = W_U.to(_product_dtype(states))
        blocks = list(_pieces(W_U.shape[1], _block_size(states)))
        # One buffer for all chunks: fresh pages for each would cost as much as the product.
        held = min(chunk, n_tokens) * W_U.shape[1]
        buffer = _empty(weight_of, [held])
        grad_embedding = None
        if needs_grad:
            grad_states = torch.zeros_like(states, dtype=wide)
        if W_U.requires_grad:  # not where the unembedding is frozen
            grad_embedding = _empty(W_U, [*W_U.T.shape]).zero_()
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
                    if b_U is not None:
                        values += b_U[block]
                    summary.add(block, values)
                    exponentials.append(product.copy_(values) if values is not product else values)
                nats, shares = summary.result()
                total += nats.sum(dtype=torch.float64)
                if needs_grad:
                    own = zip(blocks, exponentials, shares, strict=True)
                    _add_gradients(
                        grad_states[stream, rows],
                        grad_embedding,
                        inputs,
                        weight_of.T,
                        summary,
                        nats,
                        own,
                        weight / n_tokens,
                    )
            means.append(total / n_tokens)
        if needs_grad:
            ctx.save_for_backward(grad_states.to(states.dtype), grad_embedding)
        stream_means = torch.stack(means).to(wide)
        ctx.mark_non_differentiable(stream_means)
        device = stream_means.device
        factors = [torch.as_tensor(weight, dtype=wide, device=device) for weight in weights]
        return (stream_means * torch.stack(factors)).sum(), stream_means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_means: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_embedding = ctx.saved_tensors
        grad_weight = None if grad_embedding is None else (grad_embedding * grad_total).T
        return grad_states * grad_total, grad_weight, None, None, None, None


# For the CPU, where a compiler would make a graph of each block.
_not_compiled = torch.compiler.disable(_CrossEntropy.apply)


def _add_gradients(
    grad_states: Tensor,
    grad_embedding: Tensor | None,
    inputs: Tensor,
    embedding: Tensor,
    summary: _Summary,
    nats: Tensor,
    blocks: Iterable[tuple[slice, Tensor, Tensor]],
    weight: float | Tensor,
) -> None:
    """Add ``weight * (probabilities - onehot)``, times what it is multiplied with, to both.

    Each block comes with its exponentials and the factor that makes them probabilities.
    """
    # p - 1 from the loss itself: near p = 1 the difference of two roundings would be all noise.
    at_target = torch.expm1(-nats)
    # A block fainter than this counts as this faint, so that -1 in its units stays in range.
    least = max(1e-25, 2 / torch.finfo(inputs.dtype).max)
    for block, exponentials, share in blocks:
        share = share.clamp(min=least)
        summary.set_target(block, exponentials, at_target / share)
        scale = weight * share[:, None]
        grad_states += scale * (exponentials @ embedding[block])
        if grad_embedding is None:
            continue
        scaled = (scale * inputs).to(inputs.dtype)
        if scaled.dtype == grad_embedding.dtype:
            grad_embedding[block].addmm_(exponentials.T, scaled)
        else:
            grad_embedding[block] += exponentials.T @ scaled


def _check(targets: Int[Tensor, " tokens"], d_vocab: int) -> None:
    """Refuse targets outside the vocabulary, on the CPU: an accelerator would have to wait."""
    if targets.device.type != "cpu" or not len(targets):
        return
    low, high = (int(x) for x in targets.aminmax())
    if low < 0 or high >= d_vocab:
        wrong = low if low < 0 else high
        raise UserError(f"token number {wrong:,} is not in the vocabulary of {d_vocab:,}")


def _exponentials(
    logits: Float[Tensor, "rows block"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Turn logits into e^(logit - top) in place; return each row's top, and its new sum."""
    if (fused := kernel("exponentials", logits)) is not None:
        top, total = fused(logits)
        return top, total
    top = logits.amax(1).clamp(min=torch.finfo(logits.dtype).min)  # a row of -inf has sum 0
    return top, logits.sub_(top[:, None]).exp_().sum(1)


def _empty(like: Tensor, shape: list[int]) -> Tensor:
    """Uninitialised memory, in large pages where the device has them."""
    make = kernel("empty_on_large_pages", like)
    fresh: Tensor = like.new_empty(shape) if make is None else make(like, shape)
    return fresh


def _product(inputs: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """``inputs @ weight``, side by side at the beginning of ``room``."""
    shape = len(inputs), weight.shape[1]
    return torch.mm(inputs, weight, out=room[: shape[0] * shape[1]].view(shape))


def _pieces(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _block_size(states: Tensor) -> int:
    return BLOCK if states.device.type == "cpu" else 1 << 62


def _product_dtype(states: Tensor) -> torch.dtype:
    """Type of products: under autocast its own, which a custom function does not get by itself."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type losses are summed in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
