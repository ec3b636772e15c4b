"""A model's weights as the fast engine wants them: norms folded away, one matrix per destination.

Every reader of the residual stream normalises what it reads, x -> (x - mean) / s * w + b. The mean
is linear, so it can be taken out of what the sources write; w and b belong to the weights that
follow. What is left of the norm is one scale per row: LN(x) W = (x W') / s + b'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, AbstractAttention, TransformerBlock

from evaluations.suite.circuits.patched import window

ROWS = 512
"""Rows that go through a wide matrix at a time, so that what comes out stays in the caches."""
TILE = 2048
"""Columns of the unembedding that do."""

Rows = Float[Tensor, "rows d_model"]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, as x sigmoid(2 u): PyTorch's own spends its time on tanh."""
    u = (x * x).mul_(2 * 0.7978845608028654 * 0.044715).add_(2 * 0.7978845608028654)
    return u.mul_(x).sigmoid_().mul_(x)


# TransformerLens writes these out in elementary operations.
_FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh, "gelu_fast": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        weights, biases: of the projections, first axis q, k, v; q with the attention's scale.
            Transposed: (d_head, d_model) times (d_model, rows) is four times as fast as the other
            way round, where heads are small.
        out: (heads, d_head, d_model).
        bias: the attention's output bias.
        mlp: from the scaled input of the MLP to what it writes; None without one.
        rotate: rotary positions of queries or keys (n, pos, d_head), the first at an offset.
    """

    weights: Float[Tensor, "three heads d_head d_model"]
    biases: Float[Tensor, "three heads d_head"]
    out: Float[Tensor, "heads d_head d_model"]
    bias: Float[Tensor, "d_model"]
    window: int | None
    mlp: Callable[[Rows], Rows] | None
    rotate: Callable[[Tensor, int], Tensor] | None


@dataclass(frozen=True)
class Folded:
    """A model, as :class:`Layer` by layer, and its unembedding.

    Attributes:
        tiles: the unembedding in pieces, with its bias as a last but one row and ones as the last.
        centred, scaled: what the norms do.
    """

    layers: list[Layer]
    unembed: Float[Tensor, "d_model d_vocab"]
    unembed_bias: Float[Tensor, "d_vocab"]
    tiles: list[Tensor]
    eps: float
    centred: bool
    scaled: bool

    @classmethod
    def of(cls, model: HookedTransformer) -> Folded:
        kind = model.cfg.normalization_type
        centred = kind in ("LN", "LNPre")
        gain, shift = _norm(model.ln_final if kind else None, model.W_U[:, 0])
        unembed, bias = gain[:, None] * model.W_U, model.unembed.b_U + shift @ model.W_U
        tall = torch.cat([unembed, bias[None], torch.ones_like(bias)[None]])
        return cls(
            [_layer(block, centred) for block in model.blocks],
            unembed,
            bias,
            [tile.contiguous() for tile in tall.split(TILE, 1)],
            float(model.cfg.eps),
            centred,
            kind is not None,
        )

    def centre(self, written: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What a source writes, without what every norm takes out of it again."""
        return _centre(written, self.centred)

    def scale(self, read: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """1 / s of every row: what a norm multiplies it by."""
        if not self.scaled:
            return read.new_ones(1).expand(*read.shape[:-1], 1)
        norm = torch.linalg.vector_norm(read, dim=-1, keepdim=True)
        return norm.square_().div_(read.shape[-1]).add_(self.eps).rsqrt_()

    def log_sum_exp(self, final: Rows, near: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """ln sum exp of the logits of scaled rows, logits never being held all at once.

        Args:
            near: a guess for each row, exact results as long as it is within 80 of the truth.
        """
        tall = torch.cat([final, torch.ones_like(final[:, :1]), -near[:, None]], 1)
        found = torch.cat([
            sum(((rows @ tile).exp_().sum(-1) for tile in self.tiles), start=rows.new_zeros(()))
            for rows in tall.split(ROWS)
        ]).log_().add_(near)  # fmt: skip
        far = ~found.isfinite()
        if far.any():
            found[far] = (final[far] @ self.unembed + self.unembed_bias).logsumexp(-1)
        return found


def _centre(written: Tensor, centred: bool) -> Tensor:
    return written - written.mean(-1, keepdim=True) if centred else written


def _norm(module: nn.Module | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift of a norm; those it has not are one and zero."""
    gain, shift = getattr(module, "w", None), getattr(module, "b", None)
    return (
        torch.ones_like(like) if gain is None else gain,
        torch.zeros_like(like) if shift is None else shift,
    )


def _layer(block: TransformerBlock, centred: bool) -> Layer:
    attn = block.attn
    weights = torch.stack([attn.W_Q, attn.W_K, attn.W_V])
    biases = torch.stack([attn.b_Q, attn.b_K, attn.b_V])
    gain, shift = _norm(block.ln1, weights[0, 0, :, 0])
    scale = weights.new_tensor([1 / float(attn.attn_scale), 1, 1])[:, None, None]
    return Layer(
        (scale[..., None] * gain[:, None] * weights).mT.contiguous(),
        scale * (biases + shift @ weights),
        _centre(attn.W_O, centred).contiguous(),
        _centre(attn.b_O, centred),
        window(attn),
        None if attn.cfg.attn_only else _mlp(block, centred),
        partial(_rotate, attn) if attn.cfg.positional_embedding_type == "rotary" else None,
    )


def _rotate(attn: AbstractAttention, x: Tensor, offset: int) -> Tensor:
    return attn.apply_rotary(x[:, :, None], offset)[:, :, 0]


def _mlp(block: TransformerBlock, centred: bool) -> Callable[[Rows], Rows]:
    mlp = block.mlp
    if type(mlp) is not MLP or mlp.cfg.act_fn not in _FUSED:
        gain, shift = _norm(block.ln2, block.attn.b_O)
        return lambda rows: _centre(mlp(rows * gain + shift), centred)
    gain, shift = _norm(block.ln2, mlp.W_in[:, 0])
    into, bias = gain[:, None] * mlp.W_in, mlp.b_in + shift @ mlp.W_in
    out, out_bias = _centre(mlp.W_out, centred), _centre(mlp.b_out, centred)
    activation = _FUSED[mlp.cfg.act_fn]

    def apply(rows: Rows) -> Rows:
        written = torch.empty_like(rows)
        for some, place in zip(rows.split(ROWS), written.split(ROWS), strict=True):
            torch.addmm(out_bias, activation(torch.addmm(bias, some, into)), out, out=place)
        return written

    return apply
