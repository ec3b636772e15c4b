"""Training activations: random windows of text, run through the model in shuffled buffers.

Batch ``step`` is a pure function of (seed, step): buffer ``step // batches`` holds the activations
of windows drawn by the buffer's number, in an order drawn from (seed, buffer). To resume, the
number of the step is enough; memory is that of one buffer. Unlike SAELens' buffers, which read a
text from start to end, buffers need no mixing: windows are drawn uniformly from the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.sae.config import SaeConfig
from sat_interp._util.errors import UserError
from sat_interp.data.corpus import TokenCorpus
from sat_interp.model.fast import fast_activations

# Tokens per forward pass.
FORWARD_TOKENS = 4096


class ActivationStream:
    """Batches of activations of the same tokens at several hook points.

    Args:
        corpus: the text.
        hooks: hook points; where activations have an axis for heads, heads are concatenated.
        config: seed, context, buffer and batch size.

    Raises:
        UserError: unknown hook point, text shorter than the context, or batch larger than a
            buffer.
    """

    def __init__(
        self,
        model: HookedTransformer,
        corpus: TokenCorpus,
        hooks: Sequence[str],
        config: SaeConfig,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.corpus, self.hooks, self.dtype = model, corpus, tuple(hooks), dtype
        self.seed, self.batch_tokens = config.seed, config.batch_tokens
        self.context = config.context_in(model)
        self.prompts = config.buffer_prompts
        self.batches = self.prompts * self.context // self.batch_tokens
        if len(corpus.tokens) < self.context:
            raise UserError(
                f"the text holds {len(corpus.tokens):,} tokens, fewer than one window of "
                f"{self.context:,}: use more text"
            )
        if self.batches < 1:
            raise UserError(
                f"a buffer of {self.prompts:,} windows of {self.context:,} tokens is less than a "
                f"batch of {self.batch_tokens:,}: use a larger buffer"
            )
        self._current: tuple[int, dict[str, Tensor], Tensor] | None = None

    def batch(self, step: int) -> dict[str, Float[Tensor, "batch d_in"]]:
        """Return the activations of training step ``step`` by hook point.

        Raises:
            UserError: the model's activations are not finite.
        """
        number, place = divmod(step, self.batches)
        if self._current is None or self._current[0] != number:
            self._current = None  # free the old buffer before the new one is filled
            self._current = (number, self._buffer(number), self._order(number))
        _, activations, order = self._current
        chosen = order[place * self.batch_tokens : (place + 1) * self.batch_tokens]
        return {name: value[chosen] for name, value in activations.items()}

    def windows(self, number: int) -> Int64[Tensor, "windows pos"]:
        """Return the windows of a buffer.

        Each is a random window of the text whose first token is replaced by the token that begins
        a story, as by SAELens' ``prepend_bos``.
        """
        drawn = self.corpus.windows(
            seed=self.seed, step=number, batch=self.prompts, length=self.context
        )
        drawn[:, 0] = self.corpus.start
        return drawn

    @torch.no_grad()  # not inference_mode: SAELens keeps the input for the backward pass
    def _buffer(self, number: int) -> dict[str, Tensor]:
        """Compute the activations of all windows of a buffer."""
        windows = self.windows(number).to(self.model.W_E.device)
        rows = max(1, FORWARD_TOKENS // self.context)
        whole: dict[str, Tensor] = {}
        for first in range(0, self.prompts, rows):
            tokens = windows[first : first + rows]
            for name, value in fast_activations(self.model, tokens, self.hooks).items():
                flat = value.flatten(2).flatten(0, 1)
                if name not in whole:
                    size = (self.prompts * self.context, flat.shape[1])
                    whole[name] = torch.empty(size, dtype=self.dtype, device=flat.device)
                whole[name][first * self.context : first * self.context + len(flat)] = flat
        for name, value in whole.items():
            if not torch.isfinite(value.sum()):
                raise UserError(f"the model's activations at {name} are not finite (NaN)")
        return whole

    def _order(self, number: int) -> Int64[Tensor, " tokens"]:
        """Return the order of a buffer: the ranks of raw Philox words, whose stream is stable.

        The counter starts beyond the range that ``corpus.windows`` uses with the same key.
        """
        key = np.array([self.seed % 2**64, number], dtype=np.uint64)
        draws = np.random.Philox(key=key, counter=[0, 0, 0, 1])
        words = draws.random_raw(self.prompts * self.context)
        return torch.from_numpy(np.argsort(words, kind="stable")).to(self.model.W_E.device)


def scaling_factors(stream: ActivationStream, batches: int) -> dict[str, float]:
    """Return the factor at each hook point that scales the mean norm of activations to sqrt(d).

    SAELens' ``expected_average_only_in``: sqrt(d) over the mean norm of the first ``batches``
    batches.

    Raises:
        UserError: activations are all zero.
    """
    norms = dict.fromkeys(stream.hooks, 0.0)
    widths: dict[str, int] = {}
    for step in range(batches):
        for name, value in stream.batch(step).items():
            norms[name] += float(value.norm(dim=-1).mean())
            widths[name] = value.shape[1]
    for name, total in norms.items():
        if total == 0:
            raise UserError(f"the model's activations at {name} are all zero")
    return {name: widths[name] ** 0.5 * batches / total for name, total in norms.items()}
