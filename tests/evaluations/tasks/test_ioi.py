"""Competence on a model whose answers are known, and the Wilson interval by hand."""

from __future__ import annotations

import pytest
import torch

from evaluations.tasks.ioi import competence, wilson
from sat_interp import SelfAblatingTransformer
from sat_interp.data.stories import ioi_prompts
from sat_interp.data.tokenizer import train_bpe
from sat_interp.errors import UserError
from sat_interp.shape import gpt_neo_config


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: (0.8 + 0.19207) / 1.38415 +- 1.96 sqrt(0.016 + 0.0096) / 1.38415
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0, 5)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(5, 5)[1] == pytest.approx(1.0, abs=1e-12)


@pytest.fixture(scope="module")
def names_first():
    """A tokenizer that knows the prompts' words, and a model that always prefers one name."""
    prompts = ioi_prompts(60, seed=5)
    texts = [f"{p.text} {p.io} {p.s}." for p in prompts] * 3
    return prompts, train_bpe(texts, 700)


def _model_that_prefers(token: int, d_vocab: int) -> SelfAblatingTransformer:
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=d_vocab, n_ctx=64)
    model = SelfAblatingTransformer(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.unembed.b_U[token] = 3.0
    return model


def test_accuracy_and_logit_difference_of_a_known_model(names_first):
    prompts, tokenizer = names_first
    single = [
        p for p in prompts if all(len(tokenizer.encode(f" {name}")) == 1 for name in (p.io, p.s))
    ]
    assert single
    favourite = single[0].io
    model = _model_that_prefers(tokenizer.encode(f" {favourite}")[0], len(tokenizer))
    result = competence(model, tokenizer, prompts)
    right = sum(p.io == favourite for p in single)
    wrong = sum(p.s == favourite for p in single)
    assert result.n == len(single)
    assert result.n_left_out == len(prompts) - len(single)
    assert result.accuracy == pytest.approx(right / len(single))
    assert result.top == pytest.approx(right / len(single))
    assert result.logit_difference == pytest.approx(3 * (right - wrong) / len(single))


def test_names_of_several_tokens_are_refused():
    tokenizer = train_bpe(["abc"] * 5, 260)
    model = _model_that_prefers(3, len(tokenizer))
    with pytest.raises(UserError, match="single tokens"):
        competence(model, tokenizer, ioi_prompts(4))
