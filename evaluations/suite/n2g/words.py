"""Eight word classes, from a part-of-speech tagger that needs no download.

The tagger is TextBlob's, which includes Brill's lexicon (94,000 words of the Brown corpus and the
Penn Treebank, each with its most frequent tag) and suffix rules for other words. Of Brill's
contextual rules, one is used: a verb after an article or a possessive is a noun. (TextBlob's own
contextual rules tag 'quickly' as a noun.) Penn tags are grouped into classes:

- punctuation: punctuation marks and symbols;
- stop word: the closed classes (articles, pronouns, prepositions, conjunctions, particles, modals,
  wh-words) and the forms of be, have and do;
- verb, noun (including names), adjective, adverb;
- other: numbers, interjections and special tokens (end-of-text);
- unknown: words that are not in the lexicon, including parts of words.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

CLASSES = (
    "punctuation",
    "stop word",
    "verb",
    "noun",
    "adjective",
    "adverb",
    "other",
    "unknown",
)

_OPEN = {"VB": "verb", "NN": "noun", "JJ": "adjective", "RB": "adverb"}
_CLOSED = {
    "CC",
    "DT",
    "EX",
    "IN",
    "MD",
    "PDT",
    "POS",
    "PRP",
    "PRP$",
    "RP",
    "TO",
    "WDT",
    "WP",
    "WP$",
    "WRB",
}
_AUXILIARIES = {
    "be",
    "am",
    "is",
    "are",
    "was",
    "were",
    "been",
    "being",
    "have",
    "has",
    "had",
    "having",
    "do",
    "does",
    "did",
    "doing",
    "done",
    "'s",
    "'re",
    "'m",
    "'ve",
    "'d",
    "'ll",
    "n't",
    "not",
    "no",
}


def word_classes(words: Sequence[str]) -> list[str]:
    """Return the class of each word of a sentence or part of a sentence."""
    stripped = [word.strip() for word in words]
    tags = iter(_tags(tuple(word for word in stripped if word)))
    return [_class(word, next(tags)) if word else "other" for word in stripped]


def _class(word: str, tag: str) -> str:
    if not any(character.isalnum() for character in word):
        return "punctuation"
    if word.startswith("<") and word.endswith(">"):
        return "other"
    if word.lower() in _AUXILIARIES or tag in _CLOSED:
        return "stop word"
    if not any(character.isalpha() for character in word) or tag in {"CD", "UH", "FW", "LS", "SYM"}:
        return "other"
    lexicon = _parser().lexicon
    if word not in lexicon and word.lower() not in lexicon and word.capitalize() not in lexicon:
        return "unknown"
    return _OPEN.get(tag[:2], "other")


@cache
def _tags(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words:
        return ()
    tags = [tag for _, tag in _parser().find_tags(list(words))]
    return tuple(
        "NN" if tag in {"VB", "VBP"} and before in {"DT", "PRP$"} else tag
        for before, tag in zip(["", *tags], tags, strict=False)
    )


@cache
def _parser() -> Any:
    """Return TextBlob's parser with its lexicon loaded."""
    with warnings.catch_warnings():
        # its files are closed by the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        from textblob.en import parser

        parser.find_tags(["a"])
    return parser
