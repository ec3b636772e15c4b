"""Greater-Than: all later years are right, all others wrong; the paper's probability difference."""

from __future__ import annotations

import pytest
import torch

from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import make_task
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.data.planted import CORPORA
from sat_interp.data.tokenizer import train_bpe
from sat_interp.model.shape import gpt_neo_config


@pytest.fixture(scope="module")
def tokenizer():
    sentences = CORPORA["numbers"].sentences("train", 0)
    return train_bpe([next(sentences) for _ in range(3000)], 600, digit_pairs=True)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    cfg = gpt_neo_config(
        n_layers=1, d_model=8, n_heads=2, d_vocab=len(tokenizer), n_ctx=24, initializer_range=0.5
    )
    return SelfAblatingTransformer(cfg, SelfAblationConfig(variant="none"), tokenizer=tokenizer)


def test_each_prompt_has_its_own_sides(tokenizer):
    prompts = make_task("greater-than", tokenizer, n=30, held_out=10)
    assert prompts.n_left_out == 0
    for part in (prompts, prompts.held_out):
        for pair in part.texts:
            later, others = part.sides(pair)
            year = int(pair.clean.split(" to ")[0][-2:])
            assert {tokenizer.decode([token]) for token in later} == {
                f"{one:02d}" for one in range(year + 1, 100)
            }
            # the corpus has no 00, which is not one token
            assert {tokenizer.decode([token]) for token in others} >= {
                f"{one:02d}" for one in range(2, year + 1)
            }
            assert not set(later) & set(others)


def test_digits_that_decide_nothing_are_on_neither_side():
    tokenizer = SelfAblatingTransformer.from_pretrained("demo:baseline").tokenizer
    prompts = make_task("greater-than-digit", tokenizer, n=30, held_out=10)
    for part in (prompts, prompts.held_out):
        for pair in part.texts:
            decade = int(pair.clean.split(" to ")[0][-2])
            larger, smaller = (
                [tokenizer.decode([token]) for token in side] for side in part.sides(pair)
            )
            assert larger == [str(digit) for digit in range(decade + 1, 10)]
            assert smaller == [str(digit) for digit in range(decade)]


def test_the_probability_difference_is_a_sum_over_years(model, tokenizer):
    prompts = make_task("greater-than", tokenizer, n=12)
    found = competence(model, prompts)
    assert len(found.probability_differences) == 12
    for pair, own in zip(prompts.texts, found.probability_differences, strict=True):
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(pair.clean)]])
        with torch.no_grad():
            p = model(tokens)[0, -1].double().softmax(-1)
        year, total = int(pair.clean.split(" to ")[0][-2:]), 0.0
        for one in range(100):
            token = tokenizer.encode(f"{one:02d}")
            if len(token) == 1:
                total += float(p[token[0]]) * (1 if one > year else -1)
        assert own == pytest.approx(total, abs=1e-6)


def test_a_subset_keeps_the_sides_and_other_tasks_have_none(model, tokenizer):
    prompts = make_task("greater-than", tokenizer, n=12)
    whole, half = (competence(model, one) for one in (prompts, prompts.subset(range(6))))
    assert half.probability_differences == pytest.approx(whole.probability_differences[:6])
    pairs = [{"clean": [1, 2], "corrupt": [1, 3], "answers": [4], "wrong_answers": [5]}]
    assert competence(model, make_task(pairs, tokenizer)).probability_differences == ()
