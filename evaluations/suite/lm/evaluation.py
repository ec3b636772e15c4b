"""Perplexity, bits per byte, weight magnitude and activation sparsity of a model (``lm``).

Perplexity = exp(mean cross-entropy per token, nats) over the whole split. Each story is read on its
own from position 0, BOS first (end-of-text where the tokenizer has none, and for models trained
here). Every token is predicted once, the closing end-of-text included; tokens beyond the context
are cut and counted.

Bits per byte = total nats / (ln 2 * UTF-8 bytes of the scored text). End-of-text tokens add nats
but no bytes. Of these metrics, only bits per byte is comparable between vocabularies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformer_lens import HookedTransformer

from evaluations.core import weights
from evaluations.core.inputs import text_data
from evaluations.core.losses import streams, token_losses
from evaluations.core.models import evaluation_mode
from evaluations.core.record import Interval, Metric
from evaluations.core.spec import Measurement
from evaluations.core.statistics import Ratio, bootstrap, ratio
from evaluations.core.text import Text, check_vocabulary
from evaluations.suite.lm import sparsity
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.perplexity import per_story_metric, sliding_losses, sliding_metric
from sat_interp._util import progress
from sat_interp.data.batches import story_batches

prepare = text_data
BATCH_TOKENS = 4096
WORSE_THAN_UNIFORM = 0.5
"""Nats per token above log(vocabulary size); the loss of an untrained model is lower."""


@dataclass(frozen=True)
class StoryLosses:
    """Cross-entropy of each story.

    Attributes:
        nats: summed cross-entropy by stream (``clean``; ``ablated`` for models with gates).
        tokens: number of scored tokens.
        cut: number of tokens beyond the context.
        sizes: UTF-8 bytes of the scored text.
        closing: cross-entropy of the closing end-of-text token by stream; 0 where it was cut.
        lost: description of what tokenization loses of the text; empty where nothing.
    """

    nats: dict[str, Float[np.ndarray, " stories"]]
    tokens: Int[np.ndarray, " stories"]
    cut: Int[np.ndarray, " stories"]
    sizes: Int[np.ndarray, " stories"]
    closing: dict[str, Float[np.ndarray, " stories"]]
    lost: str = ""


def evaluate(model: HookedTransformer, text: Text, config: LanguageConfig) -> Measurement:
    """Measure perplexity, bits per byte and the sparsity of weights and activations.

    Raises:
        UserError: the text has tokens the model does not know.
    """
    check_vocabulary(model, text)
    with evaluation_mode(model), torch.random.fork_rng():
        torch.manual_seed(config.seed)  # random gates draw from this generator
        losses = story_losses(model, text)
        activations = sparsity.measure(
            model, text, config.activation_stories, config.l0_threshold, config.seed
        )
        other_perplexities = _other_convention(model, text, losses, config)
    metrics = [metric for name in losses.nats for metric in _loss_metrics(losses, name, config)]
    if "ablated" in losses.nats:
        metrics.append(_gap(losses))
    metrics += [*other_perplexities, _cut(losses), *_weight_metrics(model), *activations.metrics()]
    extra: dict[str, Any] = {"activations": activations.per_layer()}
    if warning := _health(losses, model):
        extra["health"] = [warning]
    return Measurement(metrics, extra)


def _health(losses: StoryLosses, model: HookedTransformer) -> str | None:
    """Return a warning if the model predicts worse than a uniform distribution."""
    mean = losses.nats["clean"].sum() / losses.tokens.sum()
    if not mean > math.log(model.cfg.d_vocab) + WORSE_THAN_UNIFORM:
        return None
    return "worse than a uniform guess over all tokens; is the tokenizer the model's own?"


def preview(subject: Any) -> str:
    """Describe the text that the default settings score."""
    scored = int(subject.text.scored(int(subject.known.model.cfg.n_ctx)).sum())
    return f"{len(subject.text):,} stories, {scored:,} tokens"


@torch.inference_mode()
def story_losses(
    model: HookedTransformer, text: Text, batch_tokens: int = BATCH_TOKENS
) -> StoryLosses:
    """Compute the cross-entropy of every story in every stream of the model."""
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
    return StoryLosses(nats, scored, cut, text.scored_bytes(context), closing, text.lossiness())


def _other_convention(
    model: HookedTransformer, text: Text, losses: StoryLosses, config: LanguageConfig
) -> list[Metric]:
    """Return the perplexity of each stream under the configured convention, if any."""
    if config.perplexity == "sliding":
        return [
            sliding_metric(totals, name, config.resamples, config.seed)
            for name, totals in sliding_losses(model, text, BATCH_TOKENS).items()
        ]
    if config.perplexity == "per-story":
        tokens = losses.tokens - (losses.cut == 0)
        return [
            per_story_metric(nats - losses.closing[name], tokens, name)
            for name, nats in losses.nats.items()
        ]
    return []


def _loss_metrics(losses: StoryLosses, stream: str, config: LanguageConfig) -> list[Metric]:
    """Return loss, perplexity and bits per byte of one stream; clean names have no prefix."""
    prefix = "" if stream == "clean" else f"{stream}_"
    nats, tokens, sizes = losses.nats[stream], losses.tokens, losses.sizes
    failed = int((~np.isfinite(nats)).sum())
    reasons = {"loss not finite": failed} if failed else {}
    bits = nats / math.log(2)
    mean, per_byte = ratio(nats, tokens), ratio(bits, sizes)
    perplexity = _exp(mean.value)
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
    resample = partial(bootstrap, resamples=config.resamples, seed=config.seed)

    def metric(
        name: str, title: str, unit: str, estimate: Ratio, interval: Interval | None, about: str
    ) -> Metric:
        return Metric(
            prefix + name,
            f"{title}, {stream} stream",
            estimate.value,
            unit,
            "lower",
            estimate.standard_error,
            interval,
            n=int(tokens.sum()),
            n_failed=failed,
            reasons=reasons,
            description=about,
        )

    return [
        metric(
            "loss",
            "Cross-entropy",
            "nats/token",
            mean,
            resample(nats, tokens),
            "mean over all scored tokens; n: tokens; error clustered over stories",
        ),
        metric(
            "perplexity",
            "Perplexity",
            "",
            Ratio(perplexity, _times(mean.standard_error, perplexity)),
            resample(nats, tokens, transform=np.exp),
            "exp of the mean cross-entropy over the whole split; n: tokens",
        ),
        metric(
            "bits_per_byte",
            "Bits per byte",
            "bits/byte",
            per_byte,
            resample(bits, sizes),
            f"total bits, end-of-text tokens included, per byte of scored text; n: tokens{lossy}",
        )
        if sizes.any()
        else no_bytes,
    ]


def _gap(losses: StoryLosses) -> Metric:
    """Return the ablated minus the clean loss, paired by story."""
    gap = ratio(losses.nats["ablated"] - losses.nats["clean"], losses.tokens)
    return Metric(
        "ablation_gap",
        "Ablated minus clean cross-entropy",
        gap.value,
        "nats/token",
        "lower",
        gap.standard_error,
        n=int(losses.tokens.sum()),
        description="mean over all scored tokens, paired; error clustered over stories",
    )


def _cut(losses: StoryLosses) -> Metric:
    """Return the number of tokens beyond the context."""
    return Metric(
        "cut_tokens",
        "Tokens beyond the context",
        float(losses.cut.sum()),
        "tokens",
        n=int((losses.cut > 0).sum()),
        description="cut and not scored; n: stories with cut tokens",
    )


def _weight_metrics(model: HookedTransformer) -> list[Metric]:
    """Return mean |w|: of the parameters the paper counts (its L1), of all, and by component."""
    tied = weights.tied_parameters(model)
    views = {
        "l1_exported": ("Mean |w|, exported (the paper's L1)", weights.exported_parameters(model)),
        "l1_tied": ("Mean |w|, tied parameters", tied),
    }
    for part in weights.COMPONENTS:
        chosen = {name: value for name, value in tied.items() if weights.component(name) == part}
        views[f"l1_{part}"] = (f"Mean |w|, {part}", chosen)
    return [
        Metric(
            name,
            title,
            weights.mean_absolute(chosen),
            "",
            "lower",
            n=weights.count(chosen),
            description="mean absolute weight; n: parameters",
        )
        for name, (title, chosen) in views.items()
    ]


def _exp(value: float) -> float:
    """Return exp(value), infinite where it overflows."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _times(error: float | None, factor: float) -> float | None:
    """Scale a standard error (delta method: the error of exp(x) is exp(x) times that of x)."""
    return None if error is None else error * factor
