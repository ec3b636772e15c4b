"""Other tools' conventions, against loops written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.evaluation import evaluate, story_losses
from evaluations.suite.lm.perplexity import (
    _windows,
    per_story_metric,
    sliding_losses,
    sliding_metric,
)
from tests.evaluations.conftest import CONTEXT, STORIES


def nats(model, tokens: list[int]) -> list[float]:
    """The cost of every token but the first, given those before it."""
    row = torch.tensor([tokens[:-1]])
    with torch.inference_mode():
        logs = model(row).log_softmax(-1)[0]
    return [-float(logs[i, tokens[i + 1]]) for i in range(len(tokens) - 1)]


@pytest.mark.parametrize("n_ctx", [CONTEXT, 7, 2, 500])
def test_sliding_scores_every_token_but_the_first_once_with_half_a_context(n_ctx, make_model, text):
    model = make_model(n_ctx=n_ctx)
    stream = text.corpus.tokens.astype(int).tolist()
    stride, total, scored, end = n_ctx // 2, 0.0, 0, 0
    for begin in range(0, len(stream), stride):  # transformers' loop, token by token
        window = stream[begin : begin + n_ctx]
        new = begin + len(window) - max(end, begin + 1)
        total += sum(nats(model, window)[-new:]) if new else 0.0
        scored, end = scored + new, begin + len(window)
        if end == len(stream):
            break
    assert scored == len(stream) - 1
    found = sliding_losses(model, text, batch_tokens=3 * n_ctx)["clean"]
    assert found[1].sum() == scored
    assert found[0].sum() == pytest.approx(total, rel=1e-9)
    metric = sliding_metric(found, "clean", 100, 0)
    assert metric.value == pytest.approx(math.exp(total / scored), rel=1e-9)
    assert metric.interval is not None
    assert metric.interval.low < metric.value < metric.interval.high


@pytest.mark.parametrize(("n_tokens", "context"), [(0, 8), (1, 8), (2, 8), (8, 8), (9, 8), (50, 7)])
def test_windows_cover_each_token_once(n_tokens, context):
    new = [
        position
        for begins, length, count in _windows(n_tokens, context, 20)
        for begin in begins
        for position in range(begin + length - count, begin + length)
    ]
    assert sorted(new) == list(range(1, n_tokens))


def test_per_story_is_the_mean_of_the_stories_without_their_closing_token(make_model, text):
    model = make_model(n_ctx=CONTEXT)
    end, values = text.corpus.end_of_text, []
    for number in range(len(text)):
        story = [end, *text.corpus.story(number).tolist()][: CONTEXT + 1]
        costs = nats(model, story)
        values.append(math.exp(sum(costs) / len(costs)))
    losses = story_losses(model, text)
    assert 0 < (losses.cut == 0).sum() < len(text)  # some whole, some cut
    result = evaluate(model, text, LanguageConfig(perplexity="per-story", resamples=0))
    metric = next(one for one in result.metrics if one.name == "perplexity_per_story")
    assert metric.value == pytest.approx(np.mean(values), rel=1e-9)
    assert metric.n == len(STORIES)


def test_both_streams_have_it_and_ours_stays(make_model, text):
    model = make_model("local")
    plain = evaluate(model, text, LanguageConfig(activation_stories=0))
    beside = evaluate(model, text, LanguageConfig(activation_stories=0, perplexity="sliding"))
    names = {metric.name: metric.value for metric in beside.metrics}
    assert {"perplexity_sliding", "ablated_perplexity_sliding"} <= names.keys()
    assert all(names[metric.name] == metric.value for metric in plain.metrics)


def test_what_cannot_be_scored_is_counted():
    totals = per_story_metric(np.array([1.0, np.inf, 0.0]), np.array([2, 3, 0]), "clean")
    assert (totals.value, totals.n, totals.n_failed) == (pytest.approx(math.exp(0.5)), 1, 1)
    nothing = sliding_metric((np.zeros(2), np.zeros(2, dtype=int)), "clean", 10, 0)
    assert nothing.value is None
    assert nothing.reasons == {"no token to score": 1}
