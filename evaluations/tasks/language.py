"""Grammar tasks: the gender of a pronoun, a quote to close, a verb that agrees.

The sentences are those of the built-in corpus' own grammar (``sat_interp.data.stories.scenes``) or
near them, and ordinary in TinyStories. In each task the corrupted prompt asks for the wrong answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from evaluations.tasks.pairs import Pair
from evaluations.tasks.tokens import Words, distinct
from sat_interp.data.stories import Slots
from sat_interp.data.stories.grammar import pick
from sat_interp.data.stories.lexicon import BOYS, GIRLS, NAMES, POOLS

# The pronoun refers to {x}.
_PRONOUNS = (
    ("{start} {x} was {sorrow}, so", ("he", "she")),
    ("{start} {x} wanted to {skill} like {y}, but", ("he", "she")),
    ("{start} {x} met {y} at the {place}. {x} was {glad}, so", ("he", "she")),
    ("{start} {x} lost", ("his", "her")),
    ("{start} {x} fell down and hurt", ("his", "her")),
    ("It was {weather.a} day. {x} could not find", ("his", "her")),
)

# A question in quotes, which can only end in ?", and a sentence of as many tokens without quotes. A
# statement in quotes is not used: another sentence may follow it, so that "." would be correct.
_BEFORE = (
    "{start} {x} saw {y}.",
    "It was {weather.a} day. {x} met {y}.",
    "{start} {x} and {y} went to the {place}.",
)
_QUOTES = (
    (
        ' {x} asked, "Do you want to play {game}',
        " {x} was happy, and they wanted to play {game}",
    ),
    (
        ' {x} asked, "Where is the {animal}',
        " {x} smiled, and then saw the {animal}",
    ),
)

# {subject} is the noun the verb agrees with, {some} "a" or "two", {between} a noun of either number
# (Linzen et al. 2016, arXiv 1611.01368, on attractors). The built-in corpus has only nouns of the
# other number there; prompts of that kind alone could be answered from the nearer noun.
_AGREEMENTS = (
    ("It was {weather.a} day. The {subject} near the {between}", "animal", ("was", "were")),
    ("It was {weather.a} day. The {subject} by the {between}", "thing", ("was", "were")),
    ("{start} {x} saw {some} {subject}. The {subject}", "animal", ("was", "were")),
    ('"I am {feeling}," said {x}. "The {subject} by the {between}', "animal", ("is", "are")),
)


def gender(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "One day, Tim was sad, so" -> " he", not " she".

    Corrupted: a name of the other gender.
    """
    girls, boys = words.keep("girls' names", GIRLS, 2), words.keep("boys' names", BOYS, 2)
    rng = random.Random(f"gender/{seed}")
    for index in count():
        template, pronouns = _PRONOUNS[index % len(_PRONOUNS)]
        is_girl = index // len(_PRONOUNS) % 2
        boy, girl = pick(rng, boys), pick(rng, girls)
        slots = Slots(rng)
        slots["y"] = distinct(rng, NAMES, 1, but=(boy, girl))[0]
        him, her = (template.format_map(_with(slots, x=name)) for name in (boy, girl))
        he, she = (f" {pronoun}" for pronoun in pronouns)
        yield Pair(her, him, she, he) if is_girl else Pair(him, her, he, she)


def quotes(words: Words, seed: int) -> Iterator[Pair]:
    """Yield 'Tim asked, "Where is the dog' -> '?"', not '.'.

    Corrupted: no quotation.
    """
    rng = random.Random(f"quotes/{seed}")
    for index in count():
        before = _BEFORE[index % len(_BEFORE)]
        quoted, plain = _QUOTES[index % len(_QUOTES)]
        slots = Slots(rng)
        slots["x"], slots["y"] = distinct(rng, NAMES, 2)
        clean, corrupted = ((before + text).format_map(slots) for text in (quoted, plain))
        yield Pair(clean, corrupted, '?"', ".")


def agreement(words: Words, seed: int) -> Iterator[Pair]:
    """Yield "The dogs near the tree" -> " were", not " was".

    Corrupted: the subject in the other number.
    """
    rng = random.Random(f"agreement/{seed}")
    for index in count():
        template, kind, (singular, plural) = _AGREEMENTS[index % len(_AGREEMENTS)]
        is_plural = index // len(_AGREEMENTS) % 2
        slots = Slots(rng)
        slots["x"] = pick(rng, NAMES)
        noun, between = pick(rng, POOLS[kind]), pick(rng, POOLS["plant"])
        slots["between"] = between.s if index // (2 * len(_AGREEMENTS)) % 2 else between
        one = template.format_map(_with(slots, subject=noun, some=noun.a.split()[0]))
        many = template.format_map(_with(slots, subject=noun.s, some="two"))
        was, were = f" {singular}", f" {plural}"
        yield Pair(many, one, were, was) if is_plural else Pair(one, many, was, were)


def _with(slots: Slots, **words: str) -> Slots:
    """Return the slots with these words added; words drawn earlier are kept."""
    slots.update(words)
    return slots
