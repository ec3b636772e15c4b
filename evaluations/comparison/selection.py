"""Which records the paper's tables are made from; what lay beside them, and why it was left."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluations.core.hook_points import NEURONS
from evaluations.core.record import (
    DamagedRecord,
    OddRecord,
    Record,
    hash_of,
    model_ids,
    read_record,
    record_files,
)
from evaluations.tables import health
from sat_interp._util.errors import UserError

TAU = 0.03
L1 = 5.0
DETAILS = ("sae", "neurons", "n2g")
"""Folders in which evaluations leave what is no record."""
TASKS = ("ioi", "ioi-tinystories")
SMALL, LONG = 16, 2000
"""Entries and letters of what is kept of a record's ``extra``."""
ALWAYS = (health.KEY, "sae")
"""Entries of ``extra`` that tables read whatever their size."""
NAMED = 5
"""Records that are named one by one."""


Identity = tuple[str, str, str]
"""What tells a record from others: weights, evaluation, and a hash of all its settings."""


@dataclass(frozen=True)
class Collected:
    """The records below a directory, each once, and the files that hold none.

    Attributes:
        duplicates: records of what another, newer record says too.
        truncated: files that are not whole JSON, or cannot be read.
        foreign: JSON that is no record, or one of another version.
        odd: records with a field that is not of its type, and what is wrong with it.
        files: where each record lies, by `identity`: their ``extra`` is here without the parts
            that only figures read (`slim`), and read again for those that are drawn.
    """

    records: list[Record]
    duplicates: int = 0
    truncated: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    odd: dict[Path, str] = field(default_factory=dict)
    files: dict[Identity, Path] = field(default_factory=dict)

    def told(self) -> list[str]:
        """A line for each kind of file that was passed over."""
        lines = []
        for files, words in (
            (self.truncated, "truncated or unreadable"),
            (self.foreign, "no record of ours, or of another version"),
        ):
            if files:
                names = ", ".join(map(_short, files[:3]))
                more = ", ..." if len(files) > 3 else ""
                lines.append(f"{len(files)} of the JSON files passed over: {words} ({names}{more})")
        lines += [f"left out: {one}" for one in self.left_out()]
        if self.duplicates:
            lines.append(f"{self.duplicates} duplicate records passed over: the newest counts")
        return lines

    def left_out(self) -> list[str]:
        """The odd records by name, each with its reason; of many, the first few."""
        lines = [f"{_short(path)}: {reason}" for path, reason in self.odd.items()]
        more = [f"{len(lines) - NAMED} more records"] if len(lines) > NAMED else []
        return [*lines[:NAMED], *more]


@dataclass(frozen=True)
class Model:
    """One model, and the record of each evaluation that counts.

    Attributes:
        key: by which models are told apart: weights, gates and configuration.
    """

    name: str
    spec: str
    weights: str
    records: dict[str, Record]
    key: str = ""

    @property
    def any(self) -> Record:
        """A record, for what all of them say of the model."""
        return max(self.records.values(), key=lambda record: record.started)


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
        foreign=[path for path, why in beside.items()
                 if not isinstance(why, DamagedRecord | OddRecord)],
        files={identity(record): path for record, path in read},
        odd={path: why.reason for path, why in beside.items() if isinstance(why, OddRecord)},
    )  # fmt: skip


def slim(record: Record) -> Record:
    """The record with only those parts of ``extra`` that tables read; of others True is left.

    Thousands of records fit in memory so; `record.read_record` gives the whole.
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


def models(records: Sequence[Record], names: Iterable[str] = ()) -> list[Model]:
    """A model for each set of weights, gates and configuration, with one record of each evaluation.

    Of several records of one evaluation the tables take, among those the paper's table is about
    (:func:`counts`), one of the newest version of its code; among these, one whose settings and
    text most models share; else the newest.

    Args:
        names: of a study's runs; they go before other names of the same weights.
    """
    preferred = set(names)
    found: dict[str, Model] = {}
    ordered = sorted(records, key=lambda record: (_name(record) in preferred, record.started))
    ids = {id(record): known for record, known in zip(ordered, model_ids(ordered), strict=True)}
    for record in ordered:
        weights, key = str(record.model["weights_hash"]), ids[id(record)]
        spec = str(record.model.get("spec", _name(record)))
        known = found.get(key)
        found[key] = Model(_name(record), spec, weights, known.records if known else {}, key)
    for name in {record.evaluation for record in records}:
        eligible = [record for record in records if record.evaluation == name and counts(record)]
        rank = _by_share(eligible)
        for record in sorted(eligible, key=lambda one: (one.version, rank[settings(one)])):
            found[ids[id(record)]].records[name] = record
    return [model for model in found.values() if model.records]


def counts(record: Record) -> bool:
    """Whether the paper's tables are about such a record.

    Of ``acdc``: ACDC with resampled edges at tau 0.03 on IOI. Of ``sae``: a standard autoencoder
    trained here on the default hook point with the L1 coefficient of the presets, 5. Of ``neurons``
    and ``n2g``: MLP neurons of the clean stream. Of all other evaluations: any. Never one of a
    control model (``evaluations.core.controls``).
    """
    config = record.config
    if record.model.get("control"):
        return False  # a control model is no training seed of anything
    if record.evaluation == "acdc":
        return (
            record.data.get("spec") in TASKS
            and config.get("method") == "acdc"
            and config.get("ablation") == "resample"
            and record.extra.get("tau") == TAU
        )
    if record.evaluation == "sae":
        return (
            config.get("architecture") == "standard"
            and config.get("sparsity") == L1
            and config.get("hook") is None
            and config.get("given") is None
        )
    if record.evaluation in ("neurons", "n2g"):
        own = {"hook": NEURONS, "stream": "clean", "sae": None}
        return all(config.get(name, value) == value for name, value in own.items())
    return True


def settings(record: Record) -> str:
    """A hash of what has to be equal for two models' figures to be compared."""
    return hash_of([record.evaluation, record.version, record.config, record.data.get("content")])


def is_comparable(records: Sequence[Record]) -> bool:
    """Whether the records have one configuration and one text."""
    return all(_compared(record) == _compared(records[0]) for record in records[1:])


def _compared(record: Record) -> tuple[object, ...]:
    return record.evaluation, record.version, record.config, record.data.get("content")


def _by_share(records: Sequence[Record]) -> dict[str, tuple[int, str]]:
    """For each kind of settings how many models have a record of it, and its newest record."""
    shares = Counter(
        key for key, _ in {(settings(one), one.model["weights_hash"]) for one in records}
    )
    newest: dict[str, str] = {}
    for record in records:
        newest[settings(record)] = max(newest.get(settings(record), ""), record.started)
    return {key: (shares[key], newest[key]) for key in shares}


def identity(record: Record) -> Identity:
    """Return what tells a record from others: newer ones take its place."""
    return str(record.model["weights_hash"]), record.evaluation, record.config_hash


def _name(record: Record) -> str:
    return str(record.model.get("name", "?"))


def _short(path: Path) -> str:
    """The file and the directory it lies in, as text that can be printed."""
    return "/".join(path.parts[-2:]).encode("utf-8", "replace").decode()
