"""A unit's patterns, and the trie that predicts from them where it fires.

Foote et al. 2023, section 3.4. A pattern is read backwards from an activating token: for each place
before it the token that has to be there, or IGNORE where any token will do, up to the farthest
token that matters. Patterns make a trie; a token is predicted to fire as the pattern that says most
about its context does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.suite.n2g.augment import Substitution
from evaluations.suite.n2g.prune import Window

IGNORE = -1
Path = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A window a pattern is read from: a pruned excerpt, or one with a word exchanged.

    Attributes:
        tokens: (length,).
        activations: over the unit's maximum, scaled as the pruned excerpt's are; that of the
            pruned excerpt's last token is the story's.
        importance: entry [s, t] is the importance of token s for token t. An exchanged word has
            that of the word it stands for: its own is not measured again.
        first: tokens before this one are told by another example.
        negative: a token that tells where the unit does not fire; None in an excerpt and in a
            positive example.
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
        scaled = window.activations * (window.scale / maximum)
        scaled[-1] = window.peak / maximum
        first = 0 if window.faithful else len(window.tokens) - 1
        return cls(window.tokens, scaled, importance, first)

    @classmethod
    def of_substitution(
        cls,
        one: Substitution,
        window: Window,
        importance: Float[np.ndarray, "old old"],
        maximum: float,
    ) -> Example:
        scaled = one.activations * (window.scale / maximum)
        inherited = importance[np.ix_(one.old, one.old)]
        inherited = np.triu(inherited, k=1)
        first = one.begin if window.faithful else one.place
        return cls(one.tokens, scaled, inherited, first, None if one.positive else one.place)

    def activating(self, threshold: float) -> list[int]:
        """The tokens that fire, of those that this example tells about."""
        return [int(t) for t in np.flatnonzero(self.activations > threshold) if t >= self.first]


@dataclass(frozen=True)
class Pattern:
    """A path, its mean normalised activation, and in how many examples it was met."""

    path: Path
    activation: float
    count: int

    @property
    def named(self) -> Path:
        """Its tokens without the ignored places, the activating one first."""
        return tuple(token for token in self.path if token != IGNORE)


def patterns(examples: Iterable[Example], importance: float, activation: float) -> list[Pattern]:
    """The distinct paths of some examples of one unit, most activating first.

    Args:
        importance: from which on a context token is named.
        activation: normalised; a token is read backwards from where it is higher.
    """
    met: dict[Path, list[float]] = {}
    for example in examples:
        told = set(example.activating(activation))
        if example.negative is not None:
            told.add(example.negative)
        for t in sorted(told):
            path = _path(example, t, importance)
            met.setdefault(path, []).append(float(example.activations[t]))
    found = [Pattern(path, sum(values) / len(values), len(values)) for path, values in met.items()]
    return sorted(found, key=lambda one: (-one.activation, one.path))


def _path(example: Example, t: int, importance: float) -> Path:
    named = example.importance[:t, t] >= importance
    first = int(named.argmax()) if named.any() else t
    before = np.where(named, example.tokens[:t], IGNORE)[first:]
    return (int(example.tokens[t]), *before[::-1].tolist())


class Trie:
    """Patterns, walked backwards from many tokens at once.

    Nodes are numbered; ``_keys`` holds, in order, node * size + token of every child, and
    ``_children`` its number. A walk takes the named child and the IGNORE child, depth by depth.
    """

    def __init__(self, found: Sequence[Pattern]) -> None:
        children: dict[tuple[int, int], int] = {}
        ends: dict[int, float] = {}
        for pattern in found:
            node = 0
            for token in pattern.path:
                node = children.setdefault((node, token), len(children) + 1)
            ends[node] = pattern.activation
        self.depth = max((len(pattern.path) for pattern in found), default=0)
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
        """For every token the activation of the pattern that matches it best; 0 where none does.

        The best names most tokens; of equals the longest, then the most activating.

        Args:
            before: how many of the tokens before each are its context, where ``tokens`` are several
                excerpts one after the other; all of them by default.
        """
        length = len(tokens)
        known = np.arange(length) if before is None else before
        best, found = np.zeros(length, dtype=np.int64), np.zeros(length)
        place, node = np.arange(length), np.zeros(length, dtype=np.int64)
        named = np.zeros(length, dtype=np.int64)
        for depth in range(self.depth):
            inside = known[place] >= depth
            place, node, named = place[inside], node[inside], named[inside]
            by_name = self._step(node, tokens[place - depth])
            by_ignoring = self._step(node, np.full(len(node), IGNORE))
            there, ignored = by_name >= 0, by_ignoring >= 0
            place = np.concatenate([place[there], place[ignored]])
            named = np.concatenate([named[there] + 1, named[ignored]])
            node = np.concatenate([by_name[there], by_ignoring[ignored]])
            value, rank = self._ends[node], named * (self.depth + 1) + depth
            claims = np.flatnonzero(~np.isnan(value) & (rank > best[place]))
            claims = claims[np.lexsort((value[claims], rank[claims]))]  # the best comes last
            best[place[claims]], found[place[claims]] = rank[claims], value[claims]
        return found

    def _key(self, node: int, token: int) -> int:
        return node * self._size + token + 1

    def _step(
        self, node: Int64[np.ndarray, " n"], token: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """The child of each node by a token, -1 where there is none."""
        if not len(self._keys):
            return np.full(len(node), -1)
        known = token < self._size - 1
        keys = node * self._size + token + 1
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(known & (self._keys[at] == keys), self._children[at], -1)


def token_texts(found: Sequence[Pattern], texts: Sequence[str]) -> list[Mapping[str, object]]:
    """Patterns for a file: tokens as text, null for an ignored place."""
    return [
        {
            "path": [None if token == IGNORE else texts[token] for token in pattern.path],
            "activation": round(pattern.activation, 4),
            "count": pattern.count,
        }
        for pattern in found
    ]
