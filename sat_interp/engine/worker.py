"""What a cluster's worker does: fetch the inputs, run the command, send its files back."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sat_interp._util.files import default_cache
from sat_interp.engine.job import Command, End
from sat_interp.engine.local import child_environment, command_line, end_of
from sat_interp.engine.parcel import (
    Fetch,
    Parcel,
    collect,
    own_version,
    place,
    receive,
    translate,
    translate_config,
)
from sat_interp.engine.warm import can_fork, run_warm

LOG_TAIL = 1 << 20
"""Bytes of a log that are sent back."""
SENT = "sent"
"""File in the directory of a job whose files were sent back."""
KEPT = 24 * 3600.0
"""Seconds for which the directory of such a job is kept."""


@dataclass(frozen=True)
class Delivery:
    """What comes back from a worker.

    Attributes:
        end: how the command ended.
        files: content of each file by its path relative to the directory that was filled.
        log: what the command printed here since a log was last sent, the end of it.
        node: name of the machine.
    """

    end: End
    files: dict[str, bytes]
    log: bytes
    node: str


def perform(parcel: Parcel, fetch: Fetch) -> Delivery:
    """Run the command of a parcel in the cache's directory of this job.

    The directory is known by the job's key: an attempt that was lost is continued there, by any
    machine with the same cache. ``SAT_INTERP_CACHE`` on a shared file system makes that all of
    them.
    """
    node = socket.gethostname()
    if (version := own_version()) != parcel.version:
        reason = (
            f"{node} has sat-interp {version}, and this machine {parcel.version}: "
            "install the same version on every node"
        )
        return Delivery(End(reason), {}, b"", node)
    cache = default_cache()
    home = cache / "jobs" / parcel.key
    out, log = home / "out", home / "log"
    out.mkdir(parents=True, exist_ok=True)
    _clear(home.parent)
    with FileLock(home / ".lock"):
        (home / SENT).unlink(missing_ok=True)
        paths = place(parcel.trees, cache / "inputs", fetch)
        for name, digest in parcel.present.items():
            if not (out / name).exists():
                receive(out / name, digest, fetch, paths)
        end = _run(parcel, {**paths, parcel.out: str(out)}, home / "options.json", log)
        back = {here: there for there, here in paths.items()} | {str(out): parcel.out}
        delivery = Delivery(end, collect(out, parcel.keep, back), _taken(log), node)
        (home / SENT).touch()
        return delivery


def _run(parcel: Parcel, paths: dict[str, str], options: Path, log: Path) -> End:
    arguments = [translate(argument, paths) for argument in parcel.arguments]
    config = None if parcel.config is None else translate_config(parcel.config, paths)
    command = Command(parcel.module, arguments, config)
    line = command_line(command, options)
    environment = {**child_environment(parcel.n_threads), **parcel.environment}
    log.touch()
    if parcel.imports and can_fork():
        return end_of(run_warm(line[2:], parcel.imports, environment, log), log)
    with open(log, "ab") as file:
        done = subprocess.run(
            line, stdout=file, stderr=file, env=environment, cwd=log.parent, check=False
        )
    return end_of(done.returncode, log)


def _clear(jobs: Path) -> None:
    """Remove the directories of jobs whose files were sent back long ago."""
    for mark in jobs.glob(f"*/{SENT}"):
        try:
            is_old = time.time() - mark.stat().st_mtime > KEPT
        except OSError:  # another worker is at it
            continue
        if is_old:
            shutil.rmtree(mark.parent, ignore_errors=True)


def _taken(log: Path) -> bytes:
    """Return the end of a log, and remove the log."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
        content = file.read()
    log.unlink()
    return content
