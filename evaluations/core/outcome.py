"""What became of the models a command was given: records, and reasons why there are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evaluations.core.record import Record
from sat_interp._util.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A record, with the MODEL argument and the configuration it is of."""

    model: Any
    config: Any
    record: Record


@dataclass
class Outcome:
    """What became of each model: a record, or the reason why there is none."""

    measured: list[Measured] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    """How many records were there already."""
    renewed: int = 0
    """How many were measured again because their record was of an older version."""

    @property
    def records(self) -> list[Record]:
        """The records, in the order in which they were made or read."""
        return [one.record for one in self.measured]

    def add(self, other: Outcome) -> None:
        """Add the records and counts of another outcome; its failures stay apart."""
        self.measured += other.measured
        self.skipped += other.skipped
        self.renewed += other.renewed

    @contextmanager
    def noting(self, name: str, task: str) -> Iterator[None]:
        """Note what goes wrong with a model inside the block, so that the next one has its turn."""
        try:
            yield
        except UserError as error:
            self.failures[name] = str(error)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            self.failures[name] = f"{error.strerror or error}{where}"
        except Exception as error:  # a bug in one evaluation must not cost the other models
            log.exception("%s failed on %s", task, name)
            text = " ".join(str(error).split())
            self.failures[name] = f"internal error: {type(error).__name__}: {text}"

    def raise_failures(self, models: int | None = None) -> None:
        """Do nothing if all went well.

        Args:
            models: how many there were; by default as many as have a record or a failure.

        Raises:
            UserError: one line that names each model that failed, and why.
        """
        if not self.failures:
            return
        total = models or len(self.records) + len(self.failures)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
        if total == 1:
            raise UserError(next(iter(self.failures.values())))
        raise UserError(f"{len(self.failures)} of {total} models failed: {reasons}")
