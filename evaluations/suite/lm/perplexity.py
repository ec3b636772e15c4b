"""Perplexity by the conventions of other tools, for comparison with their results.

``evaluation.py`` reads each story on its own and scores its closing end-of-text token. Two other
conventions are common:

- ``sliding``: all stories, each followed by an end-of-text token, are joined into one text. A
  window of the context's length moves over it by half its length. Every token but the first is
  scored once, given at least half a context of preceding tokens, possibly of another story. Used
  by lm-evaluation-harness' ``wikitext`` and described in the documentation of Transformers,
  "Perplexity of fixed-length models".
- ``per-story``: the mean over stories of each story's own perplexity; the closing end-of-text token
  is not scored. Used by the ``perplexity`` metric of the ``evaluate`` library, with
  ``add_start_token``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from transformer_lens import HookedTransformer

from evaluations.core.losses import streams, token_losses
from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap, mean_interval
from evaluations.core.text import Text
from sat_interp._util import progress

Totals = tuple[Float[np.ndarray, " stories"], Int[np.ndarray, " stories"]]
"""Summed cross-entropy (nats) and number of scored tokens of each story."""


@torch.inference_mode()
def sliding_losses(model: HookedTransformer, text: Text, batch_tokens: int) -> dict[str, Totals]:
    """Compute each stream's losses on the text as one sequence, read through a sliding window.

    Args:
        batch_tokens: maximum number of tokens in a batch, which holds at least one window.
    """
    context, n_tokens = int(model.cfg.n_ctx), len(text.corpus.tokens)
    ends = np.asarray(text.corpus.offsets[1:], dtype=np.int64)
    nats: dict[str, np.ndarray] = {}
    counts = np.zeros(len(text), dtype=np.int64)
    with progress.bar(total=max(n_tokens - 1, 0), desc="lm: sliding", unit="tok") as bar:
        for begins, length, new in _windows(n_tokens, context, batch_tokens):
            at = begins[:, None] + np.arange(length)
            tokens = torch.from_numpy(text.corpus.tokens[at].astype(np.int64))
            tokens = tokens.to(model.W_E.device)
            story = np.searchsorted(ends, at[:, -new:].ravel(), side="right")
            for stream in streams(model, tokens[:, :-1]):
                losses = token_losses(model, stream.states[:, -new:], tokens[:, -new:]).cpu()
                flat = losses.double().numpy().ravel()
                sums = nats.setdefault(stream.name, np.zeros(len(text)))
                sums += np.bincount(story, flat, minlength=len(text))
            counts += np.bincount(story, minlength=len(text))
            bar.update(len(story))
    return {name: (sums, counts) for name, sums in nats.items()}


def _windows(
    n_tokens: int, context: int, batch_tokens: int
) -> Iterator[tuple[Int[np.ndarray, " windows"], int, int]]:
    """Yield batches of windows of equal length: their starts, length and number of new tokens.

    New tokens are scored; every token but the first is new in exactly one window.
    """
    first = min(context, n_tokens)
    if first < 2:
        return
    yield np.array([0]), first, first - 1
    stride = max(context // 2, 1)
    rows = max(1, batch_tokens // context)
    begins = np.arange(stride, max(n_tokens - context, 0) + 1, stride)
    for start in range(0, len(begins), rows):
        yield begins[start : start + rows], context, stride
    scored = context + len(begins) * stride
    if n_tokens > scored:
        begin = (len(begins) + 1) * stride
        yield np.array([begin]), n_tokens - begin, n_tokens - scored


def sliding_metric(totals: Totals, stream: str, resamples: int, seed: int) -> Metric:
    """Return the perplexity of the text as one sequence: exp of the mean cross-entropy."""
    nats, counts = totals
    n, failed = int(counts.sum()), int((~np.isfinite(nats)).sum())
    value = float(np.exp(nats.sum() / n)) if n else None
    interval = bootstrap(nats, counts, resamples=resamples, seed=seed, transform=np.exp)
    return _metric(
        "sliding",
        stream,
        value,
        interval if n else None,
        n,
        failed,
        "stories joined; the window moves by half the context; n: tokens",
    )


def per_story_metric(
    nats: Float[np.ndarray, " stories"], tokens: Int[np.ndarray, " stories"], stream: str
) -> Metric:
    """Return the mean perplexity of a story, its closing token not scored."""
    scored = tokens > 0
    with np.errstate(over="ignore"):
        values = np.exp(nats[scored] / tokens[scored])
    finite = values[np.isfinite(values)]
    return _metric(
        "per_story",
        stream,
        float(finite.mean()) if len(finite) else None,
        mean_interval(finite, "stories"),
        len(finite),
        len(values) - len(finite),
        "mean of each story's perplexity, closing token not scored; n: stories",
    )


def _metric(
    convention: str,
    stream: str,
    value: float | None,
    interval: Interval | None,
    n: int,
    failed: int,
    description: str,
) -> Metric:
    prefix = "" if stream == "clean" else f"{stream}_"
    title = f"Perplexity, {convention.replace('_', ' ')}, {stream} stream"
    reasons = {"loss not finite": failed} if failed else {}
    if value is None and not failed:
        reasons = {"no token to score": 1}
    return Metric(
        f"{prefix}perplexity_{convention}",
        title,
        value,
        "",
        "lower",
        None,
        interval,
        n,
        failed,
        reasons,
        description,
    )
