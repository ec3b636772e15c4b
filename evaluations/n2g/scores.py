"""Does the graph describe its unit? Firing on held-out excerpts, predicted and real.

A token fires where the unit's activation is more than half of its maximum in the excerpts it is
explained from. The trie's prediction stands beside two baselines that know no context: *lookup*,
which fires on the tokens that fire at least every other time in those excerpts, and *always*.
Held out are top, sampled and random excerpts alike; the published code scores on top ones only,
which flatters every predictor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from evaluations.excerpts import Excerpt
from evaluations.n2g.trie import Trie

PREDICTORS = ("trie", "lookup", "always")


@dataclass(frozen=True)
class Counts:
    """How predictions fell, over tokens."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @classmethod
    def of(cls, predicted: Bool[np.ndarray, " n"], real: Bool[np.ndarray, " n"]) -> Counts:
        return cls(
            int((predicted & real).sum()),
            int((predicted & ~real).sum()),
            int((~predicted & real).sum()),
        )

    @property
    def precision(self) -> float | None:
        """Of the predicted those that fire; None where none is predicted."""
        return self.hits / (self.hits + self.false) if self.hits + self.false else None

    @property
    def recall(self) -> float | None:
        """Of those that fire the predicted; None where none fires."""
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else None

    @property
    def f1(self) -> float | None:
        """2 hits / (2 hits + false + missed); None where none fires."""
        if not self.hits + self.missed:
            return None
        return 2 * self.hits / (2 * self.hits + self.false + self.missed)


@dataclass(frozen=True)
class Seen:
    """A held-out excerpt.

    Attributes:
        tokens: its own, and before them as many of the story's as a pattern may need.
        fires: for each of its own tokens.
    """

    tokens: Int64[np.ndarray, " length"]
    fires: Bool[np.ndarray, " own"]

    @property
    def own(self) -> Bool[np.ndarray, " length"]:
        """Which of the tokens are its own."""
        return np.arange(len(self.tokens)) >= len(self.tokens) - len(self.fires)


def lookup(excerpts: Iterable[Excerpt], threshold: float) -> frozenset[int]:
    """The tokens on which a unit fires at least every other time.

    Args:
        threshold: of the activation, not normalised.
    """
    met: Counter[int] = Counter()
    fired: Counter[int] = Counter()
    for excerpt in excerpts:
        met.update(excerpt.tokens.tolist())
        fired.update(excerpt.tokens[excerpt.activations > threshold].tolist())
    return frozenset(token for token, count in fired.items() if 2 * count >= met[token])


def score(
    trie: Trie, known: frozenset[int], held_out: Sequence[Seen], activation: float
) -> dict[str, Counts]:
    """The counts of each predictor over the tokens of all held-out excerpts of a unit.

    Args:
        known: the lookup's tokens.
        activation: normalised; the trie fires where it predicts more.
    """
    if not held_out:
        return {name: Counts() for name in PREDICTORS}
    real = np.concatenate([one.fires for one in held_out])
    own = np.concatenate([one.own for one in held_out])
    tokens = np.concatenate([one.tokens for one in held_out])
    before = np.concatenate([np.arange(len(one.tokens)) for one in held_out])
    return {
        "trie": Counts.of(trie.predict(tokens, before)[own] > activation, real),
        "lookup": Counts.of(np.isin(tokens[own], list(known)), real),
        "always": Counts.of(np.ones_like(real), real),
    }
