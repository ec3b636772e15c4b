"""Saved decisions of a search, so that an interrupted search can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from evaluations.core.weights import tensor_bytes
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import PromptBatch
from sat_interp._util.files import naming, write_atomically

log = logging.getLogger(__name__)


class Journal:
    """A file of decisions, one line per destination; an incomplete last line is ignored.

    The first line is the search's :func:`identity`; a file of another search is replaced.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self) -> list[dict[str, Any]]:
        """Read the decisions of an earlier run of the same search, or start a new file."""
        if self.path is None:
            return []
        if self.path.exists():
            head, *lines = self.path.read_text("utf-8", errors="replace").split("\n")
            if head == self.identity:
                whole = lines[:-1]  # the last line is empty or incomplete
                write_atomically(self.path, "\n".join([head, *whole, ""]))
                return [json.loads(line) for line in whole]
            log.info("%s belongs to another search and is replaced", self.path)
        write_atomically(self.path, self.identity + "\n")
        return []

    def write(self, line: dict[str, object]) -> None:
        """Append the decisions of a destination."""
        if self.path is not None:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def identity(
    graph: Graph, buckets: Sequence[PromptBatch], tau: float, order: Int[Tensor, "edge"]
) -> str:
    """Return a hash of the search: graph, tau, order, clean logits and replacements."""
    digest = hashlib.sha256(f"{graph!r} {tau!r}".encode())
    tensors = [order, *(t for b in buckets for t in (b.logits, b.replacement))]
    tensors += [b.answers for b in buckets if b.answers is not None]
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
