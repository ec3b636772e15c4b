"""Directory of a run: its settings, its log, its summary."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sat_interp._util.errors import UserError
from sat_interp._util.files import expanded, write_atomically
from sat_interp._util.provenance import provenance
from sat_interp._util.reading import UnreadableError, read_json, read_object
from sat_interp.data.sources import absolute_paths
from sat_interp.training.config import TrainConfig, first_difference
from sat_interp.training.facts import check_log, check_summary, read_lines
from sat_interp.training.state import checkpoints, clear_leftovers

logger = logging.getLogger(__name__)


class RunDirectory:
    """Files of a run and who may write them.

    ``config.json``, ``log.jsonl``, ``loss.png``, ``summary.json``, ``checkpoints/``,
    ``tokenizer/``, ``model/`` (the last weights) and ``best/`` (lowest clean validation loss).

    Args:
        out: the directory; made by :meth:`claim`.
        writes: whether this process is the one that writes.
    """

    def __init__(self, out: str | Path, writes: bool = True) -> None:
        self.path = expanded(out)
        self.writes = writes
        self.config, self.log = self.path / "config.json", self.path / "log.jsonl"
        self.summary, self.figure = self.path / "summary.json", self.path / "loss.png"
        self.checkpoints, self.tokenizer = self.path / "checkpoints", self.path / "tokenizer"
        self.model, self.best = self.path / "model", self.path / "best"

    @contextmanager
    def claim(self, config: TrainConfig, world: int) -> Iterator[None]:
        """Reserve the directory for this run; no other process may use it meanwhile.

        Raises:
            UserError: it holds another run, other settings, a run while ``resume`` is off, or
                something else; or another process is at work in it.
        """
        if not self.writes:
            yield
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out {self.path} is a file: name a directory")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make directory {self.path}: {error.strerror}") from error
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another process is training in {self.path}: wait for it") from None
        try:
            settings = {**config.identity(), "processes": world}
            self._refuse_foreign()
            clear_leftovers(self.path)
            if self._has_begun():
                self._check(settings, config.resume)
            else:
                # An attempt that failed before its first result must not block the next one; its
                # tokenizer may be of other data.
                shutil.rmtree(self.tokenizer, ignore_errors=True)
                write_atomically(
                    self.config,
                    _json({"config": config.to_dict(), **provenance(), "settings": settings}),
                )
            yield
        finally:
            lock.release()

    def finished(self, whole: bool = False) -> dict[str, Any] | None:
        """The summary of a run that has ended, else None.

        ``whole``: with every field a run writes; else it must only tell the best perplexity. A
        damaged one is named in a warning: the run then continues from its last checkpoint, at its
        end, and writes the summary again.
        """
        if not self.summary.exists():
            return None
        try:
            return check_summary(read_json(self.summary), whole)
        except ValueError as error:
            logger.warning("%s is damaged (%s): it will be written again", self.summary, error)
            return None

    def check(self, config: TrainConfig) -> None:
        """Do nothing if the directory is free for this run, or holds it.

        Raises:
            UserError: it holds another run, other settings, or something else.
        """
        if self.path.exists():
            self._refuse_foreign()
            if self._has_begun():
                self._check({**config.identity(), "processes": 1}, resume=True)

    def checkpointed_inputs(self) -> dict[str, Any]:
        """Hashes of the data in the newest checkpoint; empty where there is none."""
        kept = checkpoints(self.checkpoints)
        inputs = read_object(kept[-1] / "state.json").get("inputs") if kept else None
        return inputs if isinstance(inputs, dict) else {}

    def check_log(self, size: int) -> None:
        """Do nothing if the first ``size`` bytes of the log are lines of a log.

        Raises:
            ValueError: they are not.
        """
        if self.writes and self.log.exists():
            with open(self.log, "rb") as file:
                check_log(file.read(size))

    def cut_log(self, size: int) -> None:
        """Cut the log to its first ``size`` bytes."""
        if not self.writes:
            return
        with open(self.log, "ab") as file:
            if file.tell() < size:
                logger.warning("%s is shorter than at the checkpoint", self.log)
            else:
                file.truncate(size)

    def write_log(self, line: dict[str, Any]) -> None:
        """Append one line."""
        if self.writes:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def log_size(self) -> int:
        """Bytes in the log, after they are synced to the disk."""
        if not self.writes or not self.log.exists():
            return 0
        with open(self.log, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary of the finished run."""
        if self.writes:
            write_atomically(self.summary, _json(summary))

    def _refuse_foreign(self) -> None:
        for path in (self.config, self.log, self.summary):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file: name another directory")
        if self.config.exists():
            is_ours = isinstance(_read(self.config).get("settings"), dict)
        else:
            is_ours = all(path.name.startswith(".") for path in self.path.iterdir())
        if not is_ours:
            raise UserError(
                f"{self.path} is not empty and does not hold a run of sat-train: "
                "name another directory"
            )

    def _has_begun(self) -> bool:
        """Whether the run, or a trial in it, has a result."""
        if self.summary.exists() or self.best.exists() or checkpoints(self.checkpoints):
            return True
        trials = self.path / "trials"
        return trials.is_dir() and any(RunDirectory(out)._has_begun() for out in trials.iterdir())

    def _check(self, settings: dict[str, Any], resume: bool) -> None:
        before = _read(self.config)["settings"]
        # Runs of before paths were made absolute have them as they were given.
        difference = first_difference({**before, **absolute_inputs(before)}, settings)
        if difference:
            raise UserError(
                f"{self.path} holds a run with other settings, first {difference}: name "
                "another directory, or the same settings and --resume"
            )
        if not resume:
            raise UserError(
                f"{self.path} already holds this run: pass --resume to continue it, or name "
                "another directory"
            )


def absolute_inputs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Data, validation data, tokenizer and initial model of a run, their paths made absolute.

    Names of datasets and of tokenizers are left as they are.
    """
    named = {name: settings.get(name) for name in ("data", "validation", "tokenizer")}
    given = {name: value for name, value in named.items() if isinstance(value, str)}
    absolute = {name: absolute_paths(value) for name, value in given.items() if name != "tokenizer"}
    tokenizer = given.get("tokenizer", "")
    directory = os.path.expanduser(tokenizer)
    if tokenizer != "gpt2" and os.path.isdir(directory):
        absolute["tokenizer"] = os.path.abspath(directory)
    initial = os.path.expanduser(str(settings.get("init") or ""))
    if os.path.exists(initial):
        absolute["init"] = os.path.abspath(initial)
    return absolute


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; damaged ones are left out and counted in a warning."""
    if not path.exists():
        return []
    lines, damaged = read_lines(path.read_bytes())
    if damaged:
        logger.warning("%s: %d damaged lines are left out", path, damaged)
    return lines


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UnreadableError as error:
        raise UserError(f"{path} is damaged ({error}): name another directory") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what sat-train wrote: name another directory")
    return content
