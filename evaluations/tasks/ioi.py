"""Indirect-object identification (Wang et al. 2023, arXiv 2211.00593, section 2), two versions.

"Then, Tim and Mia went to the park. Mia gave a ball to" -> " Tim", not " Mia". Corrupted: the three
names become three other, distinct names, so that no name is repeated.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from evaluations.tasks.pairs import Pair
from evaluations.tasks.tokens import Words, distinct
from sat_interp.data.stories import IOI_FRAMES, NAMES_F, NAMES_M, IOIPrompt, Slots, fill_frame
from sat_interp.data.stories import ioi_prompts as built_in_prompts
from sat_interp.data.stories.grammar import pick
from sat_interp.data.stories.lexicon import Word


def _words(*words: str) -> tuple[Word, ...]:
    return tuple(map(Word, words))


_FURTHER_NAMES = """
Sue Beth Nina Katie Laura Rose Helen Grace Kelly Ann
Alex Steve Johnny Mark Ryan Roy Rick Eddie Jason Kevin
"""
NAMES = (*NAMES_F, *NAMES_M, *_FURTHER_NAMES.split())
"""A hundred names, all frequent in TinyStories: the eighty of the built-in corpus, and others."""
PLACES = _words("park", "beach", "zoo", "farm", "store", "school", "garden", "library")
OBJECTS = _words("ball", "doll", "book", "hat", "cookie", "flower", "toy", "balloon")


def ioi(words: Words, seed: int) -> Iterator[Pair]:
    """Yield the built-in corpus' prompts, with pairs of names held out of its training split."""
    names = words.keep("names", (*NAMES_F, *NAMES_M), least=5)
    rng = random.Random(f"ioi/corrupted/{seed}")
    for prompt in _built_in(seed):
        yield _pair(prompt, names, rng)


def ioi_tinystories(words: Words, seed: int) -> Iterator[Pair]:
    """Yield seven frames, each as often ABBA as BABA, with 8 places, 8 objects and 100 names."""
    names = words.keep("names", NAMES, least=5)
    rng = random.Random(f"ioi-tinystories/{seed}")
    index = 0
    while True:
        first, second = distinct(rng, names, 2)
        frame = IOI_FRAMES[index % len(IOI_FRAMES)]
        giver = (first, second)[index // len(IOI_FRAMES) % 2]
        slots = Slots(rng)
        slots.update(place=pick(rng, PLACES), gift=pick(rng, OBJECTS))
        text = fill_frame(frame, slots, first, second, giver, "Then,")
        io = second if giver == first else first
        yield _pair(IOIPrompt(text, io, giver), names, rng)
        index += 1


def _built_in(seed: int) -> Iterator[IOIPrompt]:
    """Yield all prompts of the corpus; the first n do not depend on how many are drawn."""
    done, size = 0, 128
    while True:
        yield from built_in_prompts(size, seed)[done:]
        done, size = size, 2 * size


def _pair(prompt: IOIPrompt, names: Sequence[str], rng: random.Random) -> Pair:
    fresh = iter(distinct(rng, names, 3, but=(prompt.io, prompt.s)))
    corrupted = re.sub(rf"\b({prompt.io}|{prompt.s})\b", lambda _: next(fresh), prompt.text)
    return Pair(prompt.text, corrupted, f" {prompt.io}", f" {prompt.s}")
