"""The records below a directory, each once, and the files that hold none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from evaluations.core import health
from evaluations.core.record import DamagedRecord, OddRecord, Record, read_record, record_files
from sat_interp._util.errors import UserError

DETAILS = ("sae", "neurons", "n2g")
"""Folders in which evaluations write files that are not records."""
SMALL, LONG = 16, 2000
"""Entries of a container, and letters of a text, that are kept of a record's ``extra``."""
ALWAYS = (health.KEY, "sae")
"""Entries of ``extra`` that tables read whatever their size."""
NAMED = 5
"""Records that are named one by one."""

Identity = tuple[str, str, str]
"""Distinguishes records: weights, evaluation, and a hash of all its settings."""


@dataclass(frozen=True)
class Collected:
    """The records below a directory, each once, and the files that hold none.

    Attributes:
        records: the newest of each `identity`, without the parts of ``extra`` that only figures
            read (`slim`).
        duplicates: number of older records that a newer one replaces.
        truncated: files that are not whole JSON, or cannot be read.
        foreign: JSON that is not a record, or one of another version.
        odd: records with a field of a wrong type, and the reason.
        files: the file of each record, by `identity`.
    """

    records: list[Record]
    duplicates: int = 0
    truncated: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    odd: dict[Path, str] = field(default_factory=dict)
    files: dict[Identity, Path] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """A line for each kind of file that was skipped."""
        lines = []
        for files, words in (
            (self.truncated, "truncated or unreadable"),
            (self.foreign, "not a record, or one of another version"),
        ):
            if files:
                names = ", ".join(map(_short, files[:3]))
                more = ", ..." if len(files) > 3 else ""
                lines.append(f"{len(files)} of the JSON files skipped: {words} ({names}{more})")
        lines += [f"left out: {one}" for one in self.left_out()]
        if self.duplicates:
            lines.append(f"{self.duplicates} duplicate records skipped: the newest is used")
        return lines

    def left_out(self) -> list[str]:
        """The odd records by name, each with its reason; of many, the first few."""
        lines = [f"{_short(path)}: {reason}" for path, reason in self.odd.items()]
        more = [f"{len(lines) - NAMED} more records"] if len(lines) > NAMED else []
        return [*lines[:NAMED], *more]


def collect(directory: str | Path) -> Collected:
    """Read what lies below a directory; nothing in it is fatal.

    Raises:
        UserError: there is no such directory.
    """
    if not Path(directory).is_dir():
        raise UserError(f"there is no directory {directory}: name the one sat-eval wrote to")
    problems: dict[Path, UserError] = {}
    read: list[tuple[Record, Path]] = []
    for path in record_files(directory):
        try:
            read.append((slim(read_record(path)), path))
        except UserError as error:
            problems[path] = error
    read.sort(key=lambda one: one[0].started)
    beside = {path: why for path, why in problems.items() if path.parent.name not in DETAILS}
    newest = {identity(record): record for record, _ in read}
    return Collected(
        records=list(newest.values()),
        duplicates=len(read) - len(newest),
        truncated=[path for path, why in beside.items() if isinstance(why, DamagedRecord)],
        foreign=[
            path for path, why in beside.items() if not isinstance(why, DamagedRecord | OddRecord)
        ],
        files={identity(record): path for record, path in read},
        odd={path: why.reason for path, why in beside.items() if isinstance(why, OddRecord)},
    )


def slim(record: Record) -> Record:
    """The record with only those parts of ``extra`` that tables read; others become True.

    This keeps thousands of records in memory; `record.read_record` gives the whole record.
    """
    extra = {
        name: value if name in ALWAYS or _is_small(value) else True
        for name, value in record.extra.items()
    }
    return dataclasses.replace(record, extra=extra)


def _is_small(value: object, deep: int = 2) -> bool:
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return len(inner) <= SMALL and all(_is_small(one, deep - 1) for one in inner) and deep > 0
    return not isinstance(value, str) or len(value) <= LONG


def identity(record: Record) -> Identity:
    """The key under which a newer record replaces an older one."""
    return str(record.model["weights_hash"]), record.evaluation, record.config_hash


def _short(path: Path) -> str:
    """The file and the directory it lies in, as text that can be printed."""
    return "/".join(path.parts[-2:]).encode("utf-8", "replace").decode()
