"""Scores of a graph: predicted and actual firing on held-out excerpts.

A unit fires on a token if its activation exceeds half of its maximum in the excerpts that explain
it. The trie is compared with baselines that use no context:

- ``lookup``: predicts firing on tokens that fire at least half of the time in the complete
  excerpts, which are longer than the pruned windows of the graph;
- ``lookup_windows``: the same, from the pruned windows that the graph is built from;
- ``lookup_published``: predicts firing on tokens that fire at least once in the complete excerpts,
  the baseline of Foote et al. 2023;
- ``always``: predicts firing everywhere.

Held-out excerpts are top, sampled and random ones; the published code uses top excerpts only, which
gives every predictor a higher score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64

from evaluations.suite.n2g.metrics import LOOKUPS, PREDICTORS
from evaluations.suite.n2g.trie import Trie


@dataclass(frozen=True)
class Counts:
    """Numbers of tokens with correct and wrong predictions."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @classmethod
    def of(cls, predicted: Bool[np.ndarray, " n"], actual: Bool[np.ndarray, " n"]) -> Counts:
        """Count predictions against actual firing."""
        return cls(
            int((predicted & actual).sum()),
            int((predicted & ~actual).sum()),
            int((~predicted & actual).sum()),
        )

    @property
    def predicted(self) -> int:
        """Number of tokens on which firing is predicted."""
        return self.hits + self.false

    @property
    def precision(self) -> float | None:
        """Share of predicted tokens that fire; None if none is predicted."""
        return self.hits / (self.hits + self.false) if self.hits + self.false else None

    @property
    def recall(self) -> float | None:
        """Share of firing tokens that are predicted; None if none fires."""
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else None

    @property
    def f1(self) -> float | None:
        """2 hits / (2 hits + false + missed); None if no token fires.

        0 if some tokens fire and none is predicted.
        """
        if not self.hits + self.missed:
            return None
        return 2 * self.hits / (2 * self.hits + self.false + self.missed)


@dataclass(frozen=True)
class HeldOutExcerpt:
    """A held-out excerpt.

    Attributes:
        tokens: its tokens, preceded by the context that a pattern can need.
        fires: whether the unit fires, for each token after the context.
    """

    tokens: Int64[np.ndarray, " length"]
    fires: Bool[np.ndarray, " own"]

    @property
    def own(self) -> Bool[np.ndarray, " length"]:
        """Which tokens belong to the excerpt, not to its context."""
        return np.arange(len(self.tokens)) >= len(self.tokens) - len(self.fires)


@dataclass(frozen=True)
class FiringCounts:
    """Number of occurrences of each token, and of those on which the unit fires."""

    seen: Counter[int] = field(default_factory=Counter)
    fired: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: Int64[np.ndarray, " length"], fires: Bool[np.ndarray, " length"]) -> None:
        """Add some tokens."""
        self.seen.update(tokens.tolist())
        self.fired.update(tokens[fires].tolist())

    @property
    def usual(self) -> frozenset[int]:
        """Tokens on which the unit fires at least half of the time."""
        return frozenset(t for t, count in self.fired.items() if 2 * count >= self.seen[t])

    @property
    def any(self) -> frozenset[int]:
        """Tokens on which the unit fires at least once."""
        return frozenset(self.fired)


def score(
    trie: Trie,
    lookups: Mapping[str, frozenset[int]],
    held_out: Sequence[HeldOutExcerpt],
    activation: float,
) -> dict[str, Counts]:
    """Return the counts of each predictor over all held-out excerpts of a unit.

    Args:
        lookups: the tokens on which each of ``LOOKUPS`` predicts firing.
        activation: normalised activation above which the trie predicts firing.
    """
    if not held_out:
        return {name: Counts() for name in PREDICTORS}
    actual = np.concatenate([excerpt.fires for excerpt in held_out])
    own = np.concatenate([excerpt.own for excerpt in held_out])
    tokens = np.concatenate([excerpt.tokens for excerpt in held_out])
    before = np.concatenate([np.arange(len(excerpt.tokens)) for excerpt in held_out])
    return {
        "trie": Counts.of(trie.predict(tokens, before)[own] > activation, actual),
        **{name: Counts.of(np.isin(tokens[own], list(lookups[name])), actual) for name in LOOKUPS},
        "always": Counts.of(np.ones_like(actual), actual),
    }
