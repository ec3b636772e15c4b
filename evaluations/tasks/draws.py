"""Seeded draws, the same in every version of Python."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import TypeVar

from sat_interp.data.stories.grammar import pick

T = TypeVar("T")


def distinct(rng: random.Random, pool: Sequence[T], size: int, but: Collection[T] = ()) -> list[T]:
    """Return ``size`` different entries of the pool, none of them in ``but``."""
    drawn: list[T] = []
    while len(drawn) < size:
        choice = pick(rng, pool)
        if choice not in drawn and choice not in but:
            drawn.append(choice)
    return drawn
