"""Cutting a long text changes none of its tokens."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sat_interp.data import pieces as module
from sat_interp.data.pieces import encode, pieces
from sat_interp.data.tokenizer import train_bpe

WORDS = (
    "Lily",
    "didn't",
    "“no”",
    "23",
    "über",
    "ran.",
    "\n",
    "\n\n",
    " ",
    "a,b",
    "日本",
    "\t",
    "x",
)


def long_text(seed: int, n: int = 600) -> str:
    draws = random.Random(seed)
    return "".join(draws.choice(WORDS) + draws.choice(("", " ", " ", " ")) for _ in range(n))


def byte_level() -> Tokenizer:
    return train_bpe([long_text(seed) for seed in range(9)], 400).backend_tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator([long_text(seed) for seed in range(9)], trainer)
    return tokenizer


def lower_case_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator([long_text(0)], trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, metaspace, lower_case_words])
def test_tokens_are_those_of_the_whole_text(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make()  # type: ignore[operator]
    texts = [long_text(seed) for seed in range(20, 25)] + ["", "short", "x" * 3000]
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for size in (50, 333):
        monkeypatch.setattr(module, "PIECE", size)
        assert encode(tokenizer, texts, at_once=1000) == whole


def test_a_tokenizer_is_trained_on_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [long_text(seed) for seed in range(5)]
    known = train_bpe(texts, 350).backend_tokenizer.to_str()
    monkeypatch.setattr(module, "PIECE", 60)
    assert train_bpe(texts, 350).backend_tokenizer.to_str() == known


def test_the_tokenizer_is_never_given_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 100)
    found = list(pieces("word " * 400))
    assert "".join(found) == "word " * 400
    assert max(map(len, found)) <= 100
    assert all(not one.endswith(" ") and other.startswith(" ") for one, other in pairwise(found))


def test_a_text_without_a_place_to_cut_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 100)
    assert list(pieces("x" * 950)) == ["x" * 950]
    assert list(pieces("x" * 950 + " y")) == ["x" * 950, " y"]
    refused = list(pieces("word " * 99, lambda around, place: False))
    assert refused == ["word " * 99]
