"""Word classes of sentences tagged by hand."""

from __future__ import annotations

import pytest

from evaluations.suite.n2g.words import CLASSES, word_classes

SHORT = {
    "P": "punctuation",
    "S": "stop word",
    "V": "verb",
    "N": "noun",
    "J": "adjective",
    "R": "adverb",
    "O": "other",
    "U": "unknown",
}
SENTENCES = [
    "One/O day/N ,/P Anna/N and/S Tom/N went/V to/S the/S park/N ./P",
    "Tom/N gave/V a/S red/J ball/N to/S Anna/N quickly/R ./P",
    "The/S little/J girl/N was/S very/R happy/J and/S ran/V home/N ./P",
    "She/S had/S 12/O apples/N !/P",
    "They/S played/V together/R in/S the/S garden/N ./P",
    "Oh/O ,/P said/V the/S old/J man/N ./P",
    "He/S saw/V a/S zxqvu/U ./P",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_tagged_by_hand(sentence):
    words, marks = zip(*(one.rsplit("/", 1) for one in sentence.split()), strict=True)
    assert word_classes(words) == [SHORT[mark] for mark in marks]


def test_a_verb_after_an_article_is_a_noun():
    assert word_classes(["the", "play"])[1] == "noun"
    assert word_classes(["to", "play"])[1] == "verb"
    assert word_classes(["the", "played"])[1] == "verb"


def test_spaces_do_not_matter_and_what_is_no_word_is_other():
    assert word_classes([" Tom", " gave", "\n", "<|endoftext|>", ""]) == [
        "noun",
        "verb",
        "other",
        "other",
        "other",
    ]
    assert word_classes([]) == []
    assert word_classes(["”", "…", '."']) == ["punctuation"] * 3


def test_there_are_eight_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 8
    assert set(SHORT.values()) == set(CLASSES)
