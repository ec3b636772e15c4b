"""When a request may be sent: in step with a limit, and not while the endpoint wants quiet."""

from __future__ import annotations

import email.utils
import math
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from sat_interp._util.errors import UserError


class Clock:
    """Where waiting happens, so that tests need not wait."""

    def time(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class Pace:
    """So many requests a minute, evenly, and none while the endpoint wants to be left alone."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        if per_minute is not None and not per_minute > 0:
            raise UserError(f"requests_per_minute must be above 0, not {per_minute}")
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock, self._lock, self._next = clock, threading.Lock(), -math.inf

    def wait(self) -> None:
        """Until it is this caller's turn."""
        with self._lock:
            now = self._clock.time()
            turn = max(now, self._next)
            self._next = turn + self._interval
        self._clock.sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """Nobody's turn comes before that."""
        with self._lock:
            self._next = max(self._next, self._clock.time() + seconds)


def retry_after(headers: Mapping[str, str]) -> float:
    """How many seconds an endpoint wants to be left alone: 0 where it does not say."""
    said = str(headers.get("retry-after", ""))
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(said)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0
