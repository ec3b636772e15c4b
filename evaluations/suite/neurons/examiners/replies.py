"""Replies of language models on disk, so that nothing is asked, and paid for, twice."""

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
"""Bytes of a reply, packed or not."""

log = logging.getLogger(__name__)


def default_path() -> Path:
    return default_cache() / "examiner" / "replies.sqlite"


def request_key(request: Any) -> str:
    """A hash of a whole request: endpoint, model, messages, parameters."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unpacked(packed: bytes) -> Any:
    """The reply in a row.

    Raises:
        ValueError, RecursionError, TypeError: there is none.
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
    """A SQLite database of replies by the hash of their request.

    A reply is written in a transaction of its own before :meth:`put` returns: a process killed
    after that has it, one killed before has nothing of it. Threads may share one object, and
    processes one file.

    Raises:
        UserError: the file is damaged, is no database, or cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._lock = threading.Lock()
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            weakref.finalize(self, self._database.close)
            with self._database:
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply BLOB)"
                )
            self._refuse_strangers()

    def get(self, key: str, is_valid: Callable[[Any], bool] = lambda reply: True) -> Any | None:
        """What was answered to a request, None if it was never answered.

        A row that does not hold what :meth:`put` writes is deleted, as if never answered: of
        another type, too large, no JSON, or not valid.
        """
        with self._lock, self._explained():
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
            log.warning("%s held a reply that is none: it is asked again", self.path)
            return None

    def put(self, key: str, reply: Any) -> None:
        """Keep a reply: anything JSON can write."""
        packed = zlib.compress(json.dumps(reply, ensure_ascii=False).encode())
        with self._lock, self._explained(), self._database:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, packed))

    def _refuse_strangers(self) -> None:
        """A view or a trigger could answer, or change, what nobody asked for."""
        others = self._database.execute(
            "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
        ).fetchone()[0]
        if others:
            raise sqlite3.DatabaseError("it holds more than replies")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __len__(self) -> int:
        with self._lock, self._explained():
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # locked, read-only, disk full
            raise UserError(f"cannot use the kept replies in {self.path}: {error}") from None
        except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
            raise UserError(
                f"the kept replies in {self.path} are damaged ({error}): move the file away; "
                "what it held will be asked again"
            ) from None
