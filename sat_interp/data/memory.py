"""Text held in memory: strings, datasets, data frames' columns, sequences of token ids.

It is a :class:`DataSource` like any other, identified by its content: a list and a file with the
same stories share no name, and whatever was held out of the one is held out of the other.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sat_interp._util.errors import UserError, shown
from sat_interp.data.base import DataSource, SourceKind, Split, sha256
from sat_interp.data.corpus import TokenCorpus
from sat_interp.data.hub import DEFAULT_COLUMN, VALIDATION_SPLITS
from sat_interp.data.readers import encodable

NAME = "in memory"
"""What records name text as that was given as an object."""
LARGEST_ID = 2**31


@dataclass(frozen=True, eq=False)
class MemorySource(DataSource):
    """Stories in memory.

    Attributes:
        parts: ``all``, and ``validation`` where the data has a validation split of its own.
    """

    parts: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> SourceKind:
        """``memory``."""
        return "memory"

    @property
    def name(self) -> str:
        """``in-memory``."""
        return "in-memory"

    def validation_part(self) -> str | None:
        """``validation``, where it was given."""
        return "validation" if "validation" in self.parts else None

    def read_part(self, part: str) -> Iterator[str]:
        """Yield the stories, one at a time; a missing one is the empty text."""
        for number, story in enumerate(self.parts[part], start=1):
            yield self._story(story, number)

    def hash_part(self, part: str) -> str:
        """Return the hash of the stories' bytes, computed once."""
        if part not in self._hashes:
            digest = hashlib.sha256()
            for story in self.read_part(part):
                content = story.encode()
                digest.update(len(content).to_bytes(8, "little") + content)
            self._hashes[part] = sha256(self.kind, type(self).__name__, digest.hexdigest())
        return self._hashes[part]

    @staticmethod
    def _story(value: object, number: int) -> str:
        if _is_missing(value):
            return ""
        if not isinstance(value, str):
            raise UserError(f"text {number} must be a string, not {type(value).__name__}")
        return encodable(value)


@dataclass(frozen=True, eq=False)
class TokenSource(MemorySource):
    """Sequences of token ids, read as they stand: nothing is put before or after them.

    As a source of text each is its numbers with spaces between them, so that sequences are held out
    and hashed as stories are.
    """

    @staticmethod
    def _story(value: object, number: int) -> str:
        ids = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(ids, Sequence) or not all(map(_is_id, ids)):
            raise UserError(f"sequence {number} must be a list of token ids, not {shown(value)}")
        return " ".join(map(str, ids))

    def corpus(self, split: Split, limit: int | None = None) -> SequenceCorpus:
        """Return the sequences of a split; those without a second token are counted as empty.

        Args:
            split: ``train`` or ``validation``.
            limit: at most so many.

        Raises:
            UserError: an element is not a sequence of ids, or no sequence has two tokens.
        """
        rows = [[int(token) for token in text.split()] for text in self.texts(split)][:limit]
        kept = [row for row in rows if len(row) > 1]
        if not kept:
            raise UserError(f"no sequence for {split} has two tokens, one to predict the other")
        firsts = np.array([row[0] for row in kept], dtype=np.int64)
        start = Counter(firsts.tolist()).most_common(1)[0][0]
        offsets = np.cumsum([0, *(len(row) - 1 for row in kept)])
        meta = {
            "text": self.content_id(split),
            "n_tokens": int(offsets[-1]),
            "n_stories": len(kept),
            "n_empty": len(rows) - len(kept),
            "end_of_text": start,
        }
        tokens = np.concatenate([np.array(row[1:], dtype="<u4") for row in kept])
        no_bytes = np.zeros(len(kept), dtype=np.int64)
        return SequenceCorpus(Path(), tokens, offsets, no_bytes, meta, start, firsts)


@dataclass(frozen=True)
class SequenceCorpus(TokenCorpus):
    """Sequences of token ids as a corpus: each has a first token of its own, and no bytes.

    The last token of a sequence is in the place of the closing end-of-text token of a story.
    ``start`` is the commonest first token.
    """

    firsts: np.ndarray | None = None

    def first_tokens(self, stories: np.ndarray) -> np.ndarray:
        """Return the first token of each sequence: int64 (stories)."""
        assert self.firsts is not None
        first: np.ndarray = self.firsts[stories]
        return first

    def take(self, stories: np.ndarray) -> TokenCorpus:
        """Return some of the sequences."""
        taken = super().take(stories)
        assert isinstance(taken, SequenceCorpus)
        return replace(taken, firsts=self.first_tokens(stories))


def text_in_memory(data: object) -> MemorySource:
    """Return the source of text that was given as an object.

    Args:
        data: strings; sequences of token ids, or a tensor of them; a ``datasets.Dataset``, a
            ``DatasetDict`` (or any mapping of splits); a pandas ``DataFrame`` or column. Of a table
            its column ``text``, else its only column of strings.

    Raises:
        UserError: it is something else, or a table without such a column.
    """
    if isinstance(data, Mapping):
        return _splits({str(name): _stories(split) for name, split in data.items()})
    return _splits({"train": _stories(data)})


def _splits(splits: dict[str, Iterable[Any]]) -> MemorySource:
    """Return the source of some splits: those of training and of validation, by their names."""
    if "train" not in splits and len(splits) != 1:
        raise UserError(f"text needs a split 'train', not {', '.join(splits) or 'none'}")
    training = "train" if "train" in splits else next(iter(splits))
    held = next((name for name in VALIDATION_SPLITS if name in splits and name != training), None)
    parts = {"all": splits[training]}
    if held is not None:
        parts["validation"] = splits[held]
    every = (story for part in parts.values() for story in part)
    first = next((story for story in every if not _is_missing(story)), None)
    kind = MemorySource if first is None or isinstance(first, str) else TokenSource
    return kind(NAME, parts=parts)


def _stories(data: object) -> Iterable[Any]:
    """Return what can be iterated over as often as one likes, a story or sequence at a time."""
    names = getattr(data, "column_names", getattr(data, "columns", None))
    if names is not None:
        table: Any = data
        return _stories(table[_text_column(table, [str(name) for name in names])])
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise UserError(
            "text is a name, strings, a dataset or sequences of token ids, not "
            f"{type(data).__name__}: {shown(data)}"
        )
    return data if isinstance(data, Sequence) or hasattr(data, "__len__") else list(data)


def _text_column(table: Any, names: list[str]) -> str:
    if DEFAULT_COLUMN in names or len(names) == 1:
        return DEFAULT_COLUMN if DEFAULT_COLUMN in names else names[0]
    strings = [name for name in names if isinstance(next(iter(table[name]), None), str)]
    if len(strings) != 1:
        raise UserError(
            f"the table has no column 'text' and {len(strings)} columns of strings among "
            f"{', '.join(names) or 'none'}: give one column"
        )
    return strings[0]


def _is_missing(value: object) -> bool:
    """Whether a story is missing: None, or pandas' NaN or NA."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ == "NAType"


def _is_id(token: object) -> bool:
    if not isinstance(token, int | np.integer) or isinstance(token, bool):
        return False
    return 0 <= int(token) < LARGEST_ID
