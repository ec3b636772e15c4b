"""Datasets of the Hugging Face hub, read from the memory map that ``datasets`` keeps."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError, suggest
from sat_interp.data.base import DataSource, SourceKind, sha256
from sat_interp.data.readers import encodable, field_names, fields_named

TINYSTORIES = "roneneldan/TinyStories"
DEFAULT_COLUMN = "text"
# In this order: many datasets call their held-out split "test".
VALIDATION_SPLITS = ("validation", "valid", "dev", "test")


@dataclass(frozen=True)
class HubSource(DataSource):
    """A dataset of the hub by name (or a directory written by ``datasets``), never all in memory.

    Training uses its split ``train`` (or the only one it has), validation its ``validation``,
    ``valid``, ``dev`` or ``test``, the first there is. The column is a name, or names with dots
    between them for a field inside another; a null text, or a null around it, is the empty text.
    """

    dataset: str = TINYSTORIES
    config: str | None = None
    column: str = DEFAULT_COLUMN

    @property
    def kind(self) -> SourceKind:
        """``hub``."""
        return "hub"

    @property
    def name(self) -> str:
        """``roneneldan-TinyStories``, or the last two names of a directory's path."""
        return "-".join([*Path(self.dataset).parts[-2:], *([self.config] if self.config else [])])

    def validation_part(self) -> str | None:
        """The name of the dataset's own validation split."""
        others = [name for name in VALIDATION_SPLITS if name in self._splits]
        return others[0] if others and others[0] != self._training else None

    def read_part(self, part: str) -> Iterator[str]:
        """Stream one split in batches of a thousand rows."""
        rows = self._split(part)
        chosen = [name for name in rows.column_names if self._leads_to_column(name)]
        for batch in rows.select_columns(chosen).iter(batch_size=1_000):
            for values in zip(*(batch[name] for name in chosen), strict=True):
                texts = fields_named(dict(zip(chosen, values, strict=True)), self.column)
                yield encodable(next(iter(texts), None) or "")

    def hash_part(self, part: str) -> str:
        """The fingerprint ``datasets`` gives the split, with its name and column."""
        fingerprint = str(self._split(part)._fingerprint)
        return sha256("hub", self.dataset, str(self.config), part, self.column, fingerprint)

    def _leads_to_column(self, name: str) -> bool:
        return self.column == name or self.column.startswith(f"{name}.")

    def _split(self, part: str) -> Any:
        return self._splits[self._training if part == "all" else part]

    @property
    def _training(self) -> str:
        return "train" if "train" in self._splits else next(iter(self._splits))

    @functools.cached_property
    def _splits(self) -> dict[str, Any]:
        splits = _load(self.dataset, self.config)
        if "train" not in splits and len(splits) != 1:
            raise UserError(f"{self.spec}: {suggest('split', 'train', splits)}")
        for data in splits.values():
            columns = fields_named(data.features, self.column)
            if not columns:
                known = field_names(data.features)
                raise UserError(f"{self.spec}: {suggest('column', self.column, known)}")
            if len(columns) > 1:
                raise UserError(
                    f"{self.spec} has {len(columns)} columns {self.column!r}: rename one of them"
                )
            if getattr(columns[0], "dtype", "") not in ("string", "large_string"):
                raise UserError(f"{self.spec}: column {self.column!r} does not hold text")
        return splits


def is_saved_dataset(directory: Path) -> bool:
    """Whether ``datasets`` wrote this directory with ``save_to_disk``."""
    return any((directory / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _load(name: str, config: str | None) -> dict[str, Any]:
    import datasets  # here, for it takes a second to import and few runs need it

    try:
        if is_saved_dataset(Path(name)):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # offline, unknown, gated, broken: no common base class
        raise UserError(_cannot_load(name, config, error)) from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _cannot_load(name: str, config: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if "onfig" in reason and isinstance(error, ValueError):
        return f"dataset {name!r}: {reason} (write name@config:column)"
    near = difflib.get_close_matches(name, ("demo", "tinystories"), n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    asked = name if config is None else f"{name}@{config}"
    return (
        f"dataset {asked!r} is not a local file and cannot be loaded from the Hugging Face hub"
        f" (offline, or no such name):{hint} 'demo' needs no network; {reason}"
    )
