"""Measurement of an autoencoder over a whole split of text.

Every story is read on its own from position 0, beginning with the token that begins stories, and
cut at the context; every position counts. ``metrics`` defines what is computed from the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.losses import token_losses
from evaluations.core.text import Text
from evaluations.suite.sae.metrics import AutoencoderSums, PerStory
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp.data.batches import story_batches
from sat_interp.model.splice import Splice, splice

BATCH_TOKENS = 4096
PIECE = 1 << 22
"""Entries of (tokens, features) in memory at once."""
ROUNDING = 64 * np.finfo(np.float64).eps
"""Spread below this share of the size is rounding error of values that are all equal."""

LOSSES = ("clean", "sae", "zero")


@torch.inference_mode()
def measure(model: HookedTransformer, sae: SAE[Any], hook: str, text: Text) -> AutoencoderSums:
    """Run the split through the model and the autoencoder.

    Raises:
        UserError: unknown hook point, width mismatch or activations that are not finite.
    """
    sae.turn_off_forward_pass_hook_z_reshaping()  # heads are concatenated below
    context, stories = int(model.cfg.n_ctx), len(text)
    d_in = int(sae.cfg.d_in)
    nats = {name: np.zeros(stories) for name in LOSSES}
    active, squares, scored = np.zeros(stories), np.zeros(stories), text.scored(context)
    variance = ActivationVariance.empty(stories, d_in)
    fired = torch.zeros(int(sae.cfg.d_sae), dtype=torch.int64, device=model.W_E.device)
    bar = progress.bar(total=int(scored.sum()), desc="sae: measuring", unit="tok")
    with bar:
        for batch in story_batches(text.corpus, context, BATCH_TOKENS):
            tokens = batch.tokens.to(model.W_E.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            stopped = splice(model, inputs, hook)
            x = stopped.activation.flatten(2)
            check_width(x.shape[-1], d_in, hook)
            reconstruction = _reconstruct(sae, x, fired)
            rows = batch.index.numpy()
            for name, value in reconstruction.losses(model, stopped, targets).items():
                nats[name][rows] = _per_story(value)
            active[rows] = _per_story(reconstruction.active)
            squares[rows] = _per_story((x.double() - reconstruction.output).square().sum(-1))
            variance.add(rows, x)
            _check_finite(hook, variance.size, reconstruction.output, nats["clean"][rows])
            bar.update(inputs.numel())
    return AutoencoderSums(
        scored, nats, active, squares, variance.per_story(scored), fired.cpu().numpy()
    )


def check_width(width: int, d_in: int, hook: str) -> None:
    """Check that the autoencoder has the width of the activations.

    Raises:
        UserError: it has not.
    """
    if width != d_in:
        raise UserError(
            f"the autoencoder reads {d_in} dimensions, but {hook} of this model has {width}"
        )


@dataclass(frozen=True)
class _Reconstruction:
    """Reconstructed activations and the number of active features of each token."""

    output: Float[Tensor, "batch pos d_in"]
    active: Int[Tensor, "batch pos"]

    def losses(
        self, model: HookedTransformer, stopped: Splice, targets: Int[Tensor, "batch pos"]
    ) -> dict[str, Float[Tensor, "batch pos"]]:
        """Return the cross-entropy of targets with the activation clean, replaced and zeroed."""
        x = stopped.activation
        replaced = self.output.to(x.dtype).view(x.shape)
        activations = {"clean": x, "sae": replaced, "zero": torch.zeros_like(x)}
        return {
            name: token_losses(model, stopped.finish(value), targets)
            for name, value in activations.items()
        }


def _reconstruct(
    sae: SAE[Any], x: Float[Tensor, "batch pos d_in"], fired: Int[Tensor, " d_sae"]
) -> _Reconstruction:
    """Encode and decode in pieces; add the tokens on which features fire to ``fired``."""
    flat = x.flatten(0, 1)
    outputs, counts = [], []
    for part in flat.split(max(1, PIECE // len(fired))):
        acts = sae.encode(part.to(sae.dtype))
        outputs.append(sae.decode(acts))
        is_active = acts != 0
        counts.append(is_active.sum(-1))
        fired += is_active.sum(0)
    return _Reconstruction(torch.cat(outputs).view(x.shape), torch.cat(counts).view(x.shape[:2]))


def _check_finite(hook: str, size: float, output: Tensor, nats: PerStory) -> None:
    if not np.isfinite(size):
        raise UserError(f"the model's activations at {hook} are not finite (NaN)")
    if not output.isfinite().all():
        raise UserError(f"the autoencoder's reconstruction of {hook} is not finite (NaN)")
    if not np.isfinite(nats).all():
        raise UserError("the model's loss is not finite (NaN)")


def _per_story(values: Tensor) -> PerStory:
    return values.sum(1, dtype=torch.float64).cpu().numpy()


@torch.inference_mode()
def ce_loss_score(
    model: HookedTransformer,
    hook: str,
    tokens: Int[Tensor, "batch pos"],
    reconstruct: Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]],
) -> float | None:
    """Return the CE loss score on some windows; None if zeroing does not change the loss."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    stopped = splice(model, inputs, hook)
    x = stopped.activation
    flat = reconstruct(x.flatten(2).flatten(0, 1)).to(x.dtype)
    clean, replaced, zero = (
        float(token_losses(model, stopped.finish(value), targets).double().mean())
        for value in (x, flat.view(x.shape), torch.zeros_like(x))
    )
    return (zero - replaced) / (zero - clean) if zero != clean else None


@dataclass
class ActivationVariance:
    """Accumulator of the variance of activations, exact however large their mean is.

    The difference of the mean square and the squared mean cancels: in float32 completely where
    mean^2 / variance is about 1e7. Here the squares of each story are taken about the story's own
    mean, in float64, and shifted to the mean of all (Chan, Golub and LeVeque 1983, "Algorithms for
    Computing the Sample Variance"): sum_i (inner_i + n_i |mean_i - mean|^2).

    Attributes:
        inner: |x - mean_i|^2 summed over the tokens of story i.
        means: mean_i.
        size: |x|^2 summed over all tokens; not finite if an activation is not finite.
    """

    inner: PerStory
    means: Float[np.ndarray, "stories d_in"]
    size: float = 0.0

    @classmethod
    def empty(cls, stories: int, d_in: int) -> ActivationVariance:
        """Return the sums before any story is added."""
        return cls(np.zeros(stories), np.zeros((stories, d_in)))

    def add(self, rows: Int[np.ndarray, " batch"], x: Float[Tensor, "batch pos d_in"]) -> None:
        """Add the activations of some whole stories."""
        x = x.double()
        mean = x.mean(1, keepdim=True)
        self.means[rows] = mean.squeeze(1).cpu().numpy()
        self.inner[rows] = (x - mean).square().sum((1, 2)).cpu().numpy()
        self.size += float(torch.linalg.vector_norm(x) ** 2)

    def per_story(self, tokens: Int[np.ndarray, " stories"]) -> PerStory:
        """Return |x - mean x|^2 of each story, summed over tokens; exactly 0 if all x are equal.

        Args:
            tokens: number of tokens of each story.
        """
        mean = np.average(self.means, axis=0, weights=tokens)
        squares = self.inner + tokens * np.square(self.means - mean).sum(1)
        return np.zeros_like(squares) if squares.sum() <= ROUNDING**2 * self.size else squares
