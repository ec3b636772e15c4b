"""Sources of candidate words to replace a word of an excerpt.

Whether a unit fires on them is measured by the model (``augment.py``). There are two sources: a
masked language model (DistilBERT in Foote et al. 2023, section 3.3) and the neighbours of words in
the text, which need no download. Neither depends on the evaluated model, so that all models are
tested on the same words. Proposals are cached by context.
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
"""Weight of words that occur next to both neighbours."""


@dataclass(frozen=True)
class Slot:
    """A word to be replaced, in context.

    Attributes:
        before: the tokens before it in the window; if the window starts with it, the previous
            token of the story.
        word: its tokens.
        after: the tokens after it in the window; if the window ends with it, the next token of
            the story, if that starts another word.
    """

    before: tuple[int, ...]
    word: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Proposal:
    """A word in tokens of the evaluated model, and its probability in the slot."""

    word: tuple[int, ...]
    probability: float


@runtime_checkable
class Substitutes(Protocol):
    """A source of words that fit a context."""

    @property
    def name(self) -> str:
        """Name for the record: ``neighbours``, or that of the masked language model."""
        ...

    @property
    def seconds(self) -> float:
        """Time spent in a masked language model so far."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe the source for a record."""
        ...

    def propose(
        self, slots: Sequence[Slot], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        """Return the most probable words of each slot, in order, without the word itself."""
        ...


@dataclass
class Neighbours:
    """A source of words: those that occur in the text between the same two tokens.

    Let c(v, w) be the number of times token w follows v in the text, c(w) the number of times w is
    followed by any token, and l and r the tokens on either side of the slot. p(w | l, r) is
    proportional to c(l, w) c(w, r) / c(w). It has weight 0.9; the neighbours of each side alone
    have weight 0.05, so that rare pairs have proposals. Only single tokens that form a word are
    proposed, with a leading space if the replaced word has one.
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
        """Count the pairs of tokens in a text; end-of-text tokens separate its stories."""
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
        # tokens that mostly continue a word, or are mostly continued, are not words
        begins, opened = vocabulary.begins, vocabulary.open
        occurrences = np.asarray(counts.sum(0)).reshape(-1)
        begun = np.where(begins, occurrences, (~opened).astype(float) @ counts)
        ended = np.where(opened, counts @ begins.astype(float), total)
        is_word = (2 * begun > occurrences) & (2 * ended > total)
        words = sparse.diags_array(is_word.astype(float))
        self._total = total
        self._after = sparse.csr_array(counts @ words)  # row l: c(l, w) of the words w
        self._before = sparse.csr_array((words @ counts).T)  # row r: c(w, r)

    def describe(self) -> dict[str, Any]:
        """Describe the source for a record."""
        return {"substitutes": self.name}

    def propose(
        self, slots: Sequence[Slot], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        """Return the most probable words of each slot."""
        proposals = []
        for slot in slots:
            tokens, probabilities = self._most_probable(slot, most)
            others = [
                Proposal((int(token),), float(p))
                for token, p in zip(tokens, probabilities, strict=True)
                if p > least_probability and (int(token),) != slot.word
            ]
            proposals.append(others[:most])
        return proposals

    def _most_probable(self, slot: Slot, most: int) -> tuple[np.ndarray, np.ndarray]:
        left = slot.before[-1] if slot.before else -1
        right = slot.after[0] if slot.after else -1
        spaced = bool(self.vocabulary.spaced[slot.word[0]])
        key = (left, right, spaced)
        if key not in self._known:
            tokens, p = self.distribution(left, right)
            fits = self.vocabulary.spaced[tokens] == spaced
            tokens, p = tokens[fits], p[fits]
            best = np.lexsort((tokens, -p))[: most + 1]  # one may be the replaced word itself
            self._known[key] = tokens[best], p[best]
        return self._known[key]

    def distribution(
        self, left: int, right: int
    ) -> tuple[np.ndarray, Float[np.ndarray, " proposals"]]:
        """Return the words between two tokens (-1 for none) and their probabilities."""
        follows = self._after[[left]] if left >= 0 else None
        precedes = self._before[[right]] if right >= 0 else None
        sides = [side for side in (follows, precedes) if side is not None and side.nnz]
        weighted = [(1 / len(sides), side) for side in sides]
        if follows is not None and precedes is not None and len(sides) == 2:
            both = sparse.csr_array(follows.multiply(precedes))
            both.data /= self._total[both.indices]
            if both.nnz:
                weighted = [(BOTH, both), *(((1 - BOTH) / 2, side) for side in sides)]
        total = sparse.csr_array((1, self.counts.shape[0]), dtype=np.float64)
        for weight, row in weighted:
            total = total + row * (weight / row.sum())
        return total.indices, total.data
