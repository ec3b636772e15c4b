"""Replies of language models on disk, so that no request is paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError
from sat_interp._util.files import default_cache

LARGEST = 1 << 24
"""Maximum size of a reply in bytes, compressed or not."""

log = logging.getLogger(__name__)


def default_path() -> Path:
    """Return the database in the user's cache directory."""
    return default_cache() / "examiner" / "replies.sqlite"


def request_key(request: Any) -> str:
    """Return a hash of a request: endpoint, model, messages and parameters."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unpacked(packed: bytes) -> Any:
    """Return the reply in a row.

    Raises:
        ValueError, RecursionError, TypeError: the row is damaged.
    """
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(packed, LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if unpack.unconsumed_tail or not unpack.eof:
        raise ValueError("cut short, or too large")
    return json.loads(text)


class Replies:
    """SQLite database of replies by the hash of their request.

    Each reply is written in its own transaction before :meth:`put` returns, so that a killed
    process leaves complete replies only. Threads can share an object, and processes a file.

    Raises:
        UserError: the file is damaged, not a database, or not writable.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._lock = threading.Lock()
        with self._user_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            weakref.finalize(self, self._database.close)
            with self._database:
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply BLOB)"
                )
            self._check_contents()

    def get(self, key: str, is_valid: Callable[[Any], bool] = lambda reply: True) -> Any | None:
        """Return the reply to a request; None if there is none.

        A damaged row is deleted: one of another type, too large, not JSON, or not valid.
        """
        with self._lock, self._user_errors():
            row = self._database.execute(
                "SELECT CASE WHEN typeof(reply) = 'blob' AND length(reply) <= ? THEN reply END "
                "FROM replies WHERE request = ?",
                (LARGEST, key),
            ).fetchone()
            if row is None:
                return None
            try:
                reply = _unpacked(row[0])
                if is_valid(reply):
                    return reply
            except (ValueError, RecursionError, TypeError):
                pass
            with self._database:
                self._database.execute("DELETE FROM replies WHERE request = ?", (key,))
            log.warning("%s had a damaged reply, which is requested again", self.path)
            return None

    def put(self, key: str, reply: Any) -> None:
        """Store a reply, which can be any JSON value."""
        packed = zlib.compress(json.dumps(reply, ensure_ascii=False).encode())
        with self._lock, self._user_errors(), self._database:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, packed))

    def _check_contents(self) -> None:
        """Reject views and triggers, which could change or invent replies."""
        others = self._database.execute(
            "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
        ).fetchone()[0]
        if others:
            raise sqlite3.DatabaseError("it contains views or triggers")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def __len__(self) -> int:
        with self._lock, self._user_errors():
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn errors of the database into ``UserError``."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # locked, read-only, disk full
            raise UserError(f"cannot use the stored replies in {self.path}: {error}") from None
        except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
            raise UserError(
                f"the stored replies in {self.path} are damaged ({error}): move the file away; "
                "its replies will be requested again"
            ) from None
