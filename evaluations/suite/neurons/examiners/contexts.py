"""Contexts of tokens, from which ``lookup`` explains units.

A context is the token itself, its position in the story, one of the three tokens before it, or the
token together with the one or two tokens before it. Contexts are encoded as numbers, so that those
of many units are counted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from jaxtyping import Int

KINDS = ("token", "place", "after", "2 after", "3 after", "pair", "triple")
"""Kinds of contexts, from the least specific to the most specific."""
PLACES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Ends of ranges of positions in the story; the first four positions are ranges of their own."""
_SPAN = {"pair": 2, "triple": 3}
_START = 0


@dataclass(frozen=True)
class Occurrences:
    """All contexts of one kind of all units, and the tokens in them.

    Attributes:
        units, codes: unit and code of each context.
        counts: number of tokens in each context.
        tokens: tokens that have a context of this kind.
        which: index of the context of each of these tokens.
    """

    units: Int[np.ndarray, " contexts"]
    codes: Int[np.ndarray, " contexts"]
    counts: Int[np.ndarray, " contexts"]
    tokens: Int[np.ndarray, " some"]
    which: Int[np.ndarray, " some"]


@dataclass(frozen=True)
class EncodedExcerpts:
    """Excerpts of several units, concatenated and encoded as numbers.

    Attributes:
        unit: unit of each token.
        codes: context of each token by kind; -1 if it has none.
        strings: tokens by number; the first, empty, stands for the start of a story.
    """

    unit: Int[np.ndarray, " tokens"]
    codes: dict[str, Int[np.ndarray, " tokens"]]
    strings: tuple[str, ...]

    def span(self, kind: str) -> int:
        """Return the number of possible codes of a kind."""
        return len(PLACES) + 1 if kind == "place" else int(len(self.strings) ** _SPAN.get(kind, 1))

    def keys(self, kind: str) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        """Return the tokens with a context of this kind, and a key of unit and context for each."""
        tokens = np.flatnonzero(self.codes[kind] >= 0)
        return tokens, self.unit[tokens] * self.span(kind) + self.codes[kind][tokens]

    @cached_property
    def occurrences(self) -> dict[str, Occurrences]:
        """All contexts by kind."""
        occurrences = {}
        for kind in KINDS:
            tokens, keys = self.keys(kind)
            unique, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
            span = self.span(kind)
            units, codes = unique // span, unique % span
            occurrences[kind] = Occurrences(units, codes, counts, tokens, which)
        return occurrences

    def names(self, kind: str, codes: Int[np.ndarray, " some"]) -> list[tuple[str, ...]]:
        """Return contexts as strings, the earliest token first; positions as numbers of ranges."""
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
        """Return the code of a context (inverse of ``names``); None if a token does not occur."""
        if kind == "place":
            return int(names[0])
        code = 0
        for token in names:
            number = self._numbers.get(token)
            if number is None:
                return None
            code = code * len(self.strings) + number
        return code


def encode_excerpts(
    excerpts: Sequence[Sequence[tuple[str, ...]]], starts: Sequence[Sequence[int]]
) -> EncodedExcerpts:
    """Encode the excerpts of several units.

    Args:
        starts: position of each excerpt's first token in its story.
    """
    flat = [excerpt for unit in excerpts for excerpt in unit]
    begins = np.fromiter(chain.from_iterable(starts), dtype=np.int64)
    lengths = np.fromiter(map(len, flat), dtype=np.int64, count=len(flat))
    owners = np.repeat(np.arange(len(excerpts)), [len(unit) for unit in excerpts])
    strings = ("", *dict.fromkeys(token for token in chain.from_iterable(flat) if token))
    number = {token: place for place, token in enumerate(strings)}
    tokens = np.fromiter(map(number.__getitem__, chain.from_iterable(flat)), dtype=np.int64)
    excerpt = np.repeat(np.arange(len(flat)), lengths)
    within = np.arange(len(tokens)) - (lengths.cumsum() - lengths)[excerpt]
    place = begins[excerpt] + within
    first, second, third = (_before(tokens, within, place, back) for back in (1, 2, 3))
    base = len(strings)
    codes = {
        "token": tokens,
        "place": np.digitize(place, PLACES),
        "after": first,
        "2 after": second,
        "3 after": third,
        "pair": np.where(first >= 0, first * base + tokens, -1),
        "triple": np.where(second >= 0, (second * base + first) * base + tokens, -1),
    }
    return EncodedExcerpts(owners[excerpt], codes, strings)


def _before(
    tokens: np.ndarray, within: np.ndarray, place: np.ndarray, back: int
) -> Int[np.ndarray, " tokens"]:
    """Return the token some positions back; ``_START`` before the story, -1 if it is not shown."""
    shifted = np.concatenate([np.full(back, -1), tokens])[: len(tokens)]
    return np.where(within >= back, shifted, np.where(place == back - 1, _START, -1))
