"""Tokens as text, and words of tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evaluations.suite.n2g.vocabulary import Vocabulary
from sat_interp.data.tokenizer import load_tokenizer

TEXTS = ("<e>", " play", "ing", ".", "'", "s", " Tom", "The", "\n")


def test_words_are_whole():
    vocabulary = Vocabulary(TEXTS)
    tokens = [TEXTS.index(one) for one in (" Tom", "'", "s", " play", "ing", ".", "The")]
    spans = vocabulary.words(tokens)
    told = ["".join(TEXTS[t] for t in tokens[b:e]) for b, e in spans]
    assert told == [" Tom", "'", "s", " playing", ".", "The"]
    assert vocabulary.words([]) == []
    assert vocabulary.words([2, 1]) == [(0, 1), (1, 2)]


def test_without_spaces_every_token_is_a_word():
    vocabulary = Vocabulary(("a", "b", "c", " "))
    assert not vocabulary.has_words
    assert vocabulary.words([0, 1, 2]) == [(0, 1), (1, 2), (2, 3)]


def test_every_token_of_a_tokenizer_has_a_text_of_its_own(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    assert len(vocabulary.texts) == len(tokenizer)
    assert len(set(vocabulary.texts)) == len(tokenizer)  # bytes of a character too
    assert all(vocabulary.texts)
    assert vocabulary.has_words
    text = " Tom gave the ball to Anna."
    tokens = tokenizer.encode(text)
    words = ["".join(vocabulary.texts[t] for t in tokens[b:e]) for b, e in vocabulary.words(tokens)]
    assert words == [" Tom", " gave", " the", " ball", " to", " Anna", "."]


def test_ids_may_have_holes():
    words = {"<unk>": 0, "a": 1, "b": 7}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    texts = Vocabulary.of(tokenizer).texts
    assert len(texts) == 1 + max(tokenizer.get_vocab().values())
    assert (texts[1], texts[7]) == ("a", "b")
    assert len(set(texts)) == len(texts)


def test_gpt2s_tokens_have_their_spaces_though_one_is_two_hashes():
    vocabulary = Vocabulary.of(load_tokenizer("gpt2"))
    assert vocabulary.texts[262] == " the"
    assert vocabulary.texts[2235] == "##"
    assert vocabulary.has_words
    tokens = [314, 373, 7524, 278, 13]  # I was pitch+ing .
    words = ["".join(vocabulary.texts[t] for t in tokens[b:e]) for b, e in vocabulary.words(tokens)]
    assert words == [" I", " was", "".join(vocabulary.texts[t] for t in tokens[2:4]), "."]
