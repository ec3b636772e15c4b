"""Base of all sources of text: two splits that never share a story."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sat_interp._util.errors import UserError, suggest

Split = Literal["train", "validation"]
SourceKind = Literal["demo", "planted", "files", "hub", "memory"]

# One story in a hundred is held out where the data has no validation split of its own.
HELD_OUT = 0.01
_BOUND = int(HELD_OUT * 2**64)
_NO_STORY = 2**64


@dataclass(frozen=True)
class DataSource:
    """Text with a train and a validation split; ``spec`` is the ``--data`` argument.

    The validation split is ``validation`` (another source) where that is given, else the data's
    own, else one story in a hundred, held out by a hash of its text: the same stories whatever
    their order, and all copies of a story on one side. Where that would be none, it is the story
    with the smallest hash. Stories of white space alone belong to training, where tokenising
    skips and counts them.
    """

    spec: str
    validation: DataSource | None = None

    @property
    def kind(self) -> SourceKind:
        """``demo``, ``planted``, ``files``, ``hub`` or ``memory``."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """A short name for directories, such as ``demo-50000`` or ``train.jsonl``."""
        raise NotImplementedError

    def texts(self, split: Split) -> Iterable[str]:
        """The stories of one split in their order; iterate as often as you like.

        Raises:
            UserError: (while iterating) the data cannot be read, or has nothing to hold out.
        """
        if split not in ("train", "validation"):
            raise UserError(suggest("split", split, ("train", "validation")))
        return _Texts(self, split)

    def content_id(self, split: Split) -> str:
        """Return the sha256 of the data behind ``texts(split)``, whatever its path."""
        if split == "validation" and self.validation is not None:
            held = self.validation
            return sha256("explicit", held.hash_part(held.validation_part() or "all"))
        part = self._whole_part(split)
        rule = part or f"{split} of all, held out {HELD_OUT}"
        return sha256(rule, self.hash_part(part or "all"))

    def validation_part(self) -> str | None:
        """The part of the data that is its own validation split; None where it has none."""
        raise NotImplementedError

    def read_part(self, part: str) -> Iterator[str]:
        """The stories of ``all`` (what is not the data's own validation) or of another part."""
        raise NotImplementedError

    def hash_part(self, part: str) -> str:
        """Return the sha256 of the data behind ``read_part(part)``."""
        raise NotImplementedError

    def _whole_part(self, split: Split) -> str | None:
        """Return the part that is the whole of ``split``; None where ``all`` must be divided."""
        own = self.validation_part()
        if split == "validation":
            return own
        return None if own is None and self.validation is None else "all"

    def _read(self, split: Split) -> Iterator[str]:
        if split == "validation" and self.validation is not None:
            held = self.validation
            return held.read_part(held.validation_part() or "all")
        part = self._whole_part(split)
        return self._divide(split) if part is None else self.read_part(part)

    def _divide(self, split: Split) -> Iterator[str]:
        bound = self._bound
        for text in self.read_part("all"):
            if (_place(text) <= bound) == (split == "validation"):
                yield text

    @functools.cached_property
    def _bound(self) -> int:
        """Stories whose place is at most this are held out: 1 % of them, and at least one."""
        smallest, largest = _NO_STORY, -1
        for text in self.read_part("all"):
            place = _place(text)
            if place != _NO_STORY:
                smallest, largest = min(smallest, place), max(largest, place)
            if smallest <= _BOUND < largest:
                return _BOUND  # reached early in any corpus of more than a few hundred stories
        if smallest == largest:
            raise UserError(
                f"{self.spec} has only one story, so none is left for validation:"
                " add stories, or name validation data"
            )
        return smallest


class _Texts:
    """An iterable that can be walked more than once, and streams each time."""

    def __init__(self, source: DataSource, split: Split) -> None:
        self._source, self._split = source, split

    def __iter__(self) -> Iterator[str]:
        return self._source._read(self._split)


def sha256(*parts: str) -> str:
    """sha256 of the parts, kept apart: ("ab", "c") and ("a", "bc") differ."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _place(text: str) -> int:
    """Map a story to a number below 2^64, evenly spread; 2^64 for a story without text."""
    story = text.strip()
    if not story:
        return _NO_STORY
    return int.from_bytes(hashlib.blake2b(story.encode(), digest_size=8).digest(), "big")
