"""Patterns of a unit, and the trie that predicts from them where it fires.

Foote et al. 2023, section 3.4. A pattern is read backwards from an activating token: at each
position before it the required token, or IGNORE where any token is allowed, up to the farthest
important token. Patterns form a trie; the prediction for a token is the activation of the most
specific pattern that matches its context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.suite.n2g.augment import Substitution
from evaluations.suite.n2g.prune import Window

IGNORE = -1
TokenPath = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A window from which patterns are read: a pruned excerpt or a substitution.

    Attributes:
        tokens: tokens of the window.
        activations: activations relative to the unit's maximum, scaled by ``Window.scale``; that of
            the pruned excerpt's last token is from the story.
        importance: entry [s, t] is the importance of token s for token t. A new word inherits the
            importance of the word it replaces.
        first: patterns are read only from this token on; another example covers those before it.
        negative: index of a token on which the unit does not fire; None in excerpts and positive
            examples.
    """

    tokens: Int64[np.ndarray, " length"]
    activations: Float[np.ndarray, " length"]
    importance: Float[np.ndarray, "length length"]
    first: int = 0
    negative: int | None = None

    @classmethod
    def of_window(
        cls, window: Window, importance: Float[np.ndarray, "length length"], maximum: float
    ) -> Example:
        """Return the example of a pruned excerpt."""
        scaled = window.activations * (window.scale / maximum)
        scaled[-1] = window.peak / maximum
        first = 0 if window.faithful else len(window.tokens) - 1
        return cls(window.tokens, scaled, importance, first)

    @classmethod
    def of_substitution(
        cls,
        change: Substitution,
        window: Window,
        importance: Float[np.ndarray, "old old"],
        maximum: float,
    ) -> Example:
        """Return the example of a substitution in a pruned excerpt."""
        scaled = change.activations * (window.scale / maximum)
        inherited = np.triu(importance[np.ix_(change.old, change.old)], k=1)
        first = change.begin if window.faithful else change.place
        negative = None if change.positive else change.place
        return cls(change.tokens, scaled, inherited, first, negative)

    def activating(self, threshold: float) -> list[int]:
        """Return the firing tokens from ``first`` on."""
        return [int(t) for t in np.flatnonzero(self.activations > threshold) if t >= self.first]


@dataclass(frozen=True)
class Pattern:
    """A path, its mean normalised activation, and its number of examples."""

    path: TokenPath
    activation: float
    count: int

    @property
    def named(self) -> TokenPath:
        """Its tokens without ignored positions, the activating token first."""
        return tuple(token for token in self.path if token != IGNORE)


def patterns(examples: Iterable[Example], importance: float, activation: float) -> list[Pattern]:
    """Return the distinct patterns in the examples of one unit, most activating first.

    Args:
        importance: minimum importance of a context token.
        activation: normalised activation above which a token fires.
    """
    activations: dict[TokenPath, list[float]] = {}
    for example in examples:
        ends = set(example.activating(activation))
        if example.negative is not None:
            ends.add(example.negative)
        for t in sorted(ends):
            path = _path(example, t, importance)
            activations.setdefault(path, []).append(float(example.activations[t]))
    distinct = [
        Pattern(path, sum(values) / len(values), len(values))
        for path, values in activations.items()
    ]
    return sorted(distinct, key=lambda pattern: (-pattern.activation, pattern.path))


def _path(example: Example, t: int, importance: float) -> TokenPath:
    named = example.importance[:t, t] >= importance
    first = int(named.argmax()) if named.any() else t
    before = np.where(named, example.tokens[:t], IGNORE)[first:]
    return (int(example.tokens[t]), *before[::-1].tolist())


class Trie:
    """Patterns as a trie that is searched backwards from many tokens at once.

    Nodes are numbered; ``_keys`` holds node * size + token of every child, sorted, and
    ``_children`` the child's number. At each depth the search follows both the child of the token
    and the IGNORE child.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        children: dict[tuple[int, int], int] = {}
        ends: dict[int, float] = {}
        for pattern in patterns:
            node = 0
            for token in pattern.path:
                node = children.setdefault((node, token), len(children) + 1)
            ends[node] = pattern.activation
        self.depth = max((len(pattern.path) for pattern in patterns), default=0)
        self._size = max((token for _, token in children), default=0) + 2
        keys = np.array([self._key(node, token) for node, token in children], dtype=np.int64)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._children = np.array(list(children.values()), dtype=np.int64)[order]
        self._ends = np.full(len(children) + 1, np.nan)
        self._ends[list(ends)] = list(ends.values())

    def predict(
        self,
        tokens: Int64[np.ndarray, " length"],
        before: Int64[np.ndarray, " length"] | None = None,
    ) -> Float[np.ndarray, " length"]:
        """Return for every token the activation of the most specific matching pattern, else 0.

        The most specific pattern names the most tokens; ties are broken by length, then activation.

        Args:
            before: number of preceding tokens that are a token's context, if ``tokens`` holds
                several excerpts; all of them by default.
        """
        length = len(tokens)
        context = np.arange(length) if before is None else before
        best, predicted = np.zeros(length, dtype=np.int64), np.zeros(length)
        place, node = np.arange(length), np.zeros(length, dtype=np.int64)
        named = np.zeros(length, dtype=np.int64)
        for depth in range(self.depth):
            inside = context[place] >= depth
            place, node, named = place[inside], node[inside], named[inside]
            by_name = self._step(node, tokens[place - depth])
            by_ignoring = self._step(node, np.full(len(node), IGNORE))
            matched, ignored = by_name >= 0, by_ignoring >= 0
            place = np.concatenate([place[matched], place[ignored]])
            named = np.concatenate([named[matched] + 1, named[ignored]])
            node = np.concatenate([by_name[matched], by_ignoring[ignored]])
            value, rank = self._ends[node], named * (self.depth + 1) + depth
            better = np.flatnonzero(~np.isnan(value) & (rank > best[place]))
            better = better[np.lexsort((value[better], rank[better]))]  # the best is assigned last
            best[place[better]], predicted[place[better]] = rank[better], value[better]
        return predicted

    def _key(self, node: int, token: int) -> int:
        return node * self._size + token + 1

    def _step(
        self, node: Int64[np.ndarray, " n"], token: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Return the child of each node by a token, -1 if there is none."""
        if not len(self._keys):
            return np.full(len(node), -1)
        known = token < self._size - 1
        keys = node * self._size + token + 1
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(known & (self._keys[at] == keys), self._children[at], -1)


def token_texts(patterns: Sequence[Pattern], texts: Sequence[str]) -> list[Mapping[str, object]]:
    """Return patterns as JSON values: tokens as text, null for ignored positions."""
    return [
        {
            "path": [None if token == IGNORE else texts[token] for token in pattern.path],
            "activation": round(pattern.activation, 4),
            "count": pattern.count,
        }
        for pattern in patterns
    ]
