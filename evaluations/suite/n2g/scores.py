"""Does the graph describe its unit? Firing on held-out excerpts, predicted and real.

A token fires where the unit's activation is more than half of its maximum in the excerpts it is
explained from. Beside the trie's prediction stand baselines that know no context:

- ``lookup``: fires on the tokens that fire at least every other time in the whole excerpts that the
  unit is explained from. It sees more than the graph does, which has the pruned windows alone;
- ``lookup_windows``: the same rule on the evidence that the graph has, the pruned windows;
- ``lookup_published``: fires on every token that fires at least once in the whole excerpts, as the
  lookup that Foote et al. 2023 compare with;
- ``always``: fires everywhere.

Held out are top, sampled and random excerpts alike; the published code scores on top ones only,
which flatters every predictor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64

from evaluations.suite.n2g.predictors import LOOKUPS, PREDICTORS
from evaluations.suite.n2g.trie import Trie


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
    def predicted(self) -> int:
        """On how many tokens firing is predicted."""
        return self.hits + self.false

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
        """2 hits / (2 hits + false + missed); None where none fires.

        0 where firing is predicted nowhere and some fire: every one of them is missed.
        """
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


@dataclass(frozen=True)
class Tally:
    """How often each token was met, and how often the unit fired on it."""

    met: Counter[int] = field(default_factory=Counter)
    fired: Counter[int] = field(default_factory=Counter)

    def count(
        self, tokens: Int64[np.ndarray, " length"], fires: Bool[np.ndarray, " length"]
    ) -> None:
        """Add some tokens."""
        self.met.update(tokens.tolist())
        self.fired.update(tokens[fires].tolist())

    @property
    def mostly(self) -> frozenset[int]:
        """The tokens on which the unit fires at least every other time."""
        return frozenset(t for t, count in self.fired.items() if 2 * count >= self.met[t])

    @property
    def ever(self) -> frozenset[int]:
        """The tokens on which the unit fires at least once."""
        return frozenset(self.fired)


def score(
    trie: Trie, lookups: Mapping[str, frozenset[int]], held_out: Sequence[Seen], activation: float
) -> dict[str, Counts]:
    """The counts of each predictor over the tokens of all held-out excerpts of a unit.

    Args:
        lookups: the tokens on which each of ``LOOKUPS`` fires.
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
        **{name: Counts.of(np.isin(tokens[own], list(lookups[name])), real) for name in LOOKUPS},
        "always": Counts.of(np.ones_like(real), real),
    }
