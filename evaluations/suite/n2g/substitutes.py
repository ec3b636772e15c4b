"""What other words could stand where a word stands: proposals, never more than that.

Whether a unit fires on them is for the model to say (``augment.py``). Two sources: a masked
language model (DistilBERT, as in Foote et al. 2023, section 3.3), where ``transformers`` can load
one, and the neighbours of words in the text itself, which needs no download. Neither depends on the
model that is evaluated, so that several models are asked about the same words. Proposals are kept
by context and asked for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float

from evaluations.core.text import Text
from evaluations.suite.n2g.vocabulary import Vocabulary

CHUNK = 1 << 22  # tokens of the text counted at once
BOTH = 0.9


@dataclass(frozen=True)
class Place:
    """A word to be replaced.

    Attributes:
        before: the tokens before it in the window; where the window begins with it, the one before
            it in the story.
        word: its tokens.
        after: the tokens after it in the window; where the window ends with it, the next of the
            story, if it begins another word.
    """

    before: tuple[int, ...]
    word: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Proposal:
    """A word in the tokens of the evaluated model, and its probability at the place."""

    word: tuple[int, ...]
    probability: float


@runtime_checkable
class Substitutes(Protocol):
    """A source of words that fit a context."""

    @property
    def name(self) -> str:
        """For the record: ``neighbours``, or which masked language model."""
        ...

    @property
    def seconds(self) -> float:
        """Spent in a masked language model so far."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the proposals, besides the text."""
        ...

    def propose(
        self, places: Sequence[Place], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        """For each place its likeliest words, likeliest first, the word itself left out."""
        ...


@dataclass
class Neighbours:
    """Words that stand in the text between the same two tokens.

    With c(v, w) the number of times token w follows v in the text, l and r the tokens on either
    side of the place, p(w | l, r) is proportional to c(l, w) c(w, r) / c(w), c(w) being how often w
    has a follower. To this, weighted 0.9, the neighbours of one side alone are added, 0.05 each, so
    that a rare pair still has proposals. Only single tokens that make a word are proposed, with a
    space before them where the word has one.
    """

    vocabulary: Vocabulary
    counts: sparse.csr_array
    seconds: float = 0.0
    _known: dict[tuple[int, int, bool], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False
    )

    name = "neighbours"

    @classmethod
    def of(cls, text: Text, vocabulary: Vocabulary) -> Neighbours:
        """Count the text's pairs of tokens; stories are parted by their end-of-text tokens."""
        size, stream = len(vocabulary.texts), text.corpus.tokens
        counts = sparse.csr_array((size, size), dtype=np.float64)
        for first in range(0, max(0, len(stream) - 1), CHUNK):
            part = np.asarray(stream[first : first + CHUNK + 1], dtype=np.int64)
            ones = np.ones(len(part) - 1)
            counts += sparse.csr_array((ones, (part[:-1], part[1:])), shape=(size, size))
        return cls(vocabulary, counts)

    def __post_init__(self) -> None:
        counts, vocabulary = self.counts, self.vocabulary
        total = np.asarray(counts.sum(1)).reshape(-1)
        # a token that mostly goes on with a word, or is mostly followed by the rest of it, is none
        begins, opened = vocabulary.begins, vocabulary.open
        met = np.asarray(counts.sum(0)).reshape(-1)
        begun = np.where(begins, met, (~opened).astype(float) @ counts)
        ended = np.where(opened, counts @ begins.astype(float), total)
        is_word = (2 * begun > met) & (2 * ended > total)
        words = sparse.diags_array(is_word.astype(float))
        self._total = total
        self._after = sparse.csr_array(counts @ words)  # row l: c(l, w) of the words w
        self._before = sparse.csr_array((words @ counts).T)  # row r: c(w, r)

    def describe(self) -> dict[str, Any]:
        return {"substitutes": self.name}

    def propose(
        self, places: Sequence[Place], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        found = []
        for place in places:
            tokens, p = self._likeliest(place, most)
            others = [
                Proposal((int(token),), float(one))
                for token, one in zip(tokens, p, strict=True)
                if one > least_probability and (int(token),) != place.word
            ]
            found.append(others[:most])
        return found

    def _likeliest(self, place: Place, most: int) -> tuple[np.ndarray, np.ndarray]:
        left = place.before[-1] if place.before else -1
        right = place.after[0] if place.after else -1
        spaced = bool(self.vocabulary.spaced[place.word[0]])
        key = (left, right, spaced)
        if key not in self._known:
            tokens, p = self.distribution(left, right)
            fits = self.vocabulary.spaced[tokens] == spaced
            tokens, p = tokens[fits], p[fits]
            best = np.lexsort((tokens, -p))[: most + 1]  # one of them may be the word itself
            self._known[key] = tokens[best], p[best]
        return self._known[key]

    def distribution(
        self, left: int, right: int
    ) -> tuple[np.ndarray, Float[np.ndarray, " proposals"]]:
        """The words that fit between two tokens, -1 for none, and their probabilities."""
        follows = self._after[[left]] if left >= 0 else None
        precedes = self._before[[right]] if right >= 0 else None
        sides = [one for one in (follows, precedes) if one is not None and one.nnz]
        weighted = [(1 / len(sides), side) for side in sides]
        if follows is not None and precedes is not None and len(sides) == 2:
            both = sparse.csr_array(follows.multiply(precedes))
            both.data /= self._total[both.indices]
            if both.nnz:
                weighted = [(BOTH, both), *(((1 - BOTH) / 2, side) for side in sides)]
        found = sparse.csr_array((1, self.counts.shape[0]), dtype=np.float64)
        for weight, row in weighted:
            found = found + row * (weight / row.sum())
        return found.indices, found.data
