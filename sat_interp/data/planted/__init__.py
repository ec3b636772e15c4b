"""Corpora in which a further skill is planted among the built-in stories.

``facts``: what people do, and which of their names decides it. ``numbers``: years, the later one
second. Each text is a story, or one sentence of the planted kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sat_interp.data.planted import facts, numbers
from sat_interp.data.stories.grammar import GRAMMAR_VERSION, stories


class Corpus(NamedTuple):
    """A corpus of stories and planted sentences.

    Attributes:
        version: of its sentences, and of the stories between them.
        sentences: (split, seed) -> sentences without end.
        per_story: sentences after each story.
        n_texts: how many texts of both kinds training takes unless told otherwise.
    """

    version: str
    sentences: Callable[[str, int], Iterator[str]]
    per_story: int
    n_texts: int

    def texts(self, split: str, seed: int) -> Iterator[str]:
        """Yield a story, the sentences after it, the next story, and so on without end."""
        planted = self.sentences(split, seed)
        for story in stories(split, seed):
            yield story
            for _ in range(self.per_story):
                yield next(planted)


# About as many tokens of either kind.
FACTS = Corpus(f"{facts.WORLD} {GRAMMAR_VERSION}", facts.sentences, per_story=15, n_texts=400_000)
# About three tokens in five are of years.
NUMBERS = Corpus(f"{numbers.VERSION} {GRAMMAR_VERSION}", numbers.sentences, 12, n_texts=300_000)
CORPORA = {"facts": FACTS, "numbers": NUMBERS}
