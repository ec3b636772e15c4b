"""Greater-Than (Hanna et al. 2023, arXiv 2305.00586): two-digit years as single tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator

from evaluations.tasks.pairs import Pair
from evaluations.tasks.tokens import Words
from sat_interp.data.stories.grammar import pick

_NOUNS = """
war trip journey drought strike project reign voyage festival famine search friendship dispute
marriage expedition rebellion struggle contest campaign peace
"""
NOUNS = tuple(_NOUNS.split())
CENTURIES = range(11, 18)
FIRST, LAST = 2, 98  # years within a century that an answer may be; 01 is the corrupted year


def greater_than(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "The war lasted from the year 1732 to the year 17" -> "41", not "23".

    Right and wrong are equally far from the year in the prompt. Corrupted: it becomes 01, after
    which both are possible. (The paper sums the probabilities of all years on either side; here one
    year of each is drawn, as for any other task.)
    """
    rng = random.Random(f"greater-than/{seed}")
    while True:
        noun, century = pick(rng, NOUNS), pick(rng, CENTURIES)
        year = pick(rng, range(FIRST + 1, LAST))
        far = pick(rng, range(1, min(year - FIRST, LAST - year) + 1))
        clean, corrupted = (
            f"The {noun} lasted from the year {century}{begun:02d} to the year {century}"
            for begun in (year, 1)
        )
        yield Pair(clean, corrupted, f"{year + far:02d}", f"{year - far:02d}")
