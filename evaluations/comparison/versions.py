"""The version of each evaluation's code, and which records are of an older one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from evaluations.core.record import Record
from evaluations.registry import SPECS


def current(evaluation: str) -> int | None:
    """Return the version of an evaluation's code; None for an unknown evaluation."""
    return next((spec.version for spec in SPECS if spec.name == evaluation), None)


def is_older(record: Record) -> bool:
    """Whether a record's figures are of older code than this."""
    version = current(record.evaluation)
    return version is not None and record.version < version


def older_told(records: Iterable[Record]) -> list[str]:
    """Return a line for each evaluation of which some records are of an older version."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if is_older(record):
            found[record.evaluation].append(record)
    return [_line(name, found[name]) for name in sorted(found)]


def _line(name: str, records: list[Record]) -> str:
    models = list(dict.fromkeys(str(record.model.get("name", "?")) for record in records))
    more = f" and {len(models) - 3} more" if len(models) > 3 else ""
    versions = ", ".join(str(one) for one in sorted({record.version for record in records}))
    count = f"{len(records)} record{'s' * (len(records) != 1)}"
    return (
        f"older figures: {count} of {name} {'are' if len(records) != 1 else 'is'} of version "
        f"{versions} of its code, now {current(name)} ({', '.join(models[:3])}{more}); "
        f"sat-eval {name} measures them again"
    )
