"""IOI: what becomes of the three name slots, frames, orders and names."""

from __future__ import annotations

import re

import pytest

from evaluations.tasks import ioi
from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import make_task
from evaluations.tasks.tokens import following
from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.data.stories import IOI_FRAMES, NAMES_F, NAMES_M, ioi_prompts, is_held_out
from sat_interp.data.tokenizer import load_tokenizer, train_bpe
from sat_interp.model.shape import gpt_neo_config

KNOWN = {"ioi": {*NAMES_F, *NAMES_M}, "ioi-tinystories": set(ioi.NAMES)}


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.mark.parametrize("task", ["ioi", "ioi-tinystories"])
def test_three_fresh_distinct_names_and_nothing_else_changes(task, gpt2):
    for pair in make_task(task, gpt2, n=140).texts:
        right, wrong = pair.right[1:], pair.wrong[1:]
        words, others = pair.clean.split(), pair.corrupted.split()
        assert len(words) == len(others)
        changed = [(one, two) for one, two in zip(words, others, strict=True) if one != two]
        assert sorted(one for one, _ in changed) == sorted([right, wrong, wrong])
        fresh = {two for _, two in changed}
        assert len(fresh) == 3
        assert fresh <= KNOWN[task] - {right, wrong}


def test_the_built_in_prompts_are_those_of_the_corpus_with_held_out_pairs(gpt2):
    drawn = {pair.clean: (pair.right, pair.wrong) for pair in make_task("ioi", gpt2, n=50).texts}
    theirs = {p.text: (f" {p.io}", f" {p.s}") for p in ioi_prompts(50)}
    assert drawn == theirs
    assert all(is_held_out(right[1:], wrong[1:]) for right, wrong in drawn.values())


def test_the_tinystories_version_has_seven_frames_in_both_orders(gpt2):
    assert (len(set(ioi.NAMES)), len(set(ioi.PLACES)), len(set(ioi.OBJECTS))) == (100, 8, 8)
    assert all(following(gpt2, "and", f" {name}") for name in ioi.NAMES)
    counts: dict[tuple[str, bool], int] = {}
    for pair in make_task("ioi-tinystories", gpt2, n=140).texts:
        shape = re.sub(rf"{pair.right[1:]}|{pair.wrong[1:]}", "N", pair.clean)
        shape = re.sub(rf"an? ({'|'.join(ioi.OBJECTS)})\b", "O", shape)
        shape = re.sub(rf"the ({'|'.join(ioi.PLACES)})\b", "P", shape)
        abba = pair.clean.index(pair.right) < pair.clean.index(pair.wrong)
        counts[shape, abba] = counts.get((shape, abba), 0) + 1
    assert len(IOI_FRAMES) == 7
    assert sorted(counts.values()) == [10] * 14


def test_names_of_several_tokens_are_left_out_and_counted():
    known = [*NAMES_F[:6], *NAMES_M[:6]]
    texts = [f"Then, {one} and {two} met." for one in known for two in known] * 3
    texts += [frame.text for frame in IOI_FRAMES] * 3
    tokenizer = train_bpe(texts, 600)
    single = [name for name in ioi.NAMES if following(tokenizer, "and", f" {name}") is not None]
    assert 5 <= len(single) < 100
    prompts = make_task("ioi-tinystories", tokenizer, n=20)
    assert prompts.words_left_out == {"names": 100 - len(single)}
    assert {pair.right[1:] for pair in prompts.texts} <= set(single)
    built_in = make_task("ioi", tokenizer, n=5)  # whole prompts are drawn, so whole ones are lost
    assert built_in.n_left_out > 0
    assert built_in.describe()["left_out"] == {"an answer is not one token": built_in.n_left_out}


@pytest.mark.parametrize("task", ["ioi", "ioi-tinystories"])
def test_a_tokenizer_without_the_names_is_one_clear_line(task):
    with pytest.raises(UserError, match=rf"^{task}: 0 of \d+ names are single tokens.*needs 5"):
        make_task(task, train_bpe(["abc"] * 5, 260))


def test_accuracy_of_a_model_that_always_says_one_name():
    prompts = ioi_prompts(60, seed=5)
    tokenizer = train_bpe([f"{p.text} {p.io} {p.s}." for p in prompts] * 3, 700)
    task = make_task("ioi", tokenizer, n=40, seed=5)
    favourite = task.texts[0].right
    model = SelfAblatingTransformer(
        gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=len(tokenizer), n_ctx=64)
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    model.unembed.b_U.data[tokenizer.encode(favourite)[0]] = 3.0
    found = competence(model, task)
    right = sum(pair.right == favourite for pair in task.texts)
    wrong = sum(pair.wrong == favourite for pair in task.texts)
    assert found.n == task.n
    assert found.n_left_out == task.n_left_out
    assert found.accuracy == found.top == pytest.approx(right / task.n)
    assert found.logit_difference == pytest.approx(3 * (right - wrong) / task.n)
