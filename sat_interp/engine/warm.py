"""Commands in forks of a process that has imported what they need: imports take longer than jobs.

A worker of a cluster keeps one such process, and so does the engine of this machine. It is asked
for a command, forks, and tells how the fork ended; a fork is a process as a fresh one is, with its
own log, directory and exit code.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_interp.engine.parent import PARENT, end_with_parent

WAIT = 0.1
"""Seconds between two looks at the commands that run."""
GRACE = 2.0
"""Seconds in which a process that is no longer needed ends by itself, unless it still imports."""
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable by which torch looks for GPUs without opening them: forks could not."""


class WarmProcess:
    """A process that has imported modules, and runs commands in forks of itself.

    It ends with the process that made it, and the commands that it runs end with it.

    Args:
        imports: names of the modules.
        environment: its whole environment, and that of the commands.
    """

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        self.made_for = _made_for(imports, environment)
        self._codes: dict[int, int | None] = {}
        self._had_nvml = NVML in environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={NVML: "1", **environment, PARENT: str(os.getpid())},
            bufsize=0,  # what select() does not see is not there
        )
        self._orders: Any = self._process.stdin
        self._reports: Any = self._process.stdout

    def start(self, arguments: Sequence[str], log: Path, directory: Path) -> Fork:
        """Start ``python -m`` with these arguments.

        Args:
            arguments: a module and its arguments.
            log: file that its output is appended to.
            directory: its working directory.
        """
        number = len(self._codes)
        self._codes[number] = None
        order = {
            "number": number,
            "arguments": list(arguments),
            "log": str(log.absolute()),
            "directory": str(directory.absolute()),
            "nvml": self._had_nvml,
        }
        with suppress(BrokenPipeError):
            self._orders.write(json.dumps(order).encode() + b"\n")
        return Fork(self, number)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run ``python -m`` with these arguments in the log's directory; return the exit code."""
        return self.start(arguments, log, log.parent).wait()

    def code(self, number: int, wait: float | None = 0.0) -> int | None:
        """Return the exit code of a command; None while it runs.

        As of a subprocess, it is negative where a signal ended the command, or this process.

        Args:
            number: of the command, in the order of their starts.
            wait: seconds to wait for its end at most; None is as long as it takes.
        """
        while self._codes[number] is None:
            if not select.select([self._reports], [], [], wait)[0]:
                return None
            if report := self._reports.readline():
                ended, code = map(int, report.split())
                self._codes[ended] = code
            else:
                self._lose(min(self._process.wait(), -signal.SIGKILL))
        return self._codes[number]

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def is_for(self, imports: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether it runs, with these modules and this environment."""
        return self.is_alive() and self.made_for == _made_for(imports, environment)

    def close(self) -> None:
        """End it, and the commands that still run."""
        self._orders.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it still imports
            self._process.kill()
            self._process.wait()
        for number in self._codes:
            self.code(number)
        self._reports.close()
        self._lose(-signal.SIGKILL)

    def _lose(self, code: int) -> None:
        """Count the commands that still ran as ended with a code."""
        for number in [one for one, known in self._codes.items() if known is None]:
            self._codes[number] = code


@dataclass(frozen=True)
class Fork:
    """A command in a fork of a process, as ``subprocess.Popen`` is a command in a fresh one.

    Attributes:
        maker: the process.
        number: of the command, in the order of their starts.
    """

    maker: WarmProcess
    number: int

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self.maker.code(self.number)

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        code = self.maker.code(self.number, None)
        assert code is not None
        return code


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
    """Whether this system has forks, and its libraries work in them (those of macOS do not)."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def _made_for(imports: Sequence[str], environment: Mapping[str, str]) -> tuple[Any, ...]:
    return tuple(imports), dict(environment)


def main() -> None:
    """Import modules, then run commands that are read from stdin, until it is closed."""
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit codes away
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the commands get them, too
    reports = _own_output()
    are_whole = _import(sys.argv[1:])
    orders = open(0, "rb", 0, closefd=False)  # noqa: SIM115 - a fork has another 0
    maker, children = os.getpid(), dict[int, int]()
    try:
        while True:
            for number, code in _ended(children):
                reports.write(b"%d %d\n" % (number, code))
            if not select.select([orders], [], [], WAIT if children else None)[0]:
                continue
            line = orders.readline()
            if not line:
                return
            order = json.loads(line)
            try:
                child = _fork()
            except OSError as error:  # no memory, or no more processes: others go on
                with open(order["log"], "a") as log:
                    log.write(f"no process could be started: {error}\n")
                reports.write(b"%d 1\n" % order["number"])
                continue
            if not child:
                reports.close()
                signal.signal(signal.SIGINT, interrupts)
                _become(order, maker, are_whole)
                return
            children[order["number"]] = child
    finally:
        if os.getpid() == maker:
            for child in children.values():
                os.kill(child, signal.SIGKILL)


def _own_output() -> Any:
    """Return what was stdout; what an import prints goes to stderr, if there is one."""
    try:
        os.fstat(2)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    reports = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)
    return reports


def _import(names: Sequence[str]) -> bool:
    """Import modules; return whether all could be. A command that lacks one says why itself."""
    gc.disable()
    are_whole = True
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            are_whole = False
    gc.freeze()  # a fork's collections would go through, and copy, all that was imported
    gc.enable()
    return are_whole


def _fork() -> int:
    sys.stdout.flush()
    with warnings.catch_warnings():  # libraries have threads of their own; none of them works
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _ended(children: dict[int, int]) -> list[tuple[int, int]]:
    """Take the children that have ended out of a list; return their numbers and exit codes."""
    found = []
    for number, child in list(children.items()):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            found.append((number, os.waitstatus_to_exitcode(status)))
            del children[number]
    return found


def _become(order: Mapping[str, Any], maker: int, are_whole: bool) -> None:
    """Run a command as if Python had been started with it.

    Args:
        order: the command.
        maker: id of the process that this is a fork of.
        are_whole: whether all imports could be made; Python is indeed started where they could not.
    """
    module, *arguments = order["arguments"]
    for path, flags, target in (
        (os.devnull, os.O_RDONLY, 0),
        (order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, target)
        os.close(opened)
    os.dup2(1, 2)
    os.chdir(order["directory"])
    os.environ[PARENT] = str(maker)
    if not order["nvml"]:
        os.environ.pop(NVML, None)
    if not are_whole or _has_opened_gpus():
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    _seed()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _seed() -> None:
    """Seed the generators that would be the same in all forks, as a fresh process does."""
    if torch := sys.modules.get("torch"):
        torch.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def _has_opened_gpus() -> bool:
    """Whether an import opened the GPUs, so that a fork cannot use them."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


if __name__ == "__main__":
    main()
