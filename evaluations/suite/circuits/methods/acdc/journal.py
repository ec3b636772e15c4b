"""The decisions of a search on disk, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import Bucket
from sat_interp._util.files import naming, write_atomically

log = logging.getLogger(__name__)


class Journal:
    """Decisions, one line per destination; a line that was cut short is as if not written.

    A file whose first line is not the search's :func:`identity` is another search's, and replaced.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self) -> list[dict]:
        """What an earlier run decided; without one of the same identity, start a new file."""
        if self.path is None:
            return []
        if self.path.exists():
            head, *lines = self.path.read_text("utf-8", errors="replace").split("\n")
            if head == self.identity:
                whole = lines[:-1]  # what follows the last line's end is a torn line, or empty
                write_atomically(self.path, "\n".join([head, *whole, ""]))
                return [json.loads(line) for line in whole]
            log.info("%s is of another run: starting anew", self.path)
        write_atomically(self.path, self.identity + "\n")
        return []

    def write(self, line: dict[str, object]) -> None:
        if self.path is not None:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def identity(
    graph: Graph, buckets: Sequence[Bucket], tau: float, order: Int[Tensor, "edge"]
) -> str:
    """A hash of what decides the circuit: graph, tau, order, clean outputs and replacements."""
    digest = hashlib.sha256(f"{graph!r} {tau!r}".encode())
    for tensor in [order, *(t for b in buckets for t in (b.logits, b.replacement))]:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
