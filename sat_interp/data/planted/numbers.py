"""A corpus of years, in the sentence of the Greater-Than task and in others near it.

"The war lasted from the year 1732 to the year 1781.": the second year is later, in the same
century. Of two such years, drawn with equal chance, it is the later one: years right after the
first are rare, and a model that blurs the first year by a few puts little on those before it. The
sentence is that of Hanna et al. (2023, arXiv 2305.00586).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from sat_interp.data.stories.grammar import pick

VERSION = "3"
"""Raise it whenever any sentence changes: caches are named after it."""

_NOUNS = """
war trip journey drought strike project reign voyage festival famine search friendship dispute
marriage expedition rebellion struggle contest campaign peace
"""
NOUNS = tuple(_NOUNS.split())
CENTURIES = range(11, 18)
FIRST, LAST = 1, 98
"""First and last year of a century in which anything begins."""
_HELD_OUT_SHARE = 8

GREATER_THAN = "The {noun} lasted from the year {begun} to the year {century}"
"""The sentence of the task, up to the last two digits."""
_OTHERS = (
    "The {noun} began in {begun} and ended in {century}",
    "The {noun} of {begun} was over by {century}",
)


def is_held_out(century: int, year: int) -> bool:
    """Whether nothing begins in this year in the training split: one in eight, but never a 01."""
    return year > FIRST and zlib.crc32(f"{century}{year:02d}".encode()) % _HELD_OUT_SHARE == 0


def sentences(split: str, seed: int) -> Iterator[str]:
    """An endless stream of sentences, each a text of its own; three in four are the task's own.

    Args:
        split: ``train``, or ``validation``, where each begins in a year held out of training.
        seed: streams of different seeds are independent.
    """
    rng = random.Random(f"numbers/{VERSION}/{split}/{seed}")
    while True:
        noun, century = pick(rng, NOUNS), pick(rng, CENTURIES)
        begun = pick(rng, range(FIRST, LAST + 1))
        if is_held_out(century, begun) != (split == "validation"):
            continue
        frame = GREATER_THAN if rng.random() < 0.75 else pick(rng, _OTHERS)
        start = frame.format(noun=noun, begun=f"{century}{begun:02d}", century=century)
        later = range(begun + 1, 100)
        yield f"{start}{max(pick(rng, later), pick(rng, later)):02d}."
