"""Read the details that a run leaves of its neurons, without what it takes to make them."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError


def read_details(path: Path) -> dict[str, Any]:
    """Return what ``evaluations.suite.neurons.details.Details.write`` wrote.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is missing or damaged: run again with --force")
    return found
