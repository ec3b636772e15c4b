"""Records: metrics with their uncertainty, and everything needed to reproduce them.

A `Record` is the result of one evaluation of one model on one text. It is written as standard JSON:
a missing number is ``null`` with a reason, never ``NaN``, 0 or -1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
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
"""Maximum size of a record in bytes; a record of 100,000 neurons has a tenth of it."""
Direction = Literal["lower", "higher"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interval:
    """A confidence interval with its method (``bootstrap over stories, 2000 resamples``)."""

    low: float
    high: float
    level: float
    method: str


UPPER_BOUND = "an upper bound"
"""What the description of a metric says whose value is at least the true one."""


@dataclass(frozen=True)
class Metric:
    """One metric. ``value`` is None if it could not be computed, and ``reasons`` says why.

    A value that is not finite is replaced by None with the reason ``nan`` or ``infinite``. A
    standard error that is not finite and an interval with such an end are replaced by None.
    """

    name: str
    """Identifier, unique within the record: ``perplexity``."""
    title: str
    """Title for readers: ``Perplexity, clean stream``."""
    value: float | None
    unit: str = ""
    direction: Direction | None = None
    """Which values are better; None if neither are."""
    standard_error: float | None = None
    interval: Interval | None = None
    n: int | None = None
    """Number of items in the value (tokens, stories, neurons: see ``description``)."""
    n_failed: int = 0
    """Number of items that could not be scored; they are not included in the value."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Reasons why items could not be scored, with the number of each."""
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
    """The result of one evaluation of one model on one text."""

    evaluation: str
    model: dict[str, Any]
    """name, spec, weights_hash, n_parameters, shape and, for models with gates, ablation."""
    data: dict[str, Any]
    """spec, split, content (a hash of the data), tokenizer, n_stories, ..."""
    config: dict[str, Any]
    """The evaluation's whole configuration."""
    config_hash: str
    """Hash of what determines the result, except the weights: configuration, data, model shape."""
    seed: int
    metrics: list[Metric]
    extra: dict[str, Any] = field(default_factory=dict)
    """Details of the evaluation, such as curves and histograms."""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    """Commit of the source tree; ``-dirty`` if it had changes."""
    started: str = ""
    """Start time in ISO 8601, UTC."""
    seconds: float = 0.0
    device: str = "cpu"
    schema: int = SCHEMA
    version: int = 0
    """Version of the evaluation; 0 in old records without this field."""

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Metric]:
        return {metric.name: metric for metric in reversed(self.metrics)}

    @cached_property
    def _own_model_id(self) -> str:
        fields = {key: one for key, one in self.model["configuration"].items() if key != "dtype"}
        return f"{self.model['weights_hash']} {hash_of([fields, self.model.get('ablation')])}"

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(plain(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "record") -> Record:
        """Read a record.

        Raises:
            DamagedRecordError: the text is not valid JSON, or truncated.
            ForeignRecordError: it is JSON but not a record, or a record of another schema.
            InvalidRecordError: a field of the record has a wrong type.
        """
        from pydantic_core import from_json

        from evaluations.core import schema

        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        try:  # refuses NaN, unpaired surrogates, and more than 200 levels
            fields = from_json(content, allow_inf_nan=False)
        except ValueError as error:
            raise DamagedRecordError(
                f"{source} is not a complete record ({error}); delete it"
            ) from None
        if not isinstance(fields, dict) or not {"schema", "evaluation", "metrics"} <= set(fields):
            raise ForeignRecordError(f"{source} is JSON but not a record of an evaluation")
        if fields["schema"] != SCHEMA:
            given = repr(fields["schema"])[:40]
            raise ForeignRecordError(
                f"{source} has schema {given}, this version reads {SCHEMA}; measure it again"
            )
        known = {entry.name for entry in dataclasses.fields(cls)}
        if new := [str(name)[:40] for name in fields if name not in known]:
            raise ForeignRecordError(f"{source} has fields unknown to this version ({new[0]!r})")
        if reason := schema.problem(fields):
            raise InvalidRecordError(
                f"{source} is not a record this version can read ({reason})", reason
            )
        metrics = [_metric(entry) for entry in fields.pop("metrics")]
        return cls(metrics=metrics, **fields)

    def write(self, path: str | Path) -> Path:
        """Write the record to ``path`` atomically."""
        return write_atomically(path, self.to_json())


class DamagedRecordError(UserError):
    """A file that cannot be read, or is not complete JSON."""


class ForeignRecordError(UserError):
    """JSON that is not a record, or a record of another schema."""


class InvalidRecordError(UserError):
    """A record with a field of a wrong type; ``reason`` names it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_record(path: str | Path) -> Record:
    """Read the record in a file.

    Raises:
        UserError: the file is missing or unreadable, not a regular file, too large, truncated, not
            a record, of another schema, or a field has a wrong type.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedRecordError(f"{path} is not a regular file")
        if status.st_size > LARGEST_FILE:
            raise DamagedRecordError(f"{path} has {status.st_size:,} bytes, too many for a record")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise DamagedRecordError(f"cannot read {path}: {error}") from None
    return Record.from_json(content, source=str(path))


def read_records(directory: str | Path) -> tuple[list[Record], dict[Path, UserError]]:
    """Return all records below a directory, and the reason for each file that is not a record."""
    records: list[Record] = []
    problems: dict[Path, UserError] = {}
    for path in record_files(directory):
        try:
            records.append(read_record(path))
        except UserError as error:
            problems[path] = error
    return records, problems


def model_ids(records: Sequence[Record]) -> list[str]:
    """Return an id for each record, equal for records of the same model under any name.

    It identifies weights, gates and configuration, except the precision. An old record without a
    configuration gets the id of the newest record of the same weights that has one.
    """
    known: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.started):
        if "configuration" in record.model:
            known[str(record.model["weights_hash"])] = record._own_model_id
    return [
        record._own_model_id
        if "configuration" in record.model
        else known.get(str(record.model["weights_hash"]), str(record.model["weights_hash"]))
        for record in records
    ]


def record_files(directory: str | Path) -> list[Path]:
    """Return the JSON files below a directory, except those of models and autoencoders."""
    return [
        path
        for path in sorted(Path(directory).rglob("*.json"))
        if not os.path.exists(path.parent / "cfg.json")  # False, too, where nothing may be read
    ]


def plain(value: Any) -> Any:
    """Convert to JSON types: numpy and torch numbers to numbers, NaN and infinity to None."""
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
    """Return a hash of a configuration (12 hex digits), independent of the order of its keys."""
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _number(value: Any) -> float | None:
    """Convert a python, numpy or torch scalar to float."""
    return None if value is None else float(value)


def _metric(entry: dict[str, Any]) -> Metric:
    interval = entry.pop("interval", None)
    return Metric(
        interval=Interval(**_known(interval, _INTERVAL)) if interval else None,
        **_known(entry, _METRIC),
    )


def _known(entry: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return entry if entry.keys() <= names else {name: entry[name] for name in names & entry.keys()}


_METRIC = {entry.name for entry in dataclasses.fields(Metric)}
_INTERVAL = {entry.name for entry in dataclasses.fields(Interval)}
