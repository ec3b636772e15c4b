"""What must hold of every task with every tokenizer; unknown tasks and empty ones."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from evaluations.core.model_tokenizer import numbered_tokenizer
from evaluations.tasks.language import agreement
from evaluations.tasks.null import null_prompts
from evaluations.tasks.pairs import Pair, competence
from evaluations.tasks.registry import TASKS, Task, make_task
from evaluations.tasks.tokens import Words
from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.data.stories.lexicon import BOYS, GIRLS
from sat_interp.data.tokenizer import fingerprint, load_tokenizer, train_bpe

# Tasks whose corrupted prompts have an answer: the wrong one.
SWAPPED = {"gender": {" he", " she", " his", " her"}, "agreement": {" was", " were", " is", " are"}}


@pytest.fixture(scope="module")
def built_in():
    return SelfAblatingTransformer.from_pretrained("demo:baseline")


@pytest.fixture(scope="module")
def tokenizers(built_in):
    return {"bpe": built_in.tokenizer, "gpt2": load_tokenizer("gpt2")}


NAMES = [task.name for task in TASKS]
CASES = [
    (name, kind)
    for name in NAMES
    for kind in ("bpe", "gpt2")
    if (name, kind) not in {("greater-than", "bpe"), ("greater-than-digit", "gpt2")}
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tokens_of_every_task(name, kind, tokenizers):
    tokenizer = tokenizers[kind]
    prompts = make_task(name, tokenizer, n=60, seed=2)
    assert prompts.n == 60
    lengths = [batch.clean.shape[1] for batch in prompts.batches]
    assert lengths == sorted(set(lengths))  # one bucket a length
    texts = iter(prompts.texts)
    for batch in prompts.batches:
        assert batch.clean.shape == batch.corrupted.shape
        assert (batch.clean[:, 0] == tokenizer.bos_token_id).all()
        assert (batch.clean[:, 1:] != tokenizer.bos_token_id).all()  # nothing is padded
        assert (batch.right != batch.wrong).all()
        assert (batch.clean != batch.corrupted).any(1).all()
        for row in range(len(batch)):
            text = next(texts)
            clean = tokenizer.decode(batch.clean[row, 1:])
            assert (clean, tokenizer.decode(batch.corrupted[row, 1:])) == text[:2]
            whole = tokenizer.encode(text.clean + text.right)
            assert whole == [*batch.clean[row, 1:].tolist(), int(batch.right[row])]
            assert tokenizer.decode([int(batch.wrong[row])]) == text.wrong
    assert len({text[:2] for text in prompts.texts}) == 60


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_more_prompts_begin_with_the_same(name, tokenizers):
    tokenizer = tokenizers["bpe" if name == "greater-than-digit" else "gpt2"]
    first, again = (make_task(name, tokenizer, n=30, seed=1) for _ in "12")
    assert first.content == again.content
    assert first.texts == again.texts
    assert make_task(name, tokenizer, n=30, seed=2).content != first.content
    assert set(first.texts) <= set(make_task(name, tokenizer, n=40, seed=1).texts)


def test_a_record_is_told_the_tokenizer_and_what_was_asked_for(built_in, monkeypatch):
    monkeypatch.setattr("evaluations.tasks.registry.fingerprint", fingerprint)
    told = make_task("gender", built_in.tokenizer, n=5, seed=3).describe()
    assert told["tokenizer"] == fingerprint(built_in.tokenizer)
    assert (told["spec"], told["n"], told["n_asked_for"], told["seed"]) == ("gender", 5, 5, 3)
    assert told["words_left_out"] == {"girls' names": 0, "boys' names": 0}


def test_the_start_token_can_be_left_out(tokenizers):
    with_, without = (
        make_task("gender", tokenizers["gpt2"], n=20, bos=bos) for bos in (True, False)
    )
    for one, other in zip(with_.batches, without.batches, strict=True):
        assert one.clean[:, 1:].equal(other.clean)
    assert without.describe()["bos"] is False


@pytest.mark.parametrize("name", ["ioi", "ioi-tinystories", "object", "induction"])
def test_the_corrupted_prompt_does_not_hold_the_answer(name, tokenizers):
    for pair in make_task(name, tokenizers["gpt2"], n=100).texts:
        words = pair.corrupted.replace(",", "").replace(".", "").split()
        assert pair.right.strip() not in words
        assert pair.right.strip() in pair.clean.replace(",", "").replace(".", "").split()
        assert pair.wrong.strip() in pair.clean.replace(",", "").replace(".", "").split()


@pytest.mark.parametrize("name", SWAPPED)
def test_where_the_cue_is_swapped_the_corrupted_prompt_is_another_pairs_clean_one(name, tokenizers):
    pairs = make_task(name, tokenizers["gpt2"], n=60).texts
    assert {pair.right for pair in pairs} == {pair.wrong for pair in pairs} == SWAPPED[name]
    counted = Counter(pair.right for pair in pairs)
    assert max(counted.values()) < 60


def test_gender_is_told_by_the_name_alone(tokenizers):
    for pair in make_task("gender", tokenizers["bpe"], n=60).texts:
        words, others = (text.replace(",", "").split() for text in pair[:2])
        (changed,) = {(a, b) for a, b in zip(words, others, strict=True) if a != b}
        ours, theirs = (BOYS, GIRLS) if pair.right in (" he", " his") else (GIRLS, BOYS)
        assert changed[0] in ours
        assert changed[1] in theirs


def test_agreement_is_not_told_by_the_noun_in_between(tokenizers):
    numbers = Counter()
    for pair in make_task("agreement", tokenizers["bpe"], n=160).texts:
        subject, *rest = pair.clean.rpartition("The ")[2].split()
        other, *still = pair.corrupted.rpartition("The ")[2].split()
        assert rest == still
        assert subject.endswith("s") == (pair.right in (" were", " are"))
        assert other.endswith("s") != subject.endswith("s")
        if rest:
            numbers[subject.endswith("s"), rest[-1].endswith("s")] += 1
    assert len(numbers) == 4
    assert max(numbers.values()) - min(numbers.values()) <= 3


def test_quotes_are_open_in_the_clean_prompt_only(tokenizers):
    for pair in make_task("quotes", tokenizers["bpe"], n=60).texts:
        assert pair.clean.count('"') == 1
        assert '"' not in pair.corrupted
        assert (pair.right, pair.wrong) == ('?"', ".")


def test_induction_repeats_what_the_corrupted_prompt_never_said(tokenizers):
    for pair in make_task("induction", tokenizers["gpt2"], n=60).texts:
        words, others = pair.clean.split(), pair.corrupted.split()
        said, repeated = words[:8], words[8:]
        assert len(set(said)) == 8
        assert repeated == said[: len(repeated)] == others[8:]
        assert pair.right == f" {said[len(repeated)]}"
        assert pair.wrong[1:] in said[len(repeated) + 1 :]
        assert not set(said) & set(others[:8])


def test_who_is_greeted_replies_and_the_corrupted_prompt_has_the_roles_exchanged(tokenizers):
    prompts = make_task("reply", tokenizers["bpe"], n=60, held_out=60)
    for pair in prompts.texts:
        speaker, greeted = pair.wrong.strip(), pair.right.strip()
        said, answered = pair.clean.split('" said')[0], pair.clean.rpartition('" said')[0]
        assert greeted in said.rpartition('"')[2]
        assert speaker in answered.rpartition('"')[2]
        exchanged = pair.clean.replace(speaker, "?").replace(greeted, speaker).replace("?", greeted)
        assert exchanged == pair.corrupted
    pairs, held = (
        {frozenset((one.right, one.wrong)) for one in texts}
        for texts in (prompts.texts, prompts.held_out.texts)
    )
    assert not pairs & held


def test_greater_than_years_lie_on_either_side_and_01_on_neither(tokenizers):
    for pair in make_task("greater-than", tokenizers["gpt2"], n=100).texts:
        year, century = int(pair.clean.split()[6][2:]), pair.clean[-2:]
        assert int(pair.wrong) < year < int(pair.right)
        assert pair.corrupted.split()[6] == f"{century}01"
        assert int(pair.wrong) > 1
        assert len(pair.right) == len(pair.wrong) == 2


def test_digits_that_decide_a_year_lie_on_either_side(tokenizers):
    digits = set()
    for pair in make_task("greater-than-digit", tokenizers["bpe"], n=100).texts:
        year, century = pair.clean.split()[6], pair.clean[-2:]
        assert year[:2] == century
        assert 0 < int(pair.wrong) < int(year[2]) < int(pair.right)
        assert int(year[2]) - int(pair.wrong) == int(pair.right) - int(year[2])
        assert pair.corrupted == pair.clean.replace(year, f"{century}01")
        digits |= {pair.right, pair.wrong}
    assert digits == set("123456789")


def test_object_asks_for_either_object_by_a_look_of_its_own(tokenizers):
    order = Counter()
    for pair in make_task("object", tokenizers["gpt2"], n=90).texts:
        first = pair.clean.index(pair.right) < pair.clean.index(pair.wrong)
        order[first] += 1
        cue = pair.clean.split()[-1]
        if cue != "the":
            assert f"{cue}{pair.right}" in pair.clean
            assert f"{cue}{pair.wrong}" not in pair.clean
    assert min(order.values()) > 15


def test_the_built_in_model_does_what_its_grammar_teaches(built_in):
    for name in ("ioi", "ioi-tinystories", "gender", "quotes"):
        found = competence(built_in, make_task(name, built_in.tokenizer, n=100))
        assert found.low > 0.6, name
        assert found.logit_difference > 0
        assert not found.at_chance


def test_a_tokenizer_that_cannot_express_a_task_is_told_in_one_line(tokenizers):
    for name, kind, instead in (
        ("greater-than", "bpe", "greater-than-digit"),
        ("greater-than-digit", "gpt2", "greater-than"),
    ):
        refusal = f"^{name}: no prompt can be used.*not one token.*; try the task {instead}$"
        with pytest.raises(UserError, match=refusal):
            make_task(name, tokenizers[kind], n=3)
    letters = train_bpe(["abc"] * 5, 260)
    for name in set(NAMES) - {"greater-than-digit"}:  # every byte is a token, so every digit is
        with pytest.raises(UserError, match=f"^{name}: ") as error:
            make_task(name, letters, n=3)
        assert "\n" not in str(error.value)


def test_unequal_prompts_and_repeats_are_counted(tokenizers):
    tokenizer = tokenizers["gpt2"]
    prompts = make_task("agreement", tokenizer, n=100)
    pairs = list(islice(agreement(Words("agreement", tokenizer), 0), 100 + prompts.n_left_out))
    unequal = [
        pair
        for pair in pairs
        if len(tokenizer.encode(pair.clean)) != len(tokenizer.encode(pair.corrupted))
    ]
    assert prompts.left_out["clean and corrupted are of unequal length"] == len(unequal) > 0


def test_unknown_tasks_and_numbers(tokenizers, tmp_path):
    with pytest.raises(UserError, match="unknown task 'greaterthan': did you mean 'greater-than'"):
        make_task("greaterthan", tokenizers["gpt2"])
    with pytest.raises(UserError, match="there is no file .*nothing.json"):
        make_task(tmp_path / "nothing.json", tokenizers["gpt2"])
    with pytest.raises(UserError, match="at least one prompt, not 0"):
        make_task("ioi", tokenizers["gpt2"], n=0)


def _pairs(prompts):
    """Prompts, and unordered pairs of answers."""
    rows, names = set(), set()
    for batch in prompts.batches:
        for clean, corrupted, right, wrong in zip(
            *(part.tolist() for part in batch._parts()), strict=True
        ):
            rows.add((tuple(clean), tuple(corrupted)))
            names.add(frozenset((right, wrong)))
    return rows, names


@pytest.mark.parametrize("name", ["ioi", "ioi-tinystories", "gender", "object"])
def test_held_out_prompts_share_no_prompt_and_of_ioi_no_pair_of_names(name, tokenizers):
    tokenizer = tokenizers["bpe"]
    made = make_task(name, tokenizer, n=100, seed=1, held_out=60)
    assert (made.n, made.held_out.n) == (100, 60)
    alone = make_task(name, tokenizer, n=100, seed=1)
    assert _pairs(alone) == _pairs(made)  # what is held out changes nothing of the others
    (rows, names), (held, other_names) = _pairs(made), _pairs(made.held_out)
    assert not rows & held
    if name.startswith("ioi"):
        assert not names & other_names
    assert made.content != alone.content
    with pytest.raises(UserError, match="0 prompts or more"):
        make_task(name, tokenizer, held_out=-1)


def test_a_file_too_small_for_both_is_shared(tokenizers, tmp_path, caplog):
    names = ["Tom", "Anna", "Ben", "Mia", "Sue", "Lily"]
    prompts = [
        {
            "clean": f"{a} and {b} went to the park. {a} gave a ball to",
            "answers": [f" {b}"],
            "corrupt": f"{c} and {b} went to the park. {a} gave a ball to",
            "wrong_answers": [f" {a}"],
        }
        for a in names
        for b in names
        for c in names
        if len({a, b, c}) == 3
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"prompts": prompts}))
    everything = make_task(path, tokenizers["gpt2"], n=1000)
    assert everything.held_out is None
    made = make_task(path, tokenizers["gpt2"], n=1000, held_out=1000)
    assert made.n + made.held_out.n == everything.n
    assert abs(made.n - made.held_out.n) <= 8  # whole pairs of names go to one side
    (_, names_here), (_, names_there) = _pairs(made), _pairs(made.held_out)
    assert not names_here & names_there
    assert f"{everything.n} prompts can be used: {made.n} to search with" in caplog.text


def test_a_task_of_ones_own_and_prompts_are_tasks_too(tokenizers):
    def pairs(words, seed):
        for number in words.keep("numbers", ["one", "two", "three", "four"], least=3):
            yield Pair(f"Tom saw {number}", "Tom saw it", f" {number}", " it")

    mine = Task("numbers", pairs)
    prompts = make_task(mine, tokenizers["gpt2"], n=3)
    assert (prompts.name, prompts.n, prompts.words_left_out) == ("numbers", 3, {"numbers": 0})
    assert make_task(prompts, tokenizers["bpe"]) is prompts
    with pytest.raises(UserError, match="has no tokenizer and the prompts are text"):
        make_task(mine, numbered_tokenizer(20))


def test_a_model_without_a_tokenizer_is_asked_in_token_ids():
    entries = [
        {"clean": [1, 2, number], "corrupt": [1, 3, number], "answers": [2], "wrong_answers": [3]}
        for number in range(4, 10)
    ]
    tokenizer = numbered_tokenizer(20)
    prompts = make_task(entries, tokenizer, n=4, held_out=2)
    assert (prompts.name, prompts.n, prompts.held_out.n) == ("in memory", 4, 2)
    assert (prompts.describe()["story_start"], prompts.describe()["n_in_file"]) == (None, 6)
    first = prompts.batches[0].clean[0].tolist()
    assert prompts.texts[0].clean == "".join(f" {token}" for token in first)
    assert null_prompts(prompts, 0).n > 0
    with pytest.raises(UserError, match="has no tokenizer and the prompts are text"):
        make_task([{**entries[0], "clean": "Tom"}], tokenizer)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ([], "the task has an empty list"),
        ([{"clean": [1]}], "the task, prompt 1 of 1: it has no 'corrupt'"),
        ([3], "the task, prompt 1 of 1: it is not an object"),
    ],
)
def test_entries_that_are_no_prompts(task, reason, tokenizers):
    with pytest.raises(UserError, match=reason):
        make_task(task, tokenizers["bpe"])
