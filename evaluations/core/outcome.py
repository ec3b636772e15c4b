"""Outcomes of a command: the records of its models, and the reasons of failures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evaluations.core.record import Record
from sat_interp._util.errors import UserError, system_reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A record with its MODEL argument and configuration."""

    model: Any
    config: Any
    record: Record


@dataclass
class Outcome:
    """The record of each model, or the reason why it failed."""

    measured: list[Measured] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    """Number of records that existed already."""
    renewed: int = 0
    """Number of records measured again because the existing record had an older version."""

    @property
    def records(self) -> list[Record]:
        """The records, in the order in which they were made or read."""
        return [entry.record for entry in self.measured]

    def add(self, other: Outcome) -> None:
        """Add the records and counts of another outcome, without its failures."""
        self.measured += other.measured
        self.skipped += other.skipped
        self.renewed += other.renewed

    @contextmanager
    def noting(self, name: str, task: str) -> Iterator[None]:
        """Catch errors of a model inside the block and note them as failures."""
        try:
            yield
        except UserError as error:
            self.failures[name] = str(error)
        except OSError as error:
            self.failures[name] = system_reason(error)
        except Exception as error:  # a bug must not stop the evaluation of other models
            log.exception("%s failed on %s", task, name)
            text = " ".join(str(error).split())
            self.failures[name] = f"internal error: {type(error).__name__}: {text}"

    def raise_failures(self, models: int | None = None) -> None:
        """Raise an error if a model failed.

        Args:
            models: number of models; by default the number of records and failures.

        Raises:
            UserError: one line with each model that failed, and the reason.
        """
        if not self.failures:
            return
        total = models or len(self.records) + len(self.failures)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
        if total == 1:
            raise UserError(next(iter(self.failures.values())))
        raise UserError(f"{len(self.failures)} of {total} models failed: {reasons}")
