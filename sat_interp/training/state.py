"""Exact training state: a directory per checkpoint, verified by its hash when it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sat_interp._util.errors import UserError, shown
from sat_interp._util.files import atomic_directory, put_back_directories
from sat_interp._util.reading import read_json

logger = logging.getLogger(__name__)

KEPT = 2
_NAME = re.compile(r"step-(\d{8,})")


def save_state(
    directory: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Write ``directory/step-XXXXXXXX``, whole or not at all, and keep the last two.

    Args:
        tensors: weights, optimiser moments, logged numbers not yet written.
        facts: other values that resuming needs; written as JSON with the hash of the tensors.

    Raises:
        OSError: the disk is full, or cannot be written; earlier checkpoints are unchanged.
    """
    target = directory / f"step-{step:08d}"
    with atomic_directory(target) as temporary:
        file = temporary / "tensors.safetensors"
        _save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        state = {"step": step, **facts, "tensors_sha256": _sha256(file)}
        (temporary / "state.json").write_text(
            json.dumps(state, indent=1, allow_nan=False), encoding="utf-8"
        )
    for old in checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


State = tuple[dict[str, Tensor], dict[str, Any]]


def load_latest(
    directory: Path, check: Callable[[dict[str, Tensor], dict[str, Any]], None] | None = None
) -> State | None:
    """Tensors (on the CPU) and facts of the newest valid checkpoint; None where there is none.

    One that is truncated, altered, or refused by ``check`` is named in a warning, and the one
    before it is used.

    Args:
        check: raises a ValueError for tensors and facts that training cannot continue from.

    Raises:
        UserError: there are checkpoints, and none is valid.
    """
    reasons = []
    for path in reversed(checkpoints(directory)):
        try:
            tensors, facts = _load(path)
            if check is not None:
                check(tensors, facts)
        except (OSError, ValueError, SafetensorError, MemoryError) as error:
            reasons.append(" ".join(str(error).split())[:300] or type(error).__name__)
            logger.warning(
                "checkpoint %s is damaged (%s): trying the previous one", path, reasons[-1]
            )
        else:
            return tensors, facts
    if reasons:
        raise UserError(
            f"no checkpoint in {directory} is valid (the last: {reasons[0]}): start again in "
            "another directory"
        )
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (path for path in directory.iterdir() if _NAME.fullmatch(path.name)),
        key=_step_of,
    )


def clear_leftovers(out: Path) -> None:
    """Remove temporary files and directories of interrupted writes.

    A directory that was moved aside for a new one that was not written is moved back.
    """
    for directory in (out, out / "checkpoints"):
        put_back_directories(directory)
        for pattern in (".*.tmp", ".*.old"):
            for path in directory.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _load(path: Path) -> State:
    state = read_json(path / "state.json")
    if not isinstance(state, dict):
        raise ValueError("state.json is not a mapping")
    step = state.get("step")
    if type(step) is not int or step != _step_of(path):
        raise ValueError(f"state.json has step {shown(step)}")
    file = path / "tensors.safetensors"
    if not file.is_file():
        raise ValueError("tensors.safetensors is missing, or not a file")
    if _sha256(file) != state.get("tensors_sha256"):
        raise ValueError("its tensors do not have the hash it states")
    return load_file(file), state


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        # safetensors writes in Rust and wraps the system's error in its own: unwrap it.
        code = re.search(r"(?:os error |code: )(\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        reason = os.strerror(number) if code else str(error)
        raise OSError(number, reason, str(file)) from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
