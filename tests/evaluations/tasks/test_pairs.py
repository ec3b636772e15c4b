"""Buckets, resampling and the null task on pairs made by hand; competence of known models."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from evaluations.core.runner import Data
from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts, check_fit, competence, wilson
from sat_interp._util.errors import UserError


def _prompts(*batches: PairBatch) -> TaskPrompts:
    texts = [
        Pair(str(batch.clean[row].tolist()), str(batch.corrupted[row].tolist()), "r", "w")
        for batch in batches
        for row in range(len(batch))
    ]
    return TaskPrompts("mine", batches, tuple(texts), {"too long": 2, "odd": 1}, note={"seed": 4})


def _batch(size: int, length: int, answers: list[tuple[int, int]], first: int = 0) -> PairBatch:
    """Rows that can be told apart: row i of clean is full of first + i, of corrupted of 50 more."""
    rows = (first + torch.arange(size))[:, None].expand(size, length).clone()
    right, wrong = torch.tensor(answers).T
    return PairBatch(rows, rows + 50, right, wrong)


@pytest.fixture
def prompts() -> TaskPrompts:
    short = _batch(4, 3, [(1, 2), (1, 2), (2, 1), (2, 1)])
    return _prompts(short, _batch(5, 6, [(n, n + 1) for n in range(5)], first=10))


def test_it_is_an_evaluations_data_and_tells_what_it_is(prompts):
    assert isinstance(prompts, Data)
    told = prompts.describe()
    assert (told["n"], told["n_left_out"], told["seed"]) == (9, 3, 4)
    assert told["lengths"] == {3: 4, 6: 5}


def test_the_content_is_that_of_the_tokens_not_of_the_name(prompts):
    renamed = TaskPrompts("other", prompts.batches, prompts.texts)
    assert renamed.content == prompts.content
    first, second = prompts.batches
    for part in ("clean", "corrupted", "right", "wrong"):
        changed = PairBatch(
            *(
                getattr(first, name) + (name == part)
                for name in ("clean", "corrupted", "right", "wrong")
            )
        )
        assert _prompts(changed, second).content != prompts.content


def test_a_subset_keeps_each_prompt_with_its_length_and_its_text(prompts):
    chosen = prompts.subset([8, 0, 3, 0])
    assert [batch.clean[:, 0].tolist() for batch in chosen.batches] == [[0, 0, 3], [14]]
    assert [batch.right.tolist() for batch in chosen.batches] == [[1, 1, 2], [4]]
    assert [text.clean for text in chosen.texts] == [
        str(row.tolist()) for batch in chosen.batches for row in batch.clean
    ]
    assert len(prompts.subset([5]).batches) == 1
    with pytest.raises(IndexError, match="9 prompts"):
        prompts.subset([9])
    with pytest.raises(IndexError):
        prompts.subset([-1])


def test_a_bootstrap_sample_draws_whole_pairs_with_replacement(prompts):
    drawn = Counter()
    for seed in range(200):
        sample = prompts.bootstrap(seed)
        assert sample.n == 9
        for batch in sample.batches:
            assert torch.equal(batch.corrupted, batch.clean + 50)
            assert batch.clean.shape[1] == (3 if int(batch.clean[0, 0]) < 10 else 6)
            drawn.update(batch.clean[:, 0].tolist())
    assert set(drawn) == {0, 1, 2, 3, 10, 11, 12, 13, 14}
    assert all(150 < count < 250 for count in drawn.values())  # 200 expected of each
    assert prompts.bootstrap(3).content == prompts.bootstrap(3).content
    assert prompts.bootstrap(3).content != prompts.bootstrap(4).content


def test_held_out_prompts_are_part_of_the_content_and_of_what_is_told(prompts):
    both = dataclasses.replace(prompts, held_out=prompts.subset([0, 8]))
    assert both.content != prompts.content
    assert both.describe()["held_out"]["n"] == 2
    assert both.bootstrap(0).held_out is both.held_out


class _Fixed:
    """A model whose logits at the last position are known for each first token."""

    def __init__(self, rows: dict[int, list[float]]) -> None:
        self.rows, self.seen = rows, []
        self.cfg = SimpleNamespace(
            n_ctx=8, d_vocab=100, d_vocab_out=len(next(iter(rows.values()))), device="cpu"
        )

    def __call__(self, tokens: torch.Tensor, return_type: str) -> torch.Tensor:
        self.seen.append(tuple(tokens.shape))
        last = torch.tensor([self.rows[int(first)] for first in tokens[:, 0]])
        noise = torch.full((*tokens.shape, last.shape[1]), 99.0)
        noise[:, -1] = last
        return noise


# beartype would ask for a HookedTransformer, where all that is used are cfg and the call
_competence = getattr(competence, "__wrapped__", competence)


def test_competence_by_hand(monkeypatch):
    monkeypatch.setattr("evaluations.tasks.pairs.check_fit", lambda *_: None)
    monkeypatch.setattr("evaluations.tasks.pairs._last_logits", _last)
    batch = _batch(4, 3, [(1, 2)] * 4)
    model = _Fixed(
        {
            0: [0.0, 3.0, 1.0],  # right by 2, and the highest
            1: [9.0, 2.0, 1.0],  # right by 1, not the highest
            2: [0.0, 1.0, 1.0],  # a tie is not right
            3: [0.0, 1.0, 6.0],  # wrong by 5
        }
    )
    found = _competence(model, _prompts(batch))
    assert (found.n, found.n_failed, found.n_left_out) == (4, 0, 3)
    assert found.accuracy == 0.5
    assert found.top == 0.5  # of the tie, argmax names the first
    assert found.logit_difference == pytest.approx(-0.5)
    # differences 2, 1, 0, -5: squares about -0.5 are 6.25 + 2.25 + 0.25 + 20.25 = 29
    assert found.logit_difference_error == pytest.approx(math.sqrt(29 / 3 / 4))
    assert (found.low, found.high) == pytest.approx(wilson(2, 4))
    assert found.at_chance


def test_prompts_without_finite_logits_are_counted_not_scored(monkeypatch):
    monkeypatch.setattr("evaluations.tasks.pairs.check_fit", lambda *_: None)
    monkeypatch.setattr("evaluations.tasks.pairs._last_logits", _last)
    nan = [math.nan] * 3
    half = _competence(_Fixed({0: [0.0, 3.0, 1.0], 1: nan}), _prompts(_batch(2, 3, [(1, 2)] * 2)))
    assert (half.n, half.n_failed, half.accuracy) == (1, 1, 1.0)
    assert half.logit_difference_error is None
    with pytest.raises(UserError, match="not finite"):
        _competence(_Fixed({0: nan}), _prompts(_batch(1, 3, [(1, 2)])))


def _last(model: _Fixed, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, "logits")[:, -1]


def test_rows_go_through_in_chunks_and_give_the_same(make_model, monkeypatch):
    model = make_model()
    batch = _batch(5, 4, [(7, 9)] * 5, first=20)
    whole = competence(model, _prompts(batch))
    monkeypatch.setattr("evaluations.tasks.pairs.LOGITS", 2 * 4 * model.cfg.d_vocab_out)
    shapes: list[torch.Size] = []
    model.hook_embed.add_hook(lambda value, hook: shapes.append(value.shape))
    chunked = competence(model, _prompts(batch))
    assert chunked.logit_difference == pytest.approx(whole.logit_difference, rel=1e-9)
    assert [shape[0] for shape in shapes] == [2, 2, 1]
    logits = model(batch.clean)[:, -1].detach()
    difference = logits[:, 7] - logits[:, 9]
    assert whole.logit_difference == pytest.approx(float(difference.mean()))
    assert whole.accuracy == float((difference > 0).double().mean())


def test_prompts_that_do_not_fit_are_refused_in_one_line(make_model):
    model = make_model()
    with pytest.raises(UserError, match="30 tokens do not fit the context of 24"):
        check_fit(model, _prompts(_batch(2, 30, [(1, 2)] * 2)))
    with pytest.raises(UserError, match="token number 5,001"):
        check_fit(model, _prompts(_batch(2, 3, [(1, 2), (5001, 2)])))
    with pytest.raises(UserError, match="no prompt"):
        check_fit(model, _prompts(_batch(2, 3, [(1, 2)] * 2)).subset([]))


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: (0.8 + 0.19207) / 1.38415 +- 1.96 sqrt(0.016 + 0.0096) / 1.38415
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0, 5)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(5, 5)[1] == pytest.approx(1.0, abs=1e-12)
