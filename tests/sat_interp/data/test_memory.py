"""Text in memory: strings, tables, sequences of token ids."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from sat_interp._util.errors import UserError
from sat_interp.data.batches import story_batches
from sat_interp.data.corpus import load_corpus
from sat_interp.data.memory import MemorySource, TokenSource, text_in_memory
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import train_bpe

STORIES = [f"Tom gave Mia {number} red balls, and Mia was glad." for number in range(150)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(STORIES, 300)


def stories_of(source: MemorySource, split: str = "train") -> list[str]:
    return list(source.texts(split))


@pytest.mark.parametrize(
    "given",
    [
        STORIES,
        tuple(STORIES),
        iter(list(STORIES)),
        datasets.Dataset.from_dict({"text": STORIES, "label": list(STORIES)}),
        datasets.Dataset.from_dict({"story": STORIES, "n": [1] * 150}),
        datasets.Dataset.from_dict({"text": STORIES})["text"],
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": STORIES})}),
        pd.Series(STORIES),
        pd.DataFrame({"text": STORIES, "n": range(150)}),
        np.array(STORIES),
        {"train": STORIES},
    ],
    ids=lambda given: type(given).__name__,
)
def test_every_form_of_the_same_stories_is_the_same_text(given):
    source = text_in_memory(given)
    assert sorted([*stories_of(source), *stories_of(source, "validation")]) == sorted(STORIES)
    assert source.content_id("train") == text_in_memory(list(STORIES)).content_id("train")
    assert not set(stories_of(source)) & set(stories_of(source, "validation"))


def test_other_stories_are_other_text():
    known = text_in_memory(STORIES).content_id("train")
    assert text_in_memory(STORIES[::-1]).content_id("train") != known
    assert text_in_memory(["".join(STORIES[:2]), *STORIES[2:]]).content_id("train") != known


def test_what_is_held_out_is_what_is_held_out_of_a_file(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": one}) for one in STORIES), encoding="utf-8")
    held = list(parse_data(str(path)).texts("validation"))
    assert held
    assert stories_of(text_in_memory(STORIES), "validation") == held


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_validation_split_of_its_own_is_read_as_it_stands(name):
    source = text_in_memory({"train": STORIES[:9], name: STORIES[9:11]})
    assert stories_of(source) == STORIES[:9]
    assert stories_of(source, "validation") == STORIES[9:11]


def test_missing_texts_are_empty_and_counted(tokenizer, tmp_path):
    stories = [float("nan"), "Tom was sad.", None, "\ud800 Mia", pd.NA]
    source = text_in_memory({"train": pd.Series(stories, dtype=object), "validation": ["Tom"]})
    corpus = load_corpus(source, "train", tokenizer, tmp_path)
    assert (len(corpus), corpus.meta["n_empty"]) == (2, 3)
    assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(corpus.story(1))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (3, "not int: 3"),
        (b"bytes", "not bytes"),
        ({"a": ["x"], "b": ["y"]}, "needs a split 'train', not a, b"),
        ({}, "needs a split 'train', not none"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "2 columns of strings among a, b"),
        (pd.DataFrame({"a": [1], "b": [2]}), "0 columns of strings"),
    ],
)
def test_what_is_no_text_is_named(given, reason):
    with pytest.raises(UserError, match=reason) as caught:
        text_in_memory(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["Tom", 3], "text 2 must be a string, not int"),
        ([[1, 2], [3, "x"]], "sequence 2 must be a list of token ids"),
        ([[1, -2]], "sequence 1"),
        ([[1, True]], "sequence 1"),
        (torch.tensor([1, 2]), "sequence 1"),
        (torch.rand(2, 2), "sequence 1"),
    ],
)
def test_what_is_no_story_or_sequence_is_named_by_its_number(given, reason):
    with pytest.raises(UserError, match=reason):
        list(text_in_memory(given).read_part("all"))


ROWS = [[7, 1, 2, 3], [7, 4], [5, 6, 6, 6, 6], [9]]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        [torch.tensor(row) for row in ROWS],
        [np.array(row) for row in ROWS],
        [[np.int64(token) for token in row] for row in ROWS],
        datasets.Dataset.from_dict({"tokens": ROWS}),
        pd.DataFrame({"input_ids": ROWS}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_sequences_are_read_as_they_stand(given):
    source = text_in_memory({"train": given, "validation": given})
    assert isinstance(source, TokenSource)
    corpus = source.corpus("validation")
    assert (len(corpus), corpus.meta["n_empty"], corpus.start) == (3, 1, 7)
    read = {
        tuple(row) for batch in story_batches(corpus, n_ctx=10) for row in batch.tokens.tolist()
    }
    assert read == {(7, 1, 2, 3), (7, 4), (5, 6, 6, 6, 6)}
    assert np.diff(corpus.offsets).tolist() == [3, 1, 4]
    some = corpus.take(np.array([2]))
    assert [batch.tokens.tolist() for batch in story_batches(some, n_ctx=3)] == [[[5, 6, 6, 6]]]


def test_a_tensor_of_ids_is_its_rows():
    rows = torch.arange(60).view(12, 5)
    source = text_in_memory(rows)
    train, held = source.corpus("train"), source.corpus("validation")
    assert len(train) + len(held) == 12
    assert len(held) >= 1
    assert source.content_id("train") == text_in_memory(rows.tolist()).content_id("train")
    assert source.corpus("train", limit=2).meta["n_stories"] == 2


def test_sequences_without_a_second_token_are_no_text():
    with pytest.raises(UserError, match="no sequence for train has two tokens"):
        text_in_memory({"train": [[1], [2]], "validation": [[1]]}).corpus("train")
