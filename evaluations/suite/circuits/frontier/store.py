"""What an interrupted run has done: searches, and measured circuits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from evaluations.core.weights import tensor_bytes
from evaluations.suite.circuits.case import Case
from sat_interp._util.files import default_cache, naming, write_atomically

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of the key of the cache; raised where what is kept there changes."""


class Store:
    """Values by name, in one directory of the cache for each case."""

    def __init__(self, key: str) -> None:
        self.directory = default_cache() / "circuits" / key[:20]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the value of that name from the cache, or make and keep it."""
        known = self.read(name)
        if known is None:
            known = make()
            self.write(name, known)
        return known

    def read(self, name: str) -> Any:
        """Return the value of that name; None where there is none, or a damaged one."""
        path = self._path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s); measured again", path.name, error)
            return None

    def write(self, name: str, value: Any) -> None:
        """Keep a value in the cache."""
        self._path(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(name), json.dumps(value, allow_nan=False))

    def lines(self, name: str) -> dict[str, Any]:
        """Return the lines of a file by their name; damaged ones are left out."""
        path, known = self._path(name, "jsonl"), {}
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                known[entry.pop("name")] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s has a damaged line; measured again", path.name)
        return known

    def append(self, name: str, entries: Iterable[dict[str, Any]]) -> None:
        """Add lines to a file, each with a name; an incomplete last line of it is ended."""
        path = self._path(name, "jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(one, allow_nan=False) + "\n" for one in entries)
        with naming(path), path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            is_ended = not (before := file.read()) or before.endswith("\n")
            file.write(text if is_ended else "\n" + text)

    def _path(self, name: str, ending: str = "json") -> Path:
        return self.directory / f"{name}.{ending}"


def case_key(cases: list[Case], settings: Any) -> str:
    """Return a hash of settings and of all that circuits of these cases are measured with.

    It covers tokens, the clean outputs of all sources, their replacements and the clean logits.
    """
    digest = hashlib.sha256(f"{FORMAT} {settings!r}".encode())
    for case in cases:
        digest.update(f"{case.graph!r} {case.prompts.content}".encode())
        for bucket in case.buckets:
            for tensor in (bucket.clean, bucket.replacement, bucket.logits):
                digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def circuit_name(kept: Bool[Tensor, "edge"]) -> str:
    """Return a name for a circuit of one graph, as a file may be called."""
    return hashlib.sha256(kept.cpu().numpy().tobytes()).hexdigest()[:20]
