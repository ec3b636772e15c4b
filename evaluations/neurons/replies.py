"""Replies of language models on disk, so that nothing is asked, and paid for, twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sat_interp.errors import UserError
from sat_interp.files import default_cache


def default_path() -> Path:
    return default_cache() / "examiner" / "replies.sqlite"


def request_key(request: Any) -> str:
    """A hash of a whole request: endpoint, model, messages, parameters."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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

    def get(self, key: str) -> Any | None:
        """What was answered to a request, None if it was never answered."""
        with self._lock, self._explained():
            row = self._database.execute(
                "SELECT reply FROM replies WHERE request = ?", (key,)
            ).fetchone()
            return None if row is None else json.loads(zlib.decompress(row[0]))

    def put(self, key: str, reply: Any) -> None:
        """Keep a reply: anything JSON can write."""
        packed = zlib.compress(json.dumps(reply, ensure_ascii=False).encode())
        with self._lock, self._explained(), self._database:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, packed))

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
