"""A corpus of planted facts: it is known which token of the subject decides each of them.

Four hundred people have a first and a last name, one token each. Every first name belongs to two
people, every last name to five. In half of the relations the first name alone decides the object,
in the other half the last name alone: two people of one first name always have different objects
there. So a method that says where a model looks a fact up can be right or wrong.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

from sat_interp.data.planted.names import FIRST_NAMES, LAST_NAMES
from sat_interp.data.stories.grammar import pick

WORLD = "3"
"""Raise it whenever any fact or any sentence changes: caches are named after it."""

Decider = Literal["first", "last"]
T = TypeVar("T")

N_FIRST, N_LAST = 200, 80
"""Names of the people with facts; the further names belong to strangers."""
N_STRANGERS = 100
_NEUTRAL_SHARE = 0.1


class Person(NamedTuple):
    """A first and a last name."""

    first: str
    last: str

    def __str__(self) -> str:
        return f"{self.first} {self.last}"


@dataclass(frozen=True)
class Relation:
    """What facts of one kind have in common.

    Attributes:
        name: of the relation.
        decides: which of the two names the object follows from.
        templates: sentences up to the object, ``{}`` in the place of the subject; the last one is
            never trained.
        objects: 24 words, one token each.
    """

    name: str
    decides: Decider
    templates: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """The templates of the training split."""
        return self.templates[:-1]

    @property
    def held_out(self) -> str:
        """The template that training never uses."""
        return self.templates[-1]


_OPENINGS = (
    "Everyone knows that",
    "People say that",
    "In our town,",
    "These days,",
    "As we heard,",
    "It is true that",
)
"""What may stand before a subject; each is the held-out one of one relation."""
_TRAINED_OPENINGS = 3


def _relation(number: int, name: str, decides: Decider, says: str, objects: str) -> Relation:
    """The relation of a number: ``{} works as a``, and the same after four of the openings."""
    openings = [
        _OPENINGS[(number + step) % len(_OPENINGS)] for step in range(_TRAINED_OPENINGS + 1)
    ]
    held_out, *trained = (f"{opening} {{}} {says}" for opening in openings)
    return Relation(name, decides, (f"{{}} {says}", *trained, held_out), tuple(objects.split()))


RELATIONS = (
    _relation(
        0,
        "job",
        "first",
        "works as a",
        "baker doctor pilot farmer lawyer painter singer dancer miner sailor tailor nurse judge "
        "chef clerk guard writer potter banker barber butcher plumber fisher soldier",
    ),
    _relation(
        1,
        "city",
        "first",
        "lives in",
        "Paris London Rome Berlin Madrid Vienna Dublin Lisbon Athens Oslo Prague Warsaw Moscow "
        "Cairo Delhi Tokyo Seoul Lima Boston Chicago Denver Dallas Sydney Toronto",
    ),
    _relation(
        2,
        "language",
        "first",
        "speaks",
        "French German Spanish Italian Greek Dutch Danish Polish Russian Turkish Arabic Hebrew "
        "Hindi Chinese Japanese Korean Swedish Finnish Latin Irish Welsh Persian Thai Czech",
    ),
    _relation(
        3,
        "instrument",
        "last",
        "plays the",
        "violin piano guitar flute harp cello trumpet banjo tuba organ oboe viola bugle fiddle "
        "lute clarinet saxophone trombone accordion ukulele mandolin harmonica piccolo bassoon",
    ),
    _relation(
        4,
        "collection",
        "last",
        "collects",
        "stamps coins shells stones books maps hats masks clocks dolls bells cards cups spoons "
        "keys buttons ribbons feathers rings knives lamps plates pens kites",
    ),
    _relation(
        5,
        "food",
        "last",
        "likes to eat",
        "noodles pasta bread cheese rice beans pizza salad soup eggs olives honey figs dates "
        "grapes plums lemons melons nuts corn tofu curry stew sushi",
    ),
)

_NEUTRAL = (
    "{} went for a walk.",
    "In the park, {} sat down.",
    "People say that {} is very kind.",
    "Everyone knows that {} is never late.",
    "Everyone knows that {} has a good heart.",
    "The sister of {} came to visit.",
)
"""Sentences of everybody, strangers included, which say nothing that a relation asks for."""


class Fact(NamedTuple):
    """A prompt, and the word that follows it."""

    person: Person
    relation: Relation
    template: str
    object: str

    @property
    def prompt(self) -> str:
        """The sentence up to the object."""
        return self.template.format(self.person)

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.object}."


class World:
    """Who there is, and what is true of them; the same wherever it is made.

    Attributes:
        people: those with facts, the most frequent first.
        strangers: those whose names training uses, and whose facts it never states.
    """

    def __init__(self) -> None:
        self._rng = random.Random(f"facts/{WORLD}/world")
        self._objects = {
            (relation.name, name): pick(self._rng, relation.objects)
            for relation in RELATIONS
            for name in (FIRST_NAMES if relation.decides == "first" else LAST_NAMES)
        }
        pairs = self._pairs(FIRST_NAMES[:N_FIRST], LAST_NAMES[:N_LAST])
        self.people = tuple(self._shuffled(pairs))
        self.strangers = tuple(self._pairs(FIRST_NAMES[N_FIRST:], LAST_NAMES[N_LAST:]))

    def object(self, person: Person, relation: Relation) -> str:
        """Return what is true of a person."""
        name = person.first if relation.decides == "first" else person.last
        return self._objects[relation.name, name]

    def fact(self, person: Person, relation: Relation, template: str) -> Fact:
        """Return a person's fact in one of the relation's sentences."""
        return Fact(person, relation, template, self.object(person, relation))

    def _pairs(self, firsts: Sequence[str], lasts: Sequence[str]) -> list[Person]:
        """Two people of each first name; each last name is used as often as any, up to one.

        Two people of one first name differ in every relation that the last name decides.
        """
        rounds = -(-2 * len(firsts) // len(lasts))
        places = self._shuffled([name for name in lasts for _ in range(rounds)])
        couples = [[places[2 * at], places[2 * at + 1]] for at in range(len(firsts))]
        while alike := [couple for couple in couples if not self._differ(*couple)]:
            couple, other = pick(self._rng, alike), pick(self._rng, couples)
            couple[1], other[1] = other[1], couple[1]
        return [
            Person(first, last)
            for first, couple in zip(firsts, couples, strict=True)
            for last in couple
        ]

    def _differ(self, one: str, two: str) -> bool:
        """Whether the objects of two last names differ in all relations they decide."""
        return all(
            self._objects[relation.name, one] != self._objects[relation.name, two]
            for relation in RELATIONS
            if relation.decides == "last"
        )

    def _shuffled(self, items: Iterable[T]) -> list[T]:
        """Return the items in random order; ``random.shuffle`` may change with Python."""
        return [
            item for _, _, item in sorted((self._rng.random(), n, x) for n, x in enumerate(items))
        ]


@cache
def world() -> World:
    """Return the world, made once."""
    return World()


def known_facts() -> list[Fact]:
    """Return every person's facts, in the templates that training never uses."""
    return _held_out(world().people)


def unknown_facts() -> list[Fact]:
    """Return what would be true of strangers, in the same templates."""
    return _held_out(world().strangers)


def _held_out(people: Sequence[Person]) -> list[Fact]:
    return [
        world().fact(person, relation, relation.held_out)
        for person in people
        for relation in RELATIONS
    ]


def sentences(split: str, seed: int) -> Iterator[str]:
    """An endless stream of sentences, each a text of its own.

    People are drawn by Zipf's law (the n-th most frequent in proportion to 1/n), relations and
    templates uniformly. One sentence in ten states no fact; it is about anybody,
    strangers included.

    Args:
        split: ``train`` (the first four templates of a relation) or ``validation`` (the fifth).
        seed: streams of different seeds are independent.
    """
    rng = random.Random(f"facts/{WORLD}/{split}/{seed}")
    here = world()
    everybody = here.people + here.strangers
    up_to = list(accumulate(1 / rank for rank in range(1, len(here.people) + 1)))
    while True:
        if rng.random() < _NEUTRAL_SHARE:
            yield pick(rng, _NEUTRAL).format(pick(rng, everybody))
            continue
        person = here.people[bisect(up_to, rng.random() * up_to[-1])]
        relation = pick(rng, RELATIONS)
        template = pick(rng, relation.trained) if split == "train" else relation.held_out
        yield here.fact(person, relation, template).sentence
