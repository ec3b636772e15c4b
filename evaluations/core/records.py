"""Collection of the records below a directory, without duplicates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from evaluations.core import health
from evaluations.core.record import (
    DamagedRecordError,
    InvalidRecordError,
    Record,
    read_record,
    record_files,
)
from sat_interp._util.errors import UserError

DETAILS = ("sae", "neurons", "n2g")
"""Folders in which evaluations write files that are not records."""
SMALL, LONG = 16, 2000
"""Largest containers (entries) and texts (letters) that are kept of a record's ``extra``."""
ALWAYS = (health.KEY, "sae", "replicates")
"""Entries of ``extra`` that are kept at any size, since tables read them."""
NAMED = 5
"""Number of odd records that are listed by name."""

Identity = tuple[str, str, str]
"""Identity of a record: hash of the weights, evaluation, and hash of its settings."""


@dataclass(frozen=True)
class Collected:
    """The records below a directory, and the files that could not be read.

    Attributes:
        records: the newest record of each `identity`, without the parts of ``extra`` that only
            figures read (`slim`).
        duplicates: number of older records that a newer record replaces.
        truncated: files that are not complete JSON, or cannot be read.
        foreign: JSON files that are not records, or records of another version.
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
        """Return a line for each kind of file that was skipped."""
        lines = []
        for files, words in (
            (self.truncated, "truncated or unreadable"),
            (self.foreign, "not a record, or one of another version"),
        ):
            if files:
                names = ", ".join(map(_short, files[:3]))
                more = ", ..." if len(files) > 3 else ""
                lines.append(f"{len(files)} of the JSON files skipped: {words} ({names}{more})")
        lines += [f"left out: {line}" for line in self.left_out()]
        if self.duplicates:
            lines.append(f"{self.duplicates} duplicate records skipped: the newest is used")
        return lines

    def left_out(self) -> list[str]:
        """Return the names of the first few odd records, each with its reason."""
        lines = [f"{_short(path)}: {reason}" for path, reason in self.odd.items()]
        more = [f"{len(lines) - NAMED} more records"] if len(lines) > NAMED else []
        return [*lines[:NAMED], *more]


def collect(directory: str | Path) -> Collected:
    """Read all records below a directory; files that cannot be read are listed in the result.

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
    read.sort(key=lambda entry: entry[0].started)
    newest = {identity(record): record for record, _ in read}
    collected = Collected(
        records=list(newest.values()),
        duplicates=len(read) - len(newest),
        files={identity(record): path for record, path in read},
    )
    for path, problem in problems.items():
        if path.parent.name in DETAILS:
            continue
        if isinstance(problem, DamagedRecordError):
            collected.truncated.append(path)
        elif isinstance(problem, InvalidRecordError):
            collected.odd[path] = problem.reason
        else:
            collected.foreign.append(path)
    return collected


def slim(record: Record) -> Record:
    """Return the record with only the parts of ``extra`` that tables read; others become True.

    This saves memory with thousands of records; `record.read_record` returns the complete record.
    """
    extra = {
        name: value if name in ALWAYS or _is_small(value) else True
        for name, value in record.extra.items()
    }
    return dataclasses.replace(record, extra=extra)


def _is_small(value: object, deep: int = 2) -> bool:
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return len(inner) <= SMALL and all(_is_small(part, deep - 1) for part in inner) and deep > 0
    return not isinstance(value, str) or len(value) <= LONG


def identity(record: Record) -> Identity:
    """Return the key by which a newer record replaces an older one."""
    return str(record.model["weights_hash"]), record.evaluation, record.config_hash


def _short(path: Path) -> str:
    """Return the names of a file and its directory as printable text."""
    return "/".join(path.parts[-2:]).encode("utf-8", "replace").decode()
