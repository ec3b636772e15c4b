"""Reader of the files of details, without the imports needed to write them."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError


def read_details(path: Path) -> dict[str, Any]:
    """Read a file of ``evaluations.suite.neurons.details.Details``.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is missing or damaged: run again with --force")
    return content
