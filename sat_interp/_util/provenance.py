"""Provenance of a result: versions, commit, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "sat-interp",
    "torch",
    "transformer-lens",
    "sae-lens",
    "transformers",
    "tokenizers",
    "numpy",
)


@functools.cache
def provenance() -> Mapping[str, Any]:
    """``versions``, ``commit`` and ``hardware`` of this process, looked up once."""
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def versions() -> dict[str, str]:
    """Versions of python and of the libraries that decide a result."""
    result = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = "not installed"
    return result


def commit() -> str | None:
    """The git commit of the tree this package runs from, ``-dirty`` when it has changes.

    None outside git, and where the package is inside another project's repository.
    """
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        head = _git(here.parent, "rev-parse", "HEAD")
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()
