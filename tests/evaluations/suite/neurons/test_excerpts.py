from __future__ import annotations

import math

import numpy as np
import pytest

from evaluations.suite.neurons.excerpts import (
    FIRES,
    KINDS,
    ExcerptMix,
    excerpt_batch,
    to_levels,
    token_names,
)
from tests.evaluations.suite.neurons.planted import DEAD, NOISE, WORD

MIX = ExcerptMix(4, 3, 3)


@pytest.fixture
def batch(gathered):
    return excerpt_batch(gathered, 0, np.arange(6), MIX, ExcerptMix(2, 3, 5))


def test_levels_are_those_of_the_definition():
    activations = np.array([[[0.0, 1.0, 1.99, 2.0], [-5.0, 0.19999, 0.2, np.nan]]])
    levels = to_levels(activations, np.array([2.0]))
    assert levels.tolist() == [[[0, 5, 9, 10], [0, 0, 1, -1]]]
    for value, level in zip(activations[0, 0], levels[0, 0], strict=True):
        assert level == min(10, math.floor(10 * max(value, 0) / 2.0))
    # held-out activations above what was shown stay at 10; a unit that never fires is 0 everywhere
    assert to_levels(np.array([[[7.0]]]), np.array([2.0])).item() == 10
    assert to_levels(np.array([[[-1.0]]]), np.array([-0.5])).item() == 0
    assert to_levels(np.array([[[-1.0]]]), np.array([-np.inf])).item() == 0


def test_excerpts_are_those_that_were_gathered_each_story_once(batch, gathered):
    for half, excerpts in (("explain", batch.explain), ("held_out", batch.held_out)):
        kept = {
            (one.story, one.start): one
            for kind in KINDS
            for one in gathered.excerpts(0, NOISE, half, kind)
        }
        assert excerpts.counts[NOISE] == 10
        found = list(
            zip(excerpts.stories[NOISE].tolist(), excerpts.starts[NOISE].tolist(), strict=True)
        )
        assert len({story for story, _ in found}) == len(found)
        assert list(excerpts.peaks[NOISE]) == sorted(excerpts.peaks[NOISE], reverse=True)
        for rank, place in enumerate(found):
            length = excerpts.lengths[NOISE, rank]
            assert excerpts.tokens[NOISE, rank, :length].tolist() == kept[place].tokens.tolist()
            np.testing.assert_array_equal(
                excerpts.activations[NOISE, rank, :length], kept[place].activations
            )
            assert (excerpts.tokens[NOISE, rank, length:] == -1).all()
    both = set(batch.explain.stories[NOISE].tolist()) & set(batch.held_out.stories[NOISE].tolist())
    assert not both


def test_the_highest_come_from_the_top_and_there_are_as_many_of_each_kind(batch, gathered):
    best = gathered.excerpts(0, NOISE, "explain", "top")[0]
    assert batch.highest[NOISE] == pytest.approx(best.maximum)
    assert batch.levels["explain"][NOISE, 0].max() == 10
    counts = np.bincount(batch.explain.kinds[NOISE], minlength=3)
    assert counts.tolist() == [MIX.top, MIX.sample, MIX.random]


def test_a_question_is_in_words(batch, planted):
    names = token_names(planted)
    question = batch.question(WORD, names)
    assert question.unit == "0.0"
    first = question.excerpts[0]
    assert len(first.tokens) == len(first.levels)
    fires = {token for token, level in zip(first.tokens, first.levels, strict=True) if level}
    assert fires == {" cat"}
    whole = planted.tokenizer.decode(planted.corpus.story(int(batch.explain.stories[WORD, 0])))
    assert "".join(first.tokens) in whole
    assert first.start == batch.explain.starts[WORD, 0]


def test_held_out_excerpts_are_in_a_random_order_that_the_seed_decides(batch, planted):
    names = token_names(planted)
    held = [batch.held_out_excerpts(WORD, names, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert held[0].ranks == held[1].ranks != held[2].ranks
    assert sorted(held[0].ranks) == sorted(held[2].ranks) == list(range(10))
    for rank, tokens, fires in zip(held[0].ranks, held[0].tokens, held[0].fires, strict=True):
        assert [token == " cat" for token in tokens] == fires.tolist()
        levels = batch.levels["held_out"][WORD, rank, : len(tokens)]
        assert (levels >= FIRES).tolist() == fires.tolist()


def test_a_dead_unit_has_only_random_excerpts(batch):
    assert set(batch.explain.kinds[DEAD, : batch.explain.counts[DEAD]].tolist()) == {2}
    assert batch.highest[DEAD] < 0


def test_a_part_of_a_character_has_a_name(text):
    names = token_names(text)  # curly quotes of three bytes
    present = np.unique(text.corpus.tokens)
    assert all(isinstance(names[token], str) and names[token] for token in present)
    cat = text.tokenizer.encode(" cat")
    if len(cat) == 1:
        assert names[cat[0]] == " cat"
