"""Greater-Than (Hanna et al. 2023, arXiv 2305.00586): two-digit years as single tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.pairs import Pair, Sides
from evaluations.tasks.tokens import Words, following
from sat_interp.data.planted.numbers import CENTURIES, GREATER_THAN, NOUNS
from sat_interp.data.stories.grammar import pick

YEAR = re.compile(r"(\d\d)(\d\d) to the year \1$")
FIRST, LAST = 2, 98  # years within a century that an answer may be; 01 is the corrupted year


def greater_than(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "The war lasted from the year 1732 to the year 17" -> "41", not "23".

    Right and wrong are equally far from the year in the prompt. Corrupted: it becomes 01, after
    which both are possible. One year of either side is drawn, as for any other task; ``sides`` has
    all of them.
    """
    rng = random.Random(f"greater-than/{seed}")
    while True:
        noun, century = pick(rng, NOUNS), pick(rng, CENTURIES)
        year = pick(rng, range(FIRST + 1, LAST))
        far = pick(rng, range(1, min(year - FIRST, LAST - year) + 1))
        clean, corrupted = (
            GREATER_THAN.format(noun=noun, begun=f"{century}{begun:02d}", century=century)
            for begun in (year, 1)
        )
        yield Pair(clean, corrupted, f"{year + far:02d}", f"{year - far:02d}")


def sides(tokenizer: PreTrainedTokenizerFast) -> Sides:
    """Return what gives a prompt its right and wrong years: all later ones, and all others.

    The paper's *probability difference* is the sum of p over the years y above the prompt's year
    minus the sum over the others, 00 to 99 (Hanna et al. 2023, section 2). Years that are not one
    token after the century are left out.
    """

    @cache
    def years(century: str) -> dict[int, int]:
        found = {
            year: following(tokenizer, f"the year {century}", f"{year:02d}") for year in range(100)
        }
        return {year: token for year, token in found.items() if token is not None}

    def of(pair: Pair) -> tuple[list[int], list[int]]:
        match = YEAR.search(pair.clean)
        if match is None:
            return [], []
        begun, tokens = int(match[2]), years(match[1])
        later = [token for year, token in tokens.items() if year > begun]
        return later, [token for year, token in tokens.items() if year <= begun]

    return of
