"""The contexts in which a token stands: what ``lookup`` explains units by.

A context is the token itself, its place in the story, one of the three tokens before it, or the
token together with the one or the two before it. Contexts are numbered, so that those of many units
are counted at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from jaxtyping import Int

KINDS = ("token", "place", "after", "2 after", "3 after", "pair", "triple")
"""From the least specific on."""
PLACES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Where a class of places in the story ends; the first four places are classes of their own."""
_SPAN = {"pair": 2, "triple": 3}
_START = 0


@dataclass(frozen=True)
class Occurrences:
    """Every context of one kind of every unit, and the tokens that stand in it.

    Attributes:
        units, codes: of each context.
        counts: how many tokens stand in it.
        tokens: those that have such a context at all.
        which: in which of the contexts each of them stands.
    """

    units: Int[np.ndarray, " contexts"]
    codes: Int[np.ndarray, " contexts"]
    counts: Int[np.ndarray, " contexts"]
    tokens: Int[np.ndarray, " some"]
    which: Int[np.ndarray, " some"]


@dataclass(frozen=True)
class Numbered:
    """Excerpts of several units, one after another, as numbers.

    Attributes:
        unit: which unit's a token is.
        codes: of each kind, the context of each token; -1 where it has none.
        strings: what a token's number stands for; the first, empty, is what precedes a story.
    """

    unit: Int[np.ndarray, " tokens"]
    codes: dict[str, Int[np.ndarray, " tokens"]]
    strings: tuple[str, ...]

    def span(self, kind: str) -> int:
        """Codes of this kind are below this."""
        return len(PLACES) + 1 if kind == "place" else int(len(self.strings) ** _SPAN.get(kind, 1))

    def keys(self, kind: str) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        """The tokens that have such a context, and for each a number of unit and context."""
        tokens = np.flatnonzero(self.codes[kind] >= 0)
        return tokens, self.unit[tokens] * self.span(kind) + self.codes[kind][tokens]

    @cached_property
    def occurrences(self) -> dict[str, Occurrences]:
        """All contexts, by kind."""
        found = {}
        for kind in KINDS:
            tokens, keys = self.keys(kind)
            unique, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
            span = self.span(kind)
            found[kind] = Occurrences(unique // span, unique % span, counts, tokens, which)
        return found

    def names(self, kind: str, codes: Int[np.ndarray, " some"]) -> list[tuple[str, ...]]:
        """Contexts as strings, the earliest token first; a place as its class's number."""
        if kind == "place":
            return [(str(code),) for code in codes.tolist()]
        columns = []
        for _ in range(_SPAN.get(kind, 1)):
            columns.append([self.strings[code] for code in (codes % len(self.strings)).tolist()])
            codes = codes // len(self.strings)
        return list(zip(*reversed(columns), strict=True))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.strings)}

    def code(self, kind: str, names: Sequence[str]) -> int | None:
        """The inverse of ``names``; None where a token does not occur in these excerpts."""
        if kind == "place":
            return int(names[0])
        code = 0
        for token in names:
            number = self._numbers.get(token)
            if number is None:
                return None
            code = code * len(self.strings) + number
        return code


def numbered(
    excerpts: Sequence[Sequence[tuple[str, ...]]], starts: Sequence[Sequence[int]]
) -> Numbered:
    """Each unit's excerpts as numbers.

    Args:
        starts: place of each excerpt's first token in its story.
    """
    flat = [one for unit in excerpts for one in unit]
    begins = np.fromiter(chain.from_iterable(starts), dtype=np.int64)
    lengths = np.fromiter(map(len, flat), dtype=np.int64, count=len(flat))
    owners = np.repeat(np.arange(len(excerpts)), [len(unit) for unit in excerpts])
    strings = ("", *dict.fromkeys(token for token in chain.from_iterable(flat) if token))
    number = {token: place for place, token in enumerate(strings)}
    tokens = np.fromiter(map(number.__getitem__, chain.from_iterable(flat)), dtype=np.int64)
    excerpt = np.repeat(np.arange(len(flat)), lengths)
    within = np.arange(len(tokens)) - (lengths.cumsum() - lengths)[excerpt]
    place = begins[excerpt] + within
    one, two, three = (_before(tokens, within, place, back) for back in (1, 2, 3))
    base = len(strings)
    codes = {
        "token": tokens,
        "place": np.digitize(place, PLACES),
        "after": one,
        "2 after": two,
        "3 after": three,
        "pair": np.where(one >= 0, one * base + tokens, -1),
        "triple": np.where(two >= 0, (two * base + one) * base + tokens, -1),
    }
    return Numbered(owners[excerpt], codes, strings)


def _before(
    tokens: np.ndarray, within: np.ndarray, place: np.ndarray, back: int
) -> Int[np.ndarray, " tokens"]:
    """The token so many places back; ``_START`` right before a story, -1 where it is not shown."""
    shifted = np.concatenate([np.full(back, -1), tokens])[: len(tokens)]
    return np.where(within >= back, shifted, np.where(place == back - 1, _START, -1))
