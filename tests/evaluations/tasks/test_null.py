"""The null task: the frame stays, and as many words change, none of which bears on the answer."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from evaluations.core.model_source import load_model
from evaluations.tasks.null import ALONE, TOO_FEW, null_prompts
from evaluations.tasks.pairs import PairBatch, TaskPrompts
from evaluations.tasks.registry import make_task
from sat_interp._util.errors import UserError
from sat_interp.data.stories.lexicon import GIRLS


@pytest.fixture(scope="module")
def demo() -> PreTrainedTokenizerFast:
    return load_model("demo:baseline").tokenizer


def _rows(prompts: TaskPrompts):
    for batch in prompts.batches:
        parts = (part.tolist() for part in batch._parts())
        yield from zip(*parts, strict=True)


def _differences(one: list[int], other: list[int]) -> list[int]:
    return [at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]


@pytest.mark.parametrize(
    "name", ["ioi", "ioi-tinystories", "gender", "agreement", "induction", "object", "reply"]
)
def test_as_many_tokens_change_as_in_the_task_and_none_is_an_answer(demo, name):
    task = make_task(name, demo, n=60)
    by_base = {
        (tuple(corrupted), right, wrong): clean for clean, corrupted, right, wrong in _rows(task)
    }
    null = null_prompts(task, 0)
    assert null.n + null.n_left_out == 60
    assert null.n > 50
    seen = set()
    for base, changed, right, wrong in _rows(null):
        clean = by_base[tuple(base), right, wrong]
        assert len(_differences(base, changed)) == len(_differences(clean, base)) > 0
        new = {changed[at] for at in _differences(base, changed)}
        assert not new & {right, wrong, *base, *clean}
        seen.add((tuple(base), tuple(changed)))
    assert len(seen) == null.n  # nothing twice
    assert null_prompts(task, 0).content == null.content
    assert null_prompts(task, 1).content != null.content


@pytest.mark.parametrize("name", ["ioi", "ioi-tinystories"])
def test_of_ioi_the_three_names_change_and_nothing_else(demo, name):
    task = make_task(name, demo, n=60)
    names = set()
    for clean, corrupted, *_ in _rows(task):
        for at in _differences(clean, corrupted):
            names |= {clean[at], corrupted[at]}
    for base, changed, *_ in _rows(null_prompts(task, 0)):
        places = _differences(base, changed)
        assert len({base[at] for at in places} | {changed[at] for at in places}) == 6
        assert {base[at] for at in places} | {changed[at] for at in places} <= names
    text = null_prompts(task, 0).texts[0]
    assert text.clean.split()[-3:] == text.corrupted.split()[-3:]


def test_words_that_decide_the_answer_stay_on_its_side(demo):
    """The corrupted prompt is of the other gender, and so is what it becomes."""
    task = make_task("gender", demo, n=60)
    checked = 0
    for pair in null_prompts(task, 3).texts:
        base, changed = (text.split() for text in (pair.clean, pair.corrupted))
        if pair.right in (" his", " her") and pair.clean.endswith(" lost"):
            girls = [base[-2] in GIRLS, changed[-2] in GIRLS]
            assert girls[0] == girls[1] == (pair.right == " his")
            assert base[-2] != changed[-2]
            checked += 1
    assert checked > 3


def _batch(rows: list[tuple[list[int], list[int], int, int]]) -> PairBatch:
    return PairBatch(*map(torch.tensor, zip(*rows, strict=True)))


def _task(*rows: tuple[list[int], list[int], int, int]) -> TaskPrompts:
    return TaskPrompts("mine", (_batch(list(rows)),), ())


def test_by_hand():
    """0 the frame; 11 and 12 the answers. The second's names go into the first, and back."""
    task = _task(
        ([0, 11, 12, 5, 12], [0, 21, 22, 5, 23], 11, 12),
        ([0, 13, 14, 6, 14], [0, 31, 32, 6, 33], 13, 14),
    )
    (batch,) = null_prompts(task, 0).batches
    assert batch.clean.tolist() == [[0, 21, 22, 5, 23], [0, 31, 32, 6, 33]]
    assert batch.corrupted.tolist() == [[0, 31, 32, 5, 33], [0, 21, 22, 6, 23]]
    assert batch.right.tolist() == [11, 13]


def test_what_has_no_null_prompt_is_counted_or_refused():
    alone = ([0, 11, 12, 5, 12], [0, 21, 22, 5, 23], 11, 12)
    with pytest.raises(UserError, match=f"no null task: {ALONE}"):
        null_prompts(_task(alone), 0)
    # the only other prompt has the first one's answers for names
    clash = ([0, 13, 14, 6, 14], [0, 11, 12, 6, 33], 13, 14)
    null = null_prompts(_task(alone, clash), 0)
    assert (null.n, null.left_out) == (1, {TOO_FEW: 1})
    assert null.batches[0].clean.tolist() == [[0, 11, 12, 6, 33]]
    # 'he' or 'she' is no word of the prompt: a prompt of the other answer lends no name
    he, she = ([0, 21, 5], [0, 31, 5], 1, 2), ([0, 32, 5], [0, 22, 5], 2, 1)
    with pytest.raises(UserError, match=TOO_FEW):
        null_prompts(_task(he, she), 0)
    assert null_prompts(_task(he, ([0, 23, 5], [0, 33, 5], 1, 2), she), 0).n == 2


def test_equal_pairs_are_dropped_and_counted():
    one = ([0, 11, 12, 5, 12], [0, 21, 22, 5, 23], 11, 12)
    other = ([0, 13, 14, 5, 14], [0, 31, 32, 5, 33], 13, 14)
    null = null_prompts(_task(one, one, other), 0)
    assert null.n == 2
    assert null.left_out == {"drawn before": 1}
