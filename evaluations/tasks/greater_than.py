"""Greater-Than (Hanna et al. 2023, arXiv 2305.00586), with years as one token or as digits."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.pairs import Pair, Sides
from evaluations.tasks.tokens import Words, following
from sat_interp.data.planted.numbers import CENTURIES, GREATER_THAN, NOUNS
from sat_interp.data.stories.grammar import pick

YEAR = re.compile(r"(\d\d)(\d\d) to the year \1$")
FIRST, LAST = 2, 98  # years within a century that an answer may be; 01 is the corrupted year
DECADES = range(1, 10)  # first digits that an answer may be


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
        clean, corrupted = _prompts(noun, century, year)
        yield Pair(clean, corrupted, f"{year + far:02d}", f"{year - far:02d}")


def greater_than_digit(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "The war lasted from the year 1732 to the year 17" -> "5", not "1".

    Greater-Than for tokenizers that split numbers into digits: the answer is the first of the two
    digits. After a larger digit than that of the prompt's year (here 3) the year is a later one
    whatever follows, after a smaller one an earlier one. The same digit is neither right nor wrong.
    """
    rng = random.Random(f"greater-than-digit/{seed}")
    while True:
        noun, century = pick(rng, NOUNS), pick(rng, CENTURIES)
        decade, year = pick(rng, DECADES[1:-1]), pick(rng, range(10))
        far = pick(rng, range(1, min(decade - DECADES[0], DECADES[-1] - decade) + 1))
        clean, corrupted = _prompts(noun, century, 10 * decade + year)
        yield Pair(clean, corrupted, f"{decade + far}", f"{decade - far}")


def _prompts(noun: str, century: int, year: int) -> list[str]:
    """Return the sentence with the year, and with the year 01."""
    return [
        GREATER_THAN.format(noun=noun, begun=f"{century}{begun:02d}", century=century)
        for begun in (year, 1)
    ]


def sides(tokenizer: PreTrainedTokenizerFast) -> Sides:
    """Return what gives a prompt its right and wrong years: all later ones, and all others.

    The paper's *probability difference* is the sum of p over the years y above the prompt's year
    minus the sum over the others, 00 to 99 (Hanna et al. 2023, section 2). Years that are not one
    token after the century are left out.
    """
    years = [f"{year:02d}" for year in range(100)]
    return _sides(tokenizer, years, lambda year, begun: 1 if year > begun else -1)


def digit_sides(tokenizer: PreTrainedTokenizerFast) -> Sides:
    """Return what gives a prompt its right and wrong digits: all larger and all smaller ones.

    The probability difference is the sum of p over the digits above that of the prompt's decade
    minus the sum over those below it. The digit itself is in neither sum.
    """
    digits = [str(digit) for digit in range(10)]
    return _sides(tokenizer, digits, lambda digit, begun: digit - begun // 10)


def _sides(
    tokenizer: PreTrainedTokenizerFast,
    answers: Sequence[str],
    compared: Callable[[int, int], int],
) -> Sides:
    """Return what gives a prompt its right and wrong answers.

    Args:
        tokenizer: of the model.
        answers: numbers that may follow the century; those that are several tokens are left out.
        compared: from an answer and the prompt's year: above 0 if it is right, below 0 if wrong.
    """

    @cache
    def tokens(century: str) -> dict[int, int]:
        found = {int(one): following(tokenizer, f"the year {century}", one) for one in answers}
        return {number: token for number, token in found.items() if token is not None}

    def of(pair: Pair) -> tuple[list[int], list[int]]:
        match = YEAR.search(pair.clean)
        if match is None:
            return [], []
        begun, after = int(match[2]), tokens(match[1])
        right = [token for number, token in after.items() if compared(number, begun) > 0]
        return right, [token for number, token in after.items() if compared(number, begun) < 0]

    return of
