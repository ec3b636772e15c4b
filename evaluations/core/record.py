"""What a result is: figures with their uncertainty, and all it takes to obtain them again.

A `Record` is what one evaluation says of one model on one text. It is written as JSON that any
reader of JSON understands: a number that does not exist is ``null`` with a reason beside it,
never ``NaN``, 0 or -1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from evaluations.core.canonical import canonical
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically

SCHEMA = 1
LARGEST_FILE = 1 << 26
"""Bytes; a record of 100,000 neurons has a tenth."""
Direction = Literal["lower", "higher"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interval:
    """A confidence interval, and how it was found (``bootstrap over stories, 2000 resamples``)."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Metric:
    """One figure. ``value`` is None where it could not be had, and ``reasons`` says why.

    A value that is not finite is turned into None with the reason ``nan`` or ``infinite``, as is
    the standard error; an interval with an end that is not finite is dropped.
    """

    name: str
    """Unique within the record, for programs: ``perplexity``."""
    title: str
    """For people: ``Perplexity, clean stream``."""
    value: float | None
    unit: str = ""
    direction: Direction | None = None
    """Which way is better; None where neither is."""
    standard_error: float | None = None
    interval: Interval | None = None
    n: int | None = None
    """How many things the value was computed from (tokens, stories, neurons: see description)."""
    n_failed: int = 0
    """How many could not be scored; never counted as 0 in the value."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why they could not, and how many of each."""
    description: str = ""

    def __post_init__(self) -> None:
        if self.direction is not None and self.direction not in get_args(Direction):
            raise ValueError(f"direction is 'lower', 'higher' or None, not {self.direction!r}")
        value, error = _number(self.value), _number(self.standard_error)
        if value is not None and not math.isfinite(value):
            reason = "nan" if math.isnan(value) else "infinite"
            object.__setattr__(self, "reasons", {**self.reasons, reason: 1})
            object.__setattr__(self, "n_failed", max(self.n_failed, 1))
            value = error = None
        if error is not None and not math.isfinite(error):
            error = None
        object.__setattr__(self, "n", None if self.n is None else int(self.n))
        object.__setattr__(self, "n_failed", int(self.n_failed))
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "standard_error", error)
        if self.interval and not all(map(math.isfinite, (self.interval.low, self.interval.high))):
            object.__setattr__(self, "interval", None)


@dataclass(frozen=True)
class Record:
    """What one evaluation says of one model on one text."""

    evaluation: str
    model: dict[str, Any]
    """name, spec, weights_hash, n_parameters, shape and, for models with gates, ablation."""
    data: dict[str, Any]
    """spec, split, content (a hash of what was read), tokenizer, n_stories, ..."""
    config: dict[str, Any]
    """The evaluation's whole configuration."""
    config_hash: str
    """Of everything but the weights that decides the result: configuration, data, model shape."""
    seed: int
    metrics: list[Metric]
    extra: dict[str, Any] = field(default_factory=dict)
    """Small curves and histograms."""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    """Of the tree this package was installed from; ``-dirty`` when that tree had changes."""
    started: str = ""
    """ISO 8601, UTC."""
    seconds: float = 0.0
    device: str = "cpu"
    schema: int = SCHEMA
    version: int = 0
    """Of the evaluation's code; 0 in records from before it was written."""

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Metric]:
        return {metric.name: metric for metric in reversed(self.metrics)}

    def to_json(self) -> str:
        return json.dumps(plain(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "record") -> Record:
        """Read a record.

        Raises:
            DamagedRecord: not JSON, or cut off.
            ForeignRecord: JSON, but no record, or one of another schema.
            OddRecord: a field of the record is not of its type.
        """
        from pydantic_core import from_json

        from evaluations.core import schema

        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        try:  # refuses NaN, half a surrogate pair, and more than 200 levels
            found = from_json(content, allow_inf_nan=False)
        except ValueError as error:
            raise DamagedRecord(f"{source} is no whole record ({error}); delete it") from None
        if not isinstance(found, dict) or not {"schema", "evaluation", "metrics"} <= set(found):
            raise ForeignRecord(f"{source} is JSON but no record of an evaluation")
        if found["schema"] != SCHEMA:
            told = repr(found["schema"])[:40]
            raise ForeignRecord(f"{source} has schema {told}, this version reads {SCHEMA}; redo it")
        known = {one.name for one in dataclasses.fields(cls)}
        if new := [str(name)[:40] for name in found if name not in known]:
            raise ForeignRecord(f"{source} has fields this version does not know ({new[0]!r})")
        if reason := schema.problem(found):
            raise OddRecord(f"{source} is no record this version reads ({reason})", reason)
        metrics = [_metric(entry) for entry in found.pop("metrics")]
        return cls(metrics=metrics, **found)

    def write(self, path: str | Path) -> Path:
        """Write the record to ``path``, whole or not at all."""
        return write_atomically(path, self.to_json())


class DamagedRecord(UserError):
    """A file that cannot be read, or is not whole JSON."""


class ForeignRecord(UserError):
    """JSON that is no record, or a record of another schema."""


class OddRecord(UserError):
    """A record with a field that is not of its type; ``reason`` names it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_record(path: str | Path) -> Record:
    """The record in a file: the one gate through which records come in.

    Raises:
        UserError: the file is missing or unreadable, no regular file (a pipe has no end), larger
            than any record, truncated, foreign, of another schema, or a field is not of its type.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedRecord(f"{path} is no regular file")
        if status.st_size > LARGEST_FILE:
            raise DamagedRecord(f"{path} has {status.st_size:,} bytes, more than any record")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise DamagedRecord(f"cannot read {path}: {error}") from None
    return Record.from_json(content, source=str(path))


def read_records(directory: str | Path) -> tuple[list[Record], dict[Path, UserError]]:
    """All records below a directory, and for each file that holds none the reason."""
    records: list[Record] = []
    problems: dict[Path, UserError] = {}
    for path in record_files(directory):
        try:
            records.append(read_record(path))
        except UserError as error:
            problems[path] = error
    return records, problems


def model_ids(records: Sequence[Record]) -> list[str]:
    """Return an id for each record: equal for records of one model, under whatever name.

    A model is its weights, its gates and its whole configuration but the precision it was run in.
    A record without a configuration (they were not always written) counts with the newest record
    of the same weights that has one.
    """
    known: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.started):
        if "configuration" in record.model:
            known[str(record.model["weights_hash"])] = _model_id(record)
    return [
        _model_id(record)
        if "configuration" in record.model
        else known.get(str(record.model["weights_hash"]), str(record.model["weights_hash"]))
        for record in records
    ]


def _model_id(record: Record) -> str:
    model = record.model
    fields = {key: value for key, value in model["configuration"].items() if key != "dtype"}
    return f"{model['weights_hash']} {hash_of([fields, model.get('ablation')])}"


def record_files(directory: str | Path) -> list[Path]:
    """The JSON files below a directory; those of models and autoencoders are no records."""
    return [
        path
        for path in sorted(Path(directory).rglob("*.json"))
        if not (path.parent / "cfg.json").exists()
    ]


def plain(value: Any) -> Any:
    """``value`` in what JSON has: numpy and torch numbers as numbers, NaN and infinity as None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        ordered = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(entry) for entry in ordered]
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)  # paths, dtypes, devices


def hash_of(config: Any) -> str:
    """A hash of a configuration (12 hex digits): of its content, not of the order of its keys."""
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _number(value: Any) -> float | None:
    """A plain float of a python, numpy or torch scalar."""
    return None if value is None else float(value)


def _metric(entry: dict[str, Any]) -> Metric:
    interval = entry.pop("interval", None)
    return Metric(
        interval=Interval(**_known(interval, _INTERVAL)) if interval else None,
        **_known(entry, _METRIC),
    )


def _known(entry: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return entry if entry.keys() <= names else {name: entry[name] for name in names & entry.keys()}


_METRIC = {one.name for one in dataclasses.fields(Metric)}
_INTERVAL = {one.name for one in dataclasses.fields(Interval)}
