"""Rate limit of requests, including pauses that the endpoint asks for."""

from __future__ import annotations

import email.utils
import math
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from sat_interp._util.errors import UserError


class Clock:
    """Clock that tests replace to avoid waiting."""

    def time(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""
        if seconds > 0:
            time.sleep(seconds)


class Pace:
    """Evenly spaced requests per minute, with pauses that the endpoint asks for."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        if per_minute is not None and not per_minute > 0:
            raise UserError(f"requests_per_minute must be above 0, not {per_minute}")
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock, self._lock, self._next = clock, threading.Lock(), -math.inf

    def wait(self) -> None:
        """Wait for this caller's turn."""
        with self._lock:
            now = self._clock.time()
            turn = max(now, self._next)
            self._next = turn + self._interval
        self._clock.sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """Delay all requests by at least some seconds from now."""
        with self._lock:
            self._next = max(self._next, self._clock.time() + seconds)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds in the header Retry-After; 0 if there is none."""
    value = str(headers.get("retry-after", ""))
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or a date without a time zone
        return 0.0
