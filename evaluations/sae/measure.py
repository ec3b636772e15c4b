"""What an autoencoder costs and how few of its features are active, over a whole split.

Every story is read on its own from position 0, the end-of-text token first, cut at the context;
every position counts. With x the activation of a token, x^ its reconstruction:

- L0: features that are not zero, mean over tokens.
- CE loss score = (CE_zero - CE_sae) / (CE_zero - CE_clean), CE the mean cross-entropy of the next
  token with the activation replaced by 0, by x^, by itself. 1: nothing is lost; 0: no better than
  nothing at the hook point; it is bounded on neither side.
- Explained variance = 1 - sum |x - x^|^2 / sum |x - mean x|^2. MSE = mean of |x - x^|^2, summed
  over dimensions (SAELens' definitions).
- Dead features: those active on no token of the split.
- Density of a feature: the share of tokens on which it is active.

Standard errors are clustered over stories; those of ratios by linearisation.
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

from evaluations.losses import token_losses
from evaluations.record import Metric
from evaluations.sae.convergence import LEAST_EXPLAINED, NOT_CONVERGED
from evaluations.statistics import Ratio, bootstrap, ratio
from evaluations.text import Text
from sat_interp import progress
from sat_interp.data.batches import story_batches
from sat_interp.errors import UserError
from sat_interp.fast_hook import Splice, splice

BATCH_TOKENS = 4096
PIECE = 1 << 22
"""Entries of (tokens, features) held at once."""

LOSSES = ("clean", "sae", "zero")

PerStory = Float[np.ndarray, " stories"]


@dataclass(frozen=True)
class Measured:
    """Sums over the tokens of each story, and the features' counts.

    Attributes:
        tokens: per story.
        nats: cross-entropy of each story with the activation as it is, reconstructed, and zero.
        active: active features, summed over tokens.
        squares: |x - x^|^2, summed over tokens.
        variance: |x - mean x|^2, summed over tokens; the mean is that of the split.
        fired: tokens on which each feature was active.
    """

    tokens: Int[np.ndarray, " stories"]
    nats: dict[str, PerStory]
    active: PerStory
    squares: PerStory
    variance: PerStory
    fired: Int[np.ndarray, " d_sae"]


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
    active, squares, lengths = np.zeros(stories), np.zeros(stories), np.zeros(stories)
    sums, scored = np.zeros((stories, d_in)), text.scored(context)
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
            squares[rows] = _per_story((x - found.output).square().sum(-1))
            lengths[rows] = _per_story(x.square().sum(-1))
            sums[rows] = x.sum(1, dtype=torch.float64).cpu().numpy()
            bar.update(inputs.numel())
    if not np.isfinite(lengths).all():
        raise UserError(f"the model's activations at {hook} are not finite (NaN)")
    mean = sums.sum(0) / scored.sum()
    variance = lengths - 2 * sums @ mean + scored * (mean @ mean)
    return Measured(scored, nats, active, squares, variance, fired.cpu().numpy())


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
        put = {"clean": x, "sae": self.output.view(x.shape), "zero": torch.zeros_like(x)}
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
        outputs.append(sae.decode(acts).to(x.dtype))
        is_active = acts != 0
        counts.append(is_active.sum(-1))
        fired += is_active.sum(0)
    return _Reconstruction(torch.cat(outputs).view(x.shape), torch.cat(counts).view(x.shape[:2]))


def _per_story(values: Tensor) -> PerStory:
    return values.sum(1, dtype=torch.float64).cpu().numpy()


@torch.inference_mode()
def ce_loss_score(
    model: HookedTransformer,
    hook: str,
    tokens: Int[Tensor, "batch pos"],
    reconstruct: Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]],
) -> float | None:
    """The CE loss score on some windows; None where zeroing the activation costs nothing."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    stopped = splice(model, inputs, hook)
    x = stopped.activation
    flat = reconstruct(x.flatten(2).flatten(0, 1)).to(x.dtype)
    clean, replaced, zero = (
        float(token_losses(model, stopped.finish(value), targets).double().mean())
        for value in (x, flat.view(x.shape), torch.zeros_like(x))
    )
    return (zero - replaced) / (zero - clean) if zero != clean else None


# Figures -------------------------------------------------------------------------------------


def metrics(found: Measured, seed: int, resamples: int) -> list[Metric]:
    """The figures of one autoencoder, each with its error and interval over stories."""
    tokens = int(found.tokens.sum())
    explained = ratio(found.squares, found.variance)
    reasons = {} if 1 - explained.value >= LEAST_EXPLAINED else {NOT_CONVERGED: 1}
    gained, possible = (
        found.nats["zero"] - found.nats["sae"],
        found.nats["zero"] - found.nats["clean"],
    )

    def metric(
        name: str, title: str, sums: np.ndarray, counts: np.ndarray, unit: str = "",
        direction: Any = None, flip: bool = False, marked: bool = False, about: str = "",
    ) -> Metric:  # fmt: skip
        of: Ratio = ratio(sums, counts)
        turn = (lambda value: 1 - value) if flip else (lambda value: value)
        return Metric(
            name, title, turn(of.value), unit, direction, of.standard_error,
            bootstrap(sums, counts, resamples=resamples, seed=seed, transform=turn),
            tokens, reasons=reasons if marked else {}, description=f"{about}; n: tokens",
        )  # fmt: skip

    ce = "mean cross-entropy of the next token, the activation"
    n = found.tokens
    return [
        metric("l0", "Active features of a token", found.active, n, "features", "lower",
               marked=True, about="mean number of features that are not zero"),
        metric("ce_score", "CE loss score", gained, possible, "", "higher", marked=True,
               about="(CE zero - CE sae) / (CE zero - CE clean); not bounded to [0, 1]"),
        metric("explained_variance", "Explained variance", found.squares, found.variance, "",
               "higher", flip=True, about="1 - squared error / variance, over the whole split"),
        metric("mse", "Squared error", found.squares, n, "", "lower",
               about="|x - x^|^2 summed over dimensions, mean over tokens"),
        metric("loss_clean", "CE, clean", found.nats["clean"], n, "nats/token", "lower",
               about=f"{ce} as it is"),
        metric("loss_sae", "CE, reconstructed", found.nats["sae"], n, "nats/token", "lower",
               about=f"{ce} reconstructed"),
        metric("loss_zero", "CE, zeroed", found.nats["zero"], n, "nats/token",
               about=f"{ce} replaced by zero"),
        *_feature_metrics(found.fired, tokens),
    ]  # fmt: skip


def _feature_metrics(fired: Int[np.ndarray, " d_sae"], tokens: int) -> list[Metric]:
    """Dead features and the density of the others; a dead one has no density on a log scale."""
    dead = int((fired == 0).sum())
    alive = fired[fired > 0] / tokens
    return [
        Metric(
            "dead_features", "Dead features", dead / len(fired), "share", "lower",
            n=len(fired), description=f"active on none of the split's tokens: {dead}; n: features",
        ),
        Metric(
            "median_density", "Median density", float(np.median(alive)) if len(alive) else None,
            "share of tokens", n=len(alive), n_failed=dead,
            reasons={"dead feature": dead} if dead else {},
            description="share of tokens on which a feature is active; n: features alive",
        ),
    ]  # fmt: skip


def density_histogram(
    fired: Int[np.ndarray, " d_sae"], tokens: int, bins: int = 30
) -> dict[str, Any]:
    """Features by log10 of their density; dead ones are counted beside it, in no bin."""
    alive = np.log10(fired[fired > 0] / tokens)
    edges = np.linspace(np.floor(-np.log10(tokens)), 0.0, bins + 1)
    counts, _ = np.histogram(alive, edges)
    return {"log10_edges": edges, "features": counts, "dead": int((fired == 0).sum())}


def replicates(found: Measured, seed: int, resamples: int) -> dict[str, list[float]]:
    """(L0, CE score) of the same bootstrap resamples of stories, paired: what a front needs.

    Autoencoders and models measured on the same stories with the same seed share their resamples.
    """
    draws = np.random.default_rng(seed)
    stories = len(found.tokens)
    gained, possible = (
        found.nats["zero"] - found.nats["sae"],
        found.nats["zero"] - found.nats["clean"],
    )
    pairs: dict[str, list[float]] = {"l0": [], "ce_score": []}
    for _ in range(resamples):
        drawn = draws.integers(stories, size=stories)
        pairs["l0"].append(float(found.active[drawn].sum() / found.tokens[drawn].sum()))
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.float64(gained[drawn].sum()) / possible[drawn].sum()
        pairs["ce_score"].append(float(score))
    return pairs
