"""lm: how well a model predicts text, how large its weights are, how sparse its activations.

Perplexity = exp(mean cross-entropy per token, nats) over the WHOLE split. Each story is read on its
own from position 0, BOS first (end-of-text where the tokenizer has none, and for models trained
here); every token is predicted once, the closing end-of-text included; what does not fit into the
context is cut, and counted.

Bits per byte = total nats / (ln 2 * UTF-8 bytes of the scored text). The end-of-text tokens' nats
are in (they say where a text ends) and add no bytes. It is the only figure here that can be
compared between vocabularies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformer_lens import HookedTransformer

from evaluations.core import weights
from evaluations.core.inputs import text_data
from evaluations.core.losses import streams, token_losses
from evaluations.core.record import Metric
from evaluations.core.spec import Measurement
from evaluations.core.statistics import bootstrap, ratio
from evaluations.core.text import Text, check_vocabulary
from evaluations.suite.lm import sparsity
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.perplexity import (
    per_story_metric,
    sliding_losses,
    sliding_metric,
)
from sat_interp._util import progress
from sat_interp.data.batches import story_batches

prepare = text_data
BATCH_TOKENS = 4096
WORSE_THAN_UNIFORM = 0.5
"""Nats per token above the logarithm of the vocabulary: more than an untrained model has."""


@dataclass(frozen=True)
class StoryLosses:
    """What each story cost.

    Attributes:
        nats: per stream (``clean``, and ``ablated`` for models with gates), each story's summed
            cross-entropy.
        tokens: tokens scored per story.
        cut: tokens that did not fit into the context.
        sizes: UTF-8 bytes of the scored text.
        closing: per stream, the part of ``nats`` that is the closing end-of-text token's; 0 for a
            story that was cut.
        lost: what the tokenizer loses of the text (``Text.losses_told``).
    """

    nats: dict[str, Float[np.ndarray, " stories"]]
    tokens: Int[np.ndarray, " stories"]
    cut: Int[np.ndarray, " stories"]
    sizes: Int[np.ndarray, " stories"]
    closing: dict[str, Float[np.ndarray, " stories"]]
    lost: str = ""


def evaluate(model: HookedTransformer, text: Text, config: LanguageConfig) -> Measurement:
    """Perplexity, bits per byte, weight and activation sparsity of any HookedTransformer.

    Raises:
        UserError: the text has tokens the model does not know.
    """
    check_vocabulary(model, text)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # gates that are random draw from here
        losses = story_losses(model, text)
        activations = sparsity.measure(
            model, text, config.activation_stories, config.l0_threshold, config.seed
        )
        beside = _other_convention(model, text, losses, config)
    model.train(was_training)
    metrics = [metric for name in losses.nats for metric in _loss_metrics(losses, name, config)]
    if "ablated" in losses.nats:
        metrics.append(_gap(losses))
    metrics += [*beside, _cut(losses), *_weight_metrics(model), *activations.metrics()]
    extra: dict[str, Any] = {"activations": activations.per_layer()}
    if unhealthy := _health(losses, model):
        extra["health"] = [unhealthy]
    return Measurement(metrics, extra)


def _health(losses: StoryLosses, model: HookedTransformer) -> str | None:
    """What is wrong where a model predicts worse than a guess that knows nothing."""
    mean = losses.nats["clean"].sum() / losses.tokens.sum()
    if not mean > math.log(model.cfg.d_vocab) + WORSE_THAN_UNIFORM:
        return None
    return "worse than a uniform guess over all tokens; is the tokenizer the model's own?"


def preview(subject: Any) -> str:
    """Return what the defaults read of a model."""
    scored = int(subject.text.scored(int(subject.known.model.cfg.n_ctx)).sum())
    return f"{len(subject.text):,} stories, {scored:,} tokens"


@torch.inference_mode()
def story_losses(
    model: HookedTransformer, text: Text, batch_tokens: int = BATCH_TOKENS
) -> StoryLosses:
    """Cross-entropy of every story under every stream of the model."""
    context = int(model.cfg.n_ctx)
    scored = text.scored(context)
    cut = text.lengths - scored
    nats: dict[str, np.ndarray] = {}
    closing: dict[str, np.ndarray] = {}
    with progress.bar(total=int(scored.sum()), desc="lm: losses", unit="tok") as bar:
        for batch in story_batches(text.corpus, context, batch_tokens):
            tokens = batch.tokens.to(model.W_E.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            for stream in streams(model, inputs):
                losses = token_losses(model, stream.states, targets).double()
                stories = batch.index.numpy()
                sums = nats.setdefault(stream.name, np.zeros(len(text)))
                sums[stories] = losses.sum(1).cpu().numpy()
                last = closing.setdefault(stream.name, np.zeros(len(text)))
                last[stories] = np.where(cut[stories] == 0, losses[:, -1].cpu().numpy(), 0.0)
            bar.update(inputs.numel())
    return StoryLosses(nats, scored, cut, text.scored_bytes(context), closing, text.losses_told())


def _other_convention(
    model: HookedTransformer, text: Text, losses: StoryLosses, config: LanguageConfig
) -> list[Metric]:
    """Return the perplexity of each stream under the convention that is asked for, if any."""
    if config.perplexity == "sliding":
        found = sliding_losses(model, text, BATCH_TOKENS)
        return [
            sliding_metric(totals, name, config.resamples, config.seed)
            for name, totals in found.items()
        ]
    if config.perplexity == "per-story":
        tokens = losses.tokens - (losses.cut == 0)
        return [
            per_story_metric(nats - losses.closing[name], tokens, name)
            for name, nats in losses.nats.items()
        ]
    return []


def _loss_metrics(losses: StoryLosses, stream: str, config: LanguageConfig) -> list[Metric]:
    """Loss, perplexity and bits per byte of one stream; clean ones carry no prefix."""
    prefix = "" if stream == "clean" else f"{stream}_"
    nats, tokens, sizes = losses.nats[stream], losses.tokens, losses.sizes
    failed = int((~np.isfinite(nats)).sum())
    reasons = {"loss not finite": failed} if failed else {}
    mean, per_byte = ratio(nats, tokens), ratio(nats / math.log(2), sizes)
    perplexity = _exp(mean.value)
    n_tokens = int(tokens.sum())
    lossy = f"; text lost: {losses.lost}" if losses.lost else ""
    no_bytes = Metric(
        f"{prefix}bits_per_byte",
        f"Bits per byte, {stream} stream",
        None,
        "bits/byte",
        "lower",
        n_failed=1,
        reasons={"the text is token ids": 1},
    )

    def metric(name: str, title: str, unit: str, value: float, error: float | None,
               per: np.ndarray, scale: float, exp: bool, description: str) -> Metric:  # fmt: skip
        interval = bootstrap(
            nats * scale, per, resamples=config.resamples, seed=config.seed,
            transform=np.exp if exp else np.asarray,
        )  # fmt: skip
        return Metric(
            prefix + name, f"{title}, {stream} stream", value, unit, "lower", error, interval,
            n_tokens, failed, reasons, description,
        )  # fmt: skip

    return [
        metric("loss", "Cross-entropy", "nats/token", mean.value, mean.standard_error, tokens, 1.0,
               False, "mean over all scored tokens; n: tokens; error clustered over stories"),
        metric("perplexity", "Perplexity", "", perplexity, _times(mean.standard_error, perplexity),
               tokens, 1.0, True, "exp of the mean cross-entropy over the whole split; n: tokens"),
        metric("bits_per_byte", "Bits per byte", "bits/byte", per_byte.value,
               per_byte.standard_error, sizes, 1 / math.log(2), False,
               "all nats, end-of-text included, over the bytes of the scored text; n: tokens"
               + lossy) if sizes.any() else no_bytes,
    ]  # fmt: skip


def _gap(losses: StoryLosses) -> Metric:
    """What ablation costs: ablated minus clean loss, paired by story."""
    gap = ratio(losses.nats["ablated"] - losses.nats["clean"], losses.tokens)
    return Metric(
        "ablation_gap", "Ablated minus clean cross-entropy", gap.value, "nats/token", "lower",
        gap.standard_error, n=int(losses.tokens.sum()),
        description="mean over all scored tokens, paired; error clustered over stories",
    )  # fmt: skip


def _cut(losses: StoryLosses) -> Metric:
    return Metric(
        "cut_tokens", "Tokens cut at the context's end", float(losses.cut.sum()), "tokens",
        n=int((losses.cut > 0).sum()), description="not scored anywhere; n: stories cut",
    )  # fmt: skip


def _weight_metrics(model: HookedTransformer) -> list[Metric]:
    """Mean |w|: the paper's L1 'sparsity', over what it was taken over, and by component."""
    tied = weights.tied_parameters(model)
    views = {
        "l1_exported": ("Mean |w|, exported (the paper's L1)", weights.exported_parameters(model)),
        "l1_tied": ("Mean |w|, tied parameters", tied),
    }
    for part in weights.COMPONENTS:
        chosen = {name: value for name, value in tied.items() if weights.component(name) == part}
        views[f"l1_{part}"] = (f"Mean |w|, {part}", chosen)
    return [
        Metric(name, title, weights.mean_absolute(chosen), "", "lower", n=weights.count(chosen),
               description="mean absolute weight; n: parameters")
        for name, (title, chosen) in views.items()
    ]  # fmt: skip


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _times(error: float | None, factor: float) -> float | None:
    """The delta method: the error of exp(x) is exp(x) times that of x."""
    return None if error is None else error * factor
