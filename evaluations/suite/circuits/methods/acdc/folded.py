"""A model's weights for the fast engine, with layer norms folded into them.

Every destination normalises its input, x -> (x - mean) / s * w + b. The mean is linear, so it can
be subtracted from the sources' outputs; w and b are folded into the weights that follow. Only one
scale per row remains: LN(x) W = (x W') / s + b'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import MLP, AbstractAttention, GatedMLP, TransformerBlock

from evaluations.suite.circuits import attention

ROWS = 512
"""Rows multiplied by a wide matrix at a time, so that the result stays in the cache."""
TILE = 2048
"""Columns of the unembedding multiplied at a time."""

Rows = Float[Tensor, "rows d_model"]


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute GELU in its tanh form as x sigmoid(2 u), which is faster than PyTorch's tanh."""
    u = (x * x).mul_(2 * 0.7978845608028654 * 0.044715).add_(2 * 0.7978845608028654)
    return u.mul_(x).sigmoid_().mul_(x)


# TransformerLens implements these in elementary operations.
_FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Layer:
    """The weights of one block.

    Attributes:
        weights: projections to q, k, v (first axis), q including the attention scale. They are
            transposed: (d_head, d_model) times (d_model, rows) is four times as fast for small
            heads.
        biases: biases of the projections.
        out: output projections.
        bias: the attention's output bias.
        window: number of positions a query attends to; None for all.
        mlp: maps the scaled input of the MLP to its output; None without MLPs.
        finish: of queries, keys or values (part, (n, pos, d_head), offset) what is done after the
            projection (``attention.finished``); None for nothing.
        positioned: soft cap and ALiBi of the scores of some heads (``attention.positioned``).
    """

    weights: Float[Tensor, "three heads d_head d_model"]
    biases: Float[Tensor, "three heads d_head"]
    out: Float[Tensor, "heads d_head d_model"]
    bias: Float[Tensor, "d_model"]
    window: int | None
    mlp: Callable[[Rows], Rows] | None
    finish: Callable[[int, Tensor, int], Tensor] | None
    positioned: Callable[[Tensor, Sequence[int] | None], Tensor]


@dataclass(frozen=True)
class Folded:
    """The weights of a model.

    Attributes:
        layers: the blocks.
        unembed: the unembedding.
        unembed_bias: its bias.
        tiles: the unembedding in column blocks, with its bias as second last row and ones as last.
        eps: epsilon of the norms.
        centred: whether norms subtract the mean.
        scaled: whether norms divide by the scale.
        cap: soft cap of the logits; none if not positive.
    """

    layers: list[Layer]
    unembed: Float[Tensor, "d_model d_vocab"]
    unembed_bias: Float[Tensor, "d_vocab"]
    tiles: list[Tensor]
    eps: float
    centred: bool
    scaled: bool
    cap: float

    @classmethod
    def of(cls, model: HookedTransformer) -> Folded:
        """Fold a model's norms into its weights."""
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
            float(model.cfg.output_logits_soft_cap or 0),
        )

    def centre(self, written: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return outputs of a source, without the mean if the norms subtract it."""
        return _centre(written, self.centred)

    def scale(self, read: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """Return the factor by which a norm multiplies each row, 1 / s."""
        if not self.scaled:
            return read.new_ones(1).expand(*read.shape[:-1], 1)
        norm: Tensor = torch.linalg.vector_norm(read, dim=-1, keepdim=True)
        return norm.square_().div_(read.shape[-1]).add_(self.eps).rsqrt_()

    def divergence(
        self, logits: Float[Tensor, "batch d_vocab"]
    ) -> Callable[[Float[Tensor, "state batch d_model"]], Float[Tensor, "state batch"]]:
        """Return KL(p || q) as a function of scaled final residuals, with p of clean logits.

        It is sum p ln p - p . logits + lse(logits). Without a soft cap, p . logits is linear in the
        residual, which leaves one vector of each prompt.
        """
        lse = logits.logsumexp(-1)
        log_p = logits - lse[:, None]
        p = log_p.exp()
        entropy = (p * log_p).sum(-1)
        if self.cap > 0:
            return lambda final: entropy - self._capped(final, p, lse)
        expected, shift = p @ self.unembed.T, p @ self.unembed_bias

        def divergence(final: Tensor) -> Tensor:
            linear = torch.einsum("sbd,bd->sb", final, expected) + shift
            near = lse.repeat(len(final))
            return entropy - linear + self.log_sum_exp(final.flatten(0, 1), near).view_as(linear)

        return divergence

    def distance(
        self, logits: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch 2"]
    ) -> Callable[[Float[Tensor, "state batch d_model"]], Float[Tensor, "state batch"]]:
        """Return how far the logit difference is from that of clean logits, likewise."""
        columns, bias = self.unembed[:, answers], self.unembed_bias[answers]
        right, wrong = logits.gather(1, answers).unbind(1)

        def distance(final: Tensor) -> Tensor:
            both = torch.einsum("sbd,dba->sba", final, columns) + bias
            own, other = attention.capped(both, self.cap).unbind(2)
            return (own - other - right + wrong).abs()

        return distance

    def _capped(self, final: Tensor, p: Tensor, near: Tensor) -> Float[Tensor, "state batch"]:
        """Return p . logits - lse(logits) for logits under a soft cap, which bounds them."""
        rows = []
        for state in final:
            logits = attention.capped(state @ self.unembed + self.unembed_bias, self.cap)
            rows.append((p * logits).sum(-1) - logits.logsumexp(-1))
        return torch.stack(rows)

    def log_sum_exp(self, final: Rows, near: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Compute the log-sum-exp of each row's logits without storing all logits at once.

        Args:
            final: scaled final residuals.
            near: an estimate for each row; a fast path is used if it is within 80 of the result.
        """
        tall = torch.cat([final, torch.ones_like(final[:, :1]), -near[:, None]], 1)
        sums = [
            sum(((rows @ tile).exp_().sum(-1) for tile in self.tiles), start=rows.new_zeros(()))
            for rows in tall.split(ROWS)
        ]
        result = torch.cat(sums).log_().add_(near)
        far = ~result.isfinite()
        if far.any():
            result[far] = (final[far] @ self.unembed + self.unembed_bias).logsumexp(-1)
        return result


def _centre(written: Tensor, centred: bool) -> Tensor:
    return written - written.mean(-1, keepdim=True) if centred else written


def _norm(module: nn.Module | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and shift of a norm, by default one and zero."""
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
    factor = 1 / float(attn.attn_scale) if attention.is_linear(attn) else 1
    scale = weights.new_tensor([factor, 1, 1])[:, None, None]

    def positioned(scores: Tensor, heads: Sequence[int] | None) -> Tensor:
        if not attention.is_linear(attn):
            scores = scores / attn.attn_scale
        return attention.positioned(attn, scores, heads)

    return Layer(
        (scale[..., None] * gain[:, None] * weights).mT.contiguous(),
        scale * (biases + shift @ weights),
        _centre(attn.W_O, centred).contiguous(),
        _centre(attn.b_O, centred),
        attention.window(attn),
        None if attn.cfg.attn_only else _mlp(block, centred),
        _finish(attn),
        positioned,
    )


def _finish(attn: AbstractAttention) -> Callable[[int, Tensor, int], Tensor] | None:
    is_rotary = attn.cfg.positional_embedding_type == "rotary"
    if attention.is_linear(attn) and not is_rotary:
        return None

    def finish(part: int, x: Tensor, offset: int) -> Tensor:
        return attention.finished(attn, part, x[None], offset)[0]

    return finish


def _mlp(block: TransformerBlock, centred: bool) -> Callable[[Rows], Rows]:
    mlp: Any = block.mlp
    is_fused = type(mlp) in (MLP, GatedMLP) and mlp.cfg.act_fn in _FUSED
    gain, shift = _norm(block.ln2, block.attn.b_O)
    if not is_fused or mlp.cfg.use_normalization_before_and_after:
        return lambda rows: _centre(block.apply_mlp((rows * gain + shift)[None])[0], centred)
    out, out_bias = _centre(mlp.W_out, centred), _centre(mlp.b_out, centred)
    hidden = (_gated if isinstance(mlp, GatedMLP) else _plain)(mlp, gain, shift)

    def apply(rows: Rows) -> Rows:
        written = torch.empty_like(rows)
        for part, result in zip(rows.split(ROWS), written.split(ROWS), strict=True):
            torch.addmm(out_bias, hidden(part), out, out=result)
        return written

    return apply


def _plain(mlp: MLP, gain: Tensor, shift: Tensor) -> Callable[[Rows], Tensor]:
    into, bias = gain[:, None] * mlp.W_in, mlp.b_in + shift @ mlp.W_in
    activation = _FUSED[mlp.cfg.act_fn]
    return lambda rows: activation(torch.addmm(bias, rows, into))


def _gated(mlp: GatedMLP, gain: Tensor, shift: Tensor) -> Callable[[Rows], Tensor]:
    into, into_bias = gain[:, None] * mlp.W_in, shift @ mlp.W_in
    gate, gate_bias = gain[:, None] * mlp.W_gate, shift @ mlp.W_gate
    activation = _FUSED[mlp.cfg.act_fn]

    def hidden(rows: Rows) -> Tensor:
        active = activation(torch.addmm(gate_bias, rows, gate))
        return active.mul_(torch.addmm(into_bias, rows, into)).add_(mlp.b_in)

    return hidden
