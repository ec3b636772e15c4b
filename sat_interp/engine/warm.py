"""Commands in forks of a process that has imported what they need: imports take longer than jobs.

A worker of a cluster keeps one such process. It is asked for a command, forks, and tells how the
fork ended; a fork is a process as a fresh one is, with its own log, directory and exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sat_interp.engine.local import PARENT

WAIT = 0.1
"""Seconds between two looks at a command that runs."""
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable by which torch looks for GPUs without opening them: forks could not."""


class WarmProcess:
    """A process that has imported modules, and runs commands in forks of itself, one at a time.

    It ends with the process that made it, and the command that it runs ends with it.

    Args:
        imports: names of the modules.
        environment: its whole environment, and that of the commands.
    """

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        self.made_for = _made_for(imports, environment)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={NVML: "1", **environment},
            text=True,
        )
        self._orders: Any = self._process.stdin
        self._reports: Any = self._process.stdout

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run ``python -m`` with these arguments in the log's directory; return the exit code.

        As of a subprocess, it is negative where a signal ended the command, or this process.
        """
        order = {"arguments": list(arguments), "log": str(log)}
        with suppress(BrokenPipeError):
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
        report = self._reports.readline()
        return int(report) if report.strip() else min(self._process.wait(), -signal.SIGKILL)

    def is_for(self, imports: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether it runs, with these modules and this environment."""
        return self._process.poll() is None and self.made_for == _made_for(imports, environment)

    def close(self) -> None:
        """End it."""
        for pipe in (self._orders, self._reports):
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()


_kept: list[WarmProcess] = []
"""The one of this process, if any."""


def run_warm(
    arguments: Sequence[str], imports: Sequence[str], environment: Mapping[str, str], log: Path
) -> int:
    """Run a command in a fork of the process that this one keeps; return the exit code.

    The process is kept until a command needs other modules or another environment.
    """
    if not _kept or not _kept[0].is_for(imports, environment):
        while _kept:
            _kept.pop().close()
        _kept.append(WarmProcess(imports, environment))
    return _kept[0].run(arguments, log)


def can_fork() -> bool:
    """Whether this system has forks."""
    return hasattr(os, "fork")


def _made_for(imports: Sequence[str], environment: Mapping[str, str]) -> tuple[Any, ...]:
    return tuple(imports), dict(environment)


def main() -> None:
    """Import modules, then run commands that are read from stdin, until it is closed."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no report
    gc.disable()
    for name in sys.argv[1:]:
        with suppress(ImportError):  # the command says what is missing
            importlib.import_module(name)
    gc.freeze()  # a fork's collections would go through, and copy, all that was imported
    gc.enable()
    for line in iter(sys.stdin.readline, ""):
        sys.stdout.flush()
        with warnings.catch_warnings():  # libraries have threads of their own; none of them works
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            reports.close()
            _become(json.loads(line))
            return
        reports.write(f"{_wait(child)}\n")
        reports.flush()


def _wait(child: int) -> int:
    """Return the exit code of a child; end it, and this process, if the one that asked is gone."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if select.select([0], [], [], WAIT)[0]:  # nothing is sent meanwhile: this is its end
            os.kill(child, signal.SIGKILL)
            sys.exit(1)


def _become(order: Mapping[str, Any]) -> None:
    """Run a command as if Python had been started with it."""
    module, *arguments = order["arguments"]
    for path, flags, target in (
        (os.devnull, os.O_RDONLY, 0),
        (order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, target)
        os.close(opened)
    os.dup2(1, 2)
    os.chdir(Path(order["log"]).parent)
    os.environ[PARENT] = str(os.getppid())
    if _has_opened_gpus():
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _has_opened_gpus() -> bool:
    """Whether an import opened the GPUs, so that a fork cannot use them."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


if __name__ == "__main__":
    main()
