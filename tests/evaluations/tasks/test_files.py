"""auto-circuit's JSON: files written here, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluations.tasks.registry import make_task
from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import load_tokenizer

ENTRY = {
    "clean": "Then, Tim and Sue met. Sue spoke to",
    "corrupt": "Then, Ann and Bob met. Joe spoke to",
    "answers": [" Tim"],
    "wrong_answers": [" Sue"],
}


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture
def written(tmp_path: Path):
    def write(*prompts: Any, **more: Any) -> Path:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"prompts": list(prompts), **more}), encoding="utf-8")
        return path

    return write


def test_text_becomes_tokens_and_other_keys_are_ignored(written, gpt2):
    prompts = make_task(written(ENTRY, word_idxs={"IO": 2}, seq_labels=["a"]), gpt2)
    (batch,) = prompts.batches
    assert gpt2.decode(batch.clean[0]) == f"<|endoftext|>{ENTRY['clean']}"
    assert gpt2.decode(batch.corrupted[0]) == f"<|endoftext|>{ENTRY['corrupt']}"
    assert (gpt2.decode(batch.right), gpt2.decode(batch.wrong)) == (" Tim", " Sue")
    assert (prompts.name, prompts.n, prompts.n_left_out) == ("mine.json", 1, 0)
    bare = make_task(written(ENTRY), gpt2, bos=False)
    assert bare.batches[0].clean.equal(batch.clean[:, 1:])


def test_token_numbers_are_taken_as_they_are(written, gpt2):
    entry = {"clean": [5, 6, 7], "corrupt": [5, 8, 7], "answers": [9], "wrong_answers": [10, 11]}
    prompts = make_task(written(entry), gpt2)
    (batch,) = prompts.batches
    assert (batch.clean.tolist(), batch.corrupted.tolist()) == ([[5, 6, 7]], [[5, 8, 7]])
    assert (batch.right.tolist(), batch.wrong.tolist()) == ([9], [10])  # the first of several
    assert prompts.describe()["n_with_several_answers"] == 1


def test_what_cannot_be_used_is_counted_by_reason(written, gpt2):
    long_answer = {**ENTRY, "answers": [" Bartholomew"]}
    unequal = {**ENTRY, "corrupt": "Then, Ann and Bartholomew met. Joe spoke to"}
    same = {**ENTRY, "wrong_answers": [" Tim"]}
    unchanged = {**ENTRY, "corrupt": ENTRY["clean"]}
    prompts = make_task(written(ENTRY, long_answer, unequal, unequal, same, unchanged, ENTRY), gpt2)
    assert prompts.n == 1
    assert prompts.left_out == {
        "an answer is not one token": 1,
        "clean and corrupted are of unequal length": 2,
        "right and wrong answer are one token": 1,
        "clean and corrupted are the same": 1,
        "drawn before": 1,
    }
    assert prompts.describe()["n_in_file"] == 7


def test_an_answer_is_looked_up_by_itself_as_auto_circuit_does(written, gpt2):
    # " 1945" is one token, so "45" never follows " 19" in text; the file means it all the same
    entry = {
        "clean": "from 1932 to 19",
        "corrupt": "from 1901 to 19",
        "answers": ["45"],
        "wrong_answers": ["12"],
    }
    if len(gpt2.encode(entry["clean"])) != len(gpt2.encode(entry["corrupt"])):
        pytest.skip("the years are of unequal length")
    prompts = make_task(written(entry), gpt2)
    assert prompts.batches[0].right.tolist() == gpt2.encode("45")


def test_the_seed_decides_which_of_a_long_file(written, gpt2):
    names = [" Tim", " Sam", " Ben", " Tom", " Jack", " Max", " Bob", " Joe"]
    path = written(*({**ENTRY, "answers": [name]} for name in names))
    some = [make_task(path, gpt2, n=3, seed=seed) for seed in range(6)]
    assert all(prompts.n == 3 for prompts in some)
    assert len({prompts.content for prompts in some}) > 1
    assert make_task(path, gpt2, n=3, seed=0).content == some[0].content


def test_a_file_of_which_nothing_is_left_is_one_line(written, gpt2):
    path = written({**ENTRY, "answers": [" Bartholomew"]}, {**ENTRY, "corrupt": "Then"})
    with pytest.raises(
        UserError, match=r"^mine.json: no prompt can be used.*\(1\).*\(1\)"
    ) as error:
        make_task(path, gpt2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1, 2]", "has no list of prompts"),
        ('{"prompt": []}', "has no list of prompts"),
        ('{"prompts": {}}', "has no list of prompts"),
        ('{"prompts": []}', "empty list of prompts"),
        ('{"prompts": [3]}', "prompt 1 of 1: it is not an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_hold_no_prompts(text, said, tmp_path, gpt2):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        make_task(path, gpt2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": ""}, "'clean' is neither text"),
        ({"corrupt": [1, "a"]}, "'corrupt' is neither text"),
        ({"clean": [-1]}, "'clean' is neither text"),
        ({"clean": [1 << 40]}, "'clean' is neither text"),
        ({"answers": []}, "'answers' is not a list of answers"),
        ({"answers": " Tim"}, "'answers' is not a list of answers"),
        ({"wrong_answers": [" Tim", 3]}, "'wrong_answers' is not a list of answers"),
        ({"wrong_answers": None}, "'wrong_answers' is not a list of answers"),
    ],
)
def test_entries_with_something_else(change, said, written, gpt2):
    with pytest.raises(UserError, match=f"prompt 2 of 2: {said}"):
        make_task(written(ENTRY, {**ENTRY, **change}), gpt2)


@pytest.mark.parametrize("key", ENTRY)
def test_entries_that_lack_a_key(key, written, gpt2):
    lacking = {name: value for name, value in ENTRY.items() if name != key}
    with pytest.raises(UserError, match=f"prompt 1 of 1: it has no '{key}'"):
        make_task(written(lacking), gpt2)


def test_what_is_not_text_and_what_is_a_directory(tmp_path, gpt2):
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"prompts": ["\xe9"]}')
    with pytest.raises(UserError, match="not UTF-8"):
        make_task(path, gpt2)
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(UserError, match="there is no file"):
        make_task(folder, gpt2)


PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "ioi" / "tinystories_ioi_prompts.json"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published prompts are not here")
def test_the_published_prompts_are_all_usable_with_gpt2s_tokens(gpt2):
    prompts = make_task(PUBLISHED, gpt2, n=1000)
    assert prompts.n + prompts.n_left_out == 1000
    assert set(prompts.left_out) <= {"drawn before"}
