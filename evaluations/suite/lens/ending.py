"""What follows a lens: the model's MLPs without attention, its last norm and unembedding, the KL.

All of it works on rows, one position each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components import LayerNorm
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from evaluations.core.ablation_pass import ATTENTION_OUT, MIDDLE, RESIDUAL_IN, Z, is_fused, unembed
from sat_interp.model import fast
from sat_interp.model.block import normalise
from sat_interp.model.unembedding import log_normaliser

LOGITS = 1 << 22
"""Logits that are computed at once."""


@dataclass(frozen=True)
class Target:
    """The model's own predictions p of rows, as the KL from them needs them.

    KL(p || q) = sum p log p - sum p logits_q + log Z_q, and the logits are linear in the normed
    stream: sum p logits_q = normed . (W_U p) + b_U . p. So nothing with an axis of the vocabulary
    is kept.

    Attributes:
        stream: the model's own stream after the last block.
        negative_entropy: sum p log p.
        direction: W_U p.
        offset: b_U . p.
    """

    stream: Float[Tensor, "rows d_model"]
    negative_entropy: Float[Tensor, " rows"]
    direction: Float[Tensor, "rows d_model"]
    offset: Float[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.stream)

    def take(self, rows: slice | Int[Tensor, " some"]) -> Target:
        """Return the targets of some rows."""
        parts = (self.stream, self.negative_entropy, self.direction, self.offset)
        return Target(*(pick(part, rows) for part in parts))


def pick(values: Tensor, rows: slice | Int[Tensor, " some"]) -> Tensor:
    """Return some rows, wherever they are kept."""
    return values[rows if isinstance(rows, slice) else rows.to(values.device)]


class Ending:
    """The parts of a model that lenses use.

    Attributes:
        model: one of sequential blocks.
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model
        self.is_fused = is_fused(model)
        cap = getattr(model.cfg, "output_logits_soft_cap", None)
        self.is_capped = cap is not None and cap > 0
        self.rows = max(64, LOGITS // model.cfg.d_vocab_out)

    @property
    def device(self) -> torch.device:
        """The model's device; streams may be kept elsewhere (``positions``)."""
        return self.model.W_E.device

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return int(self.model.cfg.n_layers)

    def chunks(self, n_rows: int) -> Iterator[slice]:
        """Yield slices of rows whose logits may be computed at once."""
        return (slice(start, start + self.rows) for start in range(0, n_rows, self.rows))

    def block(
        self,
        layer: int,
        stream: Float[Tensor, "rows d_model"],
        attention: Float[Tensor, "*rows d_model"],
    ) -> Float[Tensor, "rows d_model"]:
        """Return the stream after a block whose attention output is given."""
        block, middle = self.model.blocks[layer], (stream + attention)[None]
        if self.model.cfg.attn_only:
            return middle[0]
        if self.is_fused:
            state = dict.fromkeys((RESIDUAL_IN, Z, ATTENTION_OUT, MIDDLE), middle)
            for _, value in fast.steps(block, state):
                middle = value
            return middle[0]
        is_post_norm = self.model.cfg.original_architecture in POST_NORM_ARCHITECTURES
        out: Tensor = block.apply_mlp(middle if is_post_norm else block.ln2(middle))
        return (middle + out)[0]

    def log_probs(self, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_vocab"]:
        """Return the log-probabilities of a stream after the last block, as float64."""
        return unembed(self.model, stream.to(self.device)[None])[0].double().log_softmax(-1)

    def targets(self, stream: Float[Tensor, "rows d_model"]) -> Target:
        """Return the targets of the model's own stream after the last block."""
        parts = []
        with torch.no_grad():
            for rows in self.chunks(len(stream)):
                log_p = self.log_probs(stream[rows])
                p = log_p.exp()
                negative_entropy = (p * log_p).sum(-1).to(stream.dtype)
                p = p.to(stream.dtype)
                parts.append((negative_entropy, p @ self.model.W_U.T, p @ self.model.unembed.b_U))
        return Target(stream, *(torch.cat(one) for one in zip(*parts, strict=True)))

    def kl(self, target: Target, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
        """Return KL(target || prediction of a stream), in nats; differentiable in the stream.

        In the model's precision: in float32, values below about 1e-6 are noise.
        """
        if self.is_capped:
            log_p = self.log_probs(target.stream)
            return (log_p.exp() * (log_p - self.log_probs(stream))).sum(-1).to(stream.dtype)
        normed = self._normed(stream)
        mean_logit = (normed * target.direction).sum(-1) + target.offset
        total = log_normaliser(normed, self.model.W_U, self.model.unembed.b_U)
        return target.negative_entropy - mean_logit + total

    def _normed(self, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        norm = getattr(self.model, "ln_final", None)
        if norm is None:
            return stream
        if isinstance(norm, LayerNorm):
            return normalise(norm, stream)
        normed: Tensor = norm(stream[None])[0]
        return normed
