"""The engine of the built-in corpus: an endless, seeded stream of short stories.

A story is a plan (an opening, arrivals, scenes and acts of giving, an ending) whose templates are
filled one after another from one memory of slots: what was drawn once stays until the plan
forgets it, so a ball that was red stays red.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import TypeVar

from sat_interp._util.errors import UserError, suggest
from sat_interp.data.stories.lexicon import NAMES, POOLS
from sat_interp.data.stories.scenes import (
    ARRIVALS,
    BELONGINGS,
    ENDINGS,
    EXCHANGES,
    IOI_FRAMES,
    OPENINGS,
    OTHER_FRAMES,
    SCENES,
    Frame,
)

GRAMMAR_VERSION = "3"  # raise it whenever any story changes: caches are named after it
SPLITS = ("train", "validation")
MIN_WORDS, MAX_WORDS = 40, 150

_VALIDATION_SHARE = 5  # one text in five is a validation story, whatever the seed
_HELD_OUT_SHARE = 8  # one pair of names in eight is never giver and receiver in training
_FRAMES = IOI_FRAMES * 2 + OTHER_FRAMES  # two in three are of the task's own kind
_KEPT = frozenset({"a", "toy", "color", "place"})
_ORDERED_PAIRS = {known: tuple(permutations(range(known), 2)) for known in (2, 3)}

T = TypeVar("T")


def pick(rng: random.Random, pool: Sequence[T]) -> T:
    """A uniform choice; faster than ``rng.choice`` and the same in every Python version."""
    return pool[int(rng.random() * len(pool))]


def _stable_hash(text: str) -> int:
    """Python salts ``hash()`` per process; this is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


HELD_OUT_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset((str(item), str(two)))
    for item, two in combinations(NAMES, 2)
    if _stable_hash("|".join(sorted((item, two)))) % _HELD_OUT_SHARE == 0
)


def is_held_out(item: str, two: str) -> bool:
    """Whether the training split never lets one of these two give something to the other."""
    return frozenset((item, two)) in HELD_OUT_PAIRS


class Slots(dict[str, str]):
    """What a story has settled so far; an empty slot fills itself from its pool."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        kind = slot.rstrip("23")
        taken = (self.get(kind), self.get(f"{kind}2"))
        word = pick(self.rng, POOLS[kind])
        while word in taken:
            word = pick(self.rng, POOLS[kind])
        self[slot] = word
        return word

    def forget(self, *also: str) -> None:
        """Clear what belongs to one scene only, and the slots named."""
        for slot in [slot for slot in self if slot not in _KEPT or slot in also]:
            del self[slot]


def fill_frame(frame: Frame, slots: Slots, first: str, second: str, giver: str, when: str) -> str:
    """The text of a giving frame up to its last "to"; ``giver`` is ``first`` or ``second``."""
    receiver = second if giver == first else first
    slots.update(first=first, second=second, giver=giver, io=receiver, when=when)
    return frame.text.format_map(slots)


class _Story:
    """One story in the making."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.any_pair = split != "train"
        self.slots = Slots(rng)
        # Mostly two: with three in every other story, a small model was still at chance on indirect
        # objects after 2.9 M tokens.
        self.cast = self._draw_cast(2 if rng.random() < 0.7 else 3)
        self.slots["a"] = self.cast[0]
        self.known = 1  # how many of the cast have come in
        self.used: set[object] = set()  # templates and openers, so that no story says a thing twice

    def _may_give(self, item: str, two: str) -> bool:
        return self.any_pair or not is_held_out(item, two)

    def _draw_cast(self, size: int) -> list[str]:
        """Distinct characters, of whom at least the first two may give things to each other."""
        cast: list[str] = []
        while len(cast) < size:
            name = pick(self.rng, NAMES)
            if name not in cast and (len(cast) != 1 or self._may_give(cast[0], name)):
                cast.append(name)
        return cast

    def text(self) -> str:
        """The whole story."""
        rng = self.rng
        parts = self._beginning()
        steps: list[Callable[[], str]] = [self._giving, self._exchange, self._scene]
        steps += [pick(rng, (self._giving, self._giving, self._exchange)) for _ in "12"]
        steps.sort(key=lambda _: rng.random())  # shuffle() may change with Python
        if rng.random() < 0.3:
            steps.pop()
        if self.known < len(self.cast):
            steps.insert(int(rng.random() * 3), self._arrival)
        parts += [step() for step in steps]
        parts.append(self._ending())
        return " ".join(parts)

    def _beginning(self) -> list[str]:
        if self.rng.random() < 0.35:
            self.known = 2
            return [self._giving(POOLS["start"]), self._fill(BELONGINGS)]
        return [self._fill(OPENINGS), self._arrival()]

    def _fresh(self, pool: Sequence[T]) -> T:
        """A choice that this story has not made before."""
        choice = pick(self.rng, pool)
        while choice in self.used:
            choice = pick(self.rng, pool)
        self.used.add(choice)
        return choice

    def _fill(self, templates: Sequence[str]) -> str:
        return self._fresh(templates).format_map(self.slots)

    def _pair(self) -> tuple[str, str]:
        """Two of those who have come in; in training no held-out pair, be they giving or not."""
        while True:
            first, second = pick(self.rng, _ORDERED_PAIRS[self.known])
            pair = self.cast[first], self.cast[second]
            if self._may_give(*pair):  # as the first two of the cast always may
                return pair

    def _arrival(self) -> str:
        self.slots.forget()
        self.slots["new"] = self.cast[self.known]
        self.known += 1
        return self._fill(ARRIVALS)

    def _giving(self, openers: Sequence[str] = POOLS["when"]) -> str:
        """Two characters go somewhere and one turns to the other (see ``scenes.Frame``)."""
        slots = self.slots
        slots.forget("place")
        first, second = self._pair()
        giver = first if self.rng.random() < 0.5 else second
        frame = self._fresh(_FRAMES)
        begun = fill_frame(frame, slots, first, second, giver, self._fresh(openers))
        return f"{begun} {slots['io']}{self._fill(frame.endings)}"

    def _scene(self, templates: Sequence[str] = SCENES) -> str:
        self.slots.forget()
        self.slots["x"], self.slots["y"] = self._pair()
        return self._fill(templates)

    def _exchange(self) -> str:
        return self._scene(EXCHANGES)

    def _ending(self) -> str:
        slots = self.slots
        slots.forget()
        slots["x"], slots["y"] = self.cast[0], self.cast[1]
        slots["other"] = pick(self.rng, self.cast[1 : self.known])
        template = self._fresh(ENDINGS)
        while "{place}" in template and "place" not in slots:
            template = self._fresh(ENDINGS)
        return template.format_map(slots)


def stories(split: str = "train", seed: int = 0) -> Iterator[str]:
    """An endless stream of stories, the same for the same arguments on any machine.

    Args:
        split: "train" or "validation". The text itself decides which of the two it may be in, so
            no story is in both, whatever their seeds; and in "train" no pair of names that
            ``is_held_out`` is ever giver and receiver.
        seed: streams of different seeds are independent.

    Raises:
        UserError: for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(suggest("split", split, SPLITS))
    return _stream(split, seed)


def _stream(split: str, seed: int) -> Iterator[str]:
    # A string seed goes through SHA-512, not through the salted hash().
    rng = random.Random(f"stories/{GRAMMAR_VERSION}/{split}/{seed}")
    validation = split == "validation"
    while True:
        text = _Story(rng, split).text()
        if (zlib.crc32(text.encode()) % _VALIDATION_SHARE == 0) != validation:
            continue
        if MIN_WORDS <= text.count(" ") + 1 <= MAX_WORDS:
            yield text
