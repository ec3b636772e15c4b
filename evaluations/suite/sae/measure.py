"""What an autoencoder costs and how few of its features are active, over a whole split.

Every story is read on its own from position 0, the end-of-text token first, cut at the context;
every position counts. What the figures are is said in ``figures``.
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
from evaluations.suite.sae.figures import Measured, density_histogram, metrics, replicates
from evaluations.suite.sae.spread import Spread
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp.data.batches import story_batches
from sat_interp.model.splice import Splice, splice

BATCH_TOKENS = 4096
PIECE = 1 << 22
"""Entries of (tokens, features) held at once."""

LOSSES = ("clean", "sae", "zero")

PerStory = Float[np.ndarray, " stories"]
__all__ = ["Measured", "ce_loss_score", "density_histogram", "measure", "metrics", "replicates"]


@torch.inference_mode()
def measure(model: HookedTransformer, sae: SAE[Any], hook: str, text: Text) -> Measured:
    """Run the split through the model and the autoencoder.

    Raises:
        UserError: an unknown hook point, an autoencoder of another width, activations that are not
            finite.
    """
    sae.turn_off_forward_pass_hook_z_reshaping()  # heads are put side by side here
    context, stories = int(model.cfg.n_ctx), len(text)
    d_in = int(sae.cfg.d_in)
    nats = {name: np.zeros(stories) for name in LOSSES}
    active, squares, scored = np.zeros(stories), np.zeros(stories), text.scored(context)
    spread = Spread.empty(stories, d_in)
    fired = torch.zeros(int(sae.cfg.d_sae), dtype=torch.int64, device=model.W_E.device)
    bar = progress.bar(total=int(scored.sum()), desc="sae: measuring", unit="tok")
    with bar:
        for batch in story_batches(text.corpus, context, BATCH_TOKENS):
            tokens = batch.tokens.to(model.W_E.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            stopped = splice(model, inputs, hook)
            x = stopped.activation.flatten(2)
            check_width(x.shape[-1], d_in, hook)
            found = _reconstruct(sae, x, fired)
            rows = batch.index.numpy()
            for name, value in found.losses(model, stopped, targets).items():
                nats[name][rows] = _per_story(value)
            active[rows] = _per_story(found.active)
            squares[rows] = _per_story((x.double() - found.output).square().sum(-1))
            spread.add(rows, x)
            _check_finite(hook, spread.size, found.output, nats["clean"][rows])
            bar.update(inputs.numel())
    return Measured(scored, nats, active, squares, spread.variance(scored), fired.cpu().numpy())


def check_width(width: int, d_in: int, hook: str) -> None:
    """Refuse an autoencoder made for activations of another width.

    Raises:
        UserError: it is.
    """
    if width != d_in:
        raise UserError(
            f"the autoencoder reads {d_in} dimensions, but {hook} of this model has {width}"
        )


@dataclass(frozen=True)
class _Reconstruction:
    output: Float[Tensor, "batch pos d_in"]
    active: Int[Tensor, "batch pos"]

    def losses(
        self, model: HookedTransformer, stopped: Splice, targets: Int[Tensor, "batch pos"]
    ) -> dict[str, Float[Tensor, "batch pos"]]:
        """Cross-entropy of each target with each of the three activations at the hook point."""
        x = stopped.activation
        replaced = self.output.to(x.dtype).view(x.shape)
        put = {"clean": x, "sae": replaced, "zero": torch.zeros_like(x)}
        return {
            name: token_losses(model, stopped.finish(value), targets) for name, value in put.items()
        }


def _reconstruct(
    sae: SAE[Any], x: Float[Tensor, "batch pos d_in"], fired: Int[Tensor, " d_sae"]
) -> _Reconstruction:
    """Encode and decode in pieces; counts what fires into ``fired``."""
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
        raise UserError(f"what the autoencoder makes of {hook} is not finite (NaN)")
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
    """The CE loss score on some windows; None where zeroing the activation changes no loss."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    stopped = splice(model, inputs, hook)
    x = stopped.activation
    flat = reconstruct(x.flatten(2).flatten(0, 1)).to(x.dtype)
    clean, replaced, zero = (
        float(token_losses(model, stopped.finish(value), targets).double().mean())
        for value in (x, flat.view(x.shape), torch.zeros_like(x))
    )
    return (zero - replaced) / (zero - clean) if zero != clean else None
