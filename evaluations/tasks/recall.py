"""Recall tasks: repeated sequences, which object of the story is meant, who replies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from evaluations.tasks.pairs import Pair
from evaluations.tasks.tokens import Words, distinct
from sat_interp.data.stories import Slots
from sat_interp.data.stories.grammar import pick
from sat_interp.data.stories.lexicon import NAMES, POOLS

SEQUENCE = 8  # words before the repetition
REPEATED = (3, 4, 5, 6)  # of them repeated before the question

_KINDS = ("toy", "gift", "thing", "animal", "food", "meal", "plant", "color", "look", "feeling")
_WORDS = tuple(sorted({str(word) for kind in _KINDS for word in POOLS[kind]}))

# {one} and {two} are the objects, each from its own pool; {hue} and {hue2} their colors, {cue} the
# color of the object asked for.
_STORIES = (
    (
        "{start} {x} had {hue.a} {one}, and {y} had {hue2.a} {two}. {x} played with the {cue}",
        ("toy", "toy"),
    ),
    (
        "{start} {x} and {y} saw {hue.a} {one} and {hue2.a} {two}. {x} wanted to draw the {cue}",
        ("animal", "thing"),
    ),
)
# The first object is named again, the second is asked for.
_OTHER = "{start} {x} saw {one.a} and {two.a}. The {one} was {look}, and the"

# {y} speaks to {x}, and {x} answers.
_GREETINGS = (
    '{start} {x} met {y}. "Hello, {x}," said {y}. "Hello, {y}," said',
    'It was {weather.a} day. "Hello, {x}," said {y}. "Hello, {y}," said',
    '{start} {x} met {y}. "Look at me, {x}!" said {y}. "Look at me, {y}!" said',
    'It was {weather.a} day. "Look at me, {x}!" said {y}. "Look at me, {y}!" said',
)


def induction(words: Words, seed: int) -> Iterator[Pair]:
    """Yield random words A B C D ... A B C -> D (Olsson et al. 2022, arXiv 2209.11895).

    The wrong answer is another word of the sequence. Corrupted: other words before the repetition,
    so that nothing is repeated.
    """
    known = words.keep("words", _WORDS, least=2 * SEQUENCE)
    rng = random.Random(f"induction/{seed}")
    for index in count():
        drawn = distinct(rng, known, 2 * SEQUENCE)
        sequence, others = drawn[:SEQUENCE], drawn[SEQUENCE:]
        asked = REPEATED[index % len(REPEATED)]
        wrong = pick(rng, sequence[asked + 1 :])
        clean, corrupted = (
            "".join(f" {word}" for word in (*first, *sequence[:asked]))
            for first in (sequence, others)
        )
        yield Pair(clean, corrupted, f" {sequence[asked]}", f" {wrong}")


def recall(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "Tim had a red ball, and Mia had a blue doll. Tim played with the red" -> " ball".

    The wrong answer is the story's other object. Corrupted: both objects become others of their
    kind.
    """
    rng = random.Random(f"object/{seed}")
    for index in count():
        slots = Slots(rng)
        slots["x"], slots["y"] = distinct(rng, NAMES, 2)
        slots["hue"], slots["hue2"] = distinct(rng, POOLS["color"], 2)
        if index % 3 < len(_STORIES):
            template, kinds = _STORIES[index % 3]
            asks_first = index // 3 % 2 == 0
            slots["cue"] = slots["hue"] if asks_first else slots["hue2"]
        else:
            template, kinds, asks_first = _OTHER, ("animal", "animal"), False
        one, fresh = distinct(rng, POOLS[kinds[0]], 2)
        two, fresh2 = distinct(rng, POOLS[kinds[1]], 2, but=(one, fresh))
        slots.update(one=one, two=two)
        clean = template.format_map(slots)
        slots.update(one=fresh, two=fresh2)
        right, wrong = (one, two) if asks_first else (two, one)
        yield Pair(clean, template.format_map(slots), f" {right}", f" {wrong}")


def reply(words: Words, seed: int) -> Iterator[Pair]:
    """Yield '"Hello, Tim," said Mia. "Hello, Mia," said' -> " Tim", not " Mia".

    Corrupted: the two names exchanged.
    """
    known = words.keep("names", NAMES, least=3)
    rng = random.Random(f"reply/{seed}")
    for index in count():
        slots = Slots(rng)
        slots["x"], slots["y"] = one, two = distinct(rng, known, 2)
        template = _GREETINGS[index % len(_GREETINGS)]
        clean = template.format_map(slots)
        slots.update(x=two, y=one)
        yield Pair(clean, template.format_map(slots), f" {one}", f" {two}")
