"""The local engines: jobs in processes of their own, several in parallel, or in this process."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sat_interp._util.files import write_atomically
from sat_interp.engine.job import Command, End, Job
from sat_interp.engine.parent import PARENT
from sat_interp.engine.run import POLL
from sat_interp.engine.warm import Fork, WarmProcess, can_fork

DEVICES = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs that a process sees; torch for AMD's GPUs reads it, too."""
Process = subprocess.Popen[bytes] | Fork
"""What runs a command: a fresh process, or a fork of one that has imported what it needs."""


@dataclass(frozen=True)
class _Child:
    """A running job."""

    job: Job
    process: Process
    log: Path
    device: str | None


class LocalEngine:
    """Processes of this machine, each with its share of the cores.

    The processes end with this one, even if it is killed. Where the system can fork, they are forks
    of one process that has imported what the first command needs. On a machine with several GPUs
    they are fresh processes, and each sees one GPU, the one with the smallest load.

    Args:
        n_processes: number of parallel processes.
        logs: directory of the jobs' output, ``<log name>.log``.
        gpus: the GPUs to hand out, as in ``CUDA_VISIBLE_DEVICES``; by default those of the machine.
    """

    def __init__(
        self, n_processes: int, logs: str | Path, gpus: Sequence[str] | None = None
    ) -> None:
        self.n_processes, self.logs, self._gpus = n_processes, Path(logs), gpus
        self._children: list[_Child] = []
        self._warm: WarmProcess | None = None

    @functools.cached_property
    def gpus(self) -> Sequence[str]:
        """The GPUs to hand out."""
        return visible_gpus() if self._gpus is None else self._gpus

    def has_room(self, job: Job) -> bool:
        """Whether a further process is allowed."""
        return len(self._children) < self.n_processes

    def start(self, job: Job) -> None:
        """Start the job's process."""
        device = self._free_device() if len(self.gpus) > 1 and job.resources.gpus else None
        log = self.logs / f"{job.log_name}.log"
        command = job.command()
        log.parent.mkdir(parents=True, exist_ok=True)
        if job.attempts <= 1:
            log.write_bytes(b"")
        process = self._process(command, log, device)
        self._children.append(_Child(job, process, log, device))

    def ended(self) -> list[tuple[Job, End]]:
        """Return the jobs whose processes have ended."""
        codes = [(child, child.process.poll()) for child in self._children]
        over = [(child, code) for child, code in codes if code is not None]
        if not over:
            time.sleep(POLL)
        for child, _ in over:
            self._children.remove(child)
        return [(child.job, end_of(code, child.log)) for child, code in over]

    def close(self) -> None:
        """End the processes that still run."""
        for child in self._children:
            if isinstance(child.process, subprocess.Popen):
                child.process.terminate()
                child.process.wait()
        self._children.clear()
        self._close_warm()

    def _close_warm(self) -> None:
        """End the process whose forks are commands, and its forks."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def _process(self, command: Command, log: Path, device: str | None) -> Process:
        """Start a command whose output is appended to a log."""
        line = command_line(command, log.with_suffix(".json"))
        environment = child_environment(threads(self.n_processes), device)
        if command.imports and device is None and can_fork():
            if self._warm is not None and not self._warm.is_alive():
                self._close_warm()
            if self._warm is None:
                self._warm = WarmProcess(command.imports, environment)
            return self._warm.start(line[2:], log, Path.cwd())
        with open(log, "ab") as file:
            return subprocess.Popen(line, stdout=file, stderr=file, env=environment)

    def _free_device(self) -> str:
        """Return the GPU with the smallest load."""
        load = dict.fromkeys(self.gpus, 0.0)
        for child in self._children:
            if child.device is not None:
                load[child.device] += child.job.resources.gpus
        return min(load, key=lambda gpu: load[gpu])


class HereEngine:
    """Jobs that are run by a function of this process.

    Args:
        perform: runs a job; returns the reason of its failure, empty if it did not fail.
    """

    def __init__(self, perform: Callable[[Job], str]) -> None:
        self.perform = perform
        self._job: Job | None = None

    def has_room(self, job: Job) -> bool:
        """Whether no other job is started."""
        return self._job is None

    def start(self, job: Job) -> None:
        """Take the job; it is run when its end is asked for."""
        self._job = job

    def ended(self) -> list[tuple[Job, End]]:
        """Run the job to its end."""
        job, self._job = self._job, None
        return [] if job is None else [(job, End(self.perform(job)))]

    def close(self) -> None:
        """Nothing runs beside this process."""


def command_line(command: Command, config: Path) -> list[str]:
    """Return the arguments of a process; the command's options are written to ``config``."""
    more = []
    if command.config is not None:
        write_atomically(config, json.dumps(dict(command.config), indent=1))
        more = ["--config", str(config)]
    return [sys.executable, "-m", command.module, *command.arguments, *more]


def child_environment(n_threads: int, device: str | None = None) -> dict[str, str]:
    """Return the environment of a job's process."""
    own = {
        "OMP_NUM_THREADS": str(n_threads),
        "MKL_NUM_THREADS": str(n_threads),
        "PYTHONSAFEPATH": "1",  # a torch.py in the working directory is not imported
        PARENT: str(os.getpid()),
    }
    return {**os.environ, **own, **({} if device is None else {DEVICES: device})}


def end_of(code: int, log: Path) -> End:
    """Return how a process ended: the reason is the last error in its log."""
    if code == 0:
        return End()
    if code < 0:
        return End(f"ended by signal {-code}; its log is {log}", is_final=False)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == 2 and errors:
        return End(errors[-1])
    return End(f"ended with code {code}; its log is {log}", is_final=False)


def threads(n_processes: int) -> int:
    """Return the threads of one of ``n_processes`` children: its share of the cores.

    A number in ``OMP_NUM_THREADS`` is the most that a child gets.
    """
    return limited(max(1, _cores() // n_processes))


def limited(share: int) -> int:
    """Return a number of threads, or what ``OMP_NUM_THREADS`` allows if that is less."""
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine, or those of them that ``CUDA_VISIBLE_DEVICES`` names."""
    if (named := os.environ.get(DEVICES)) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    if not torch.accelerator.is_available():
        return []
    return [str(index) for index in range(torch.accelerator.device_count())]


def _cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
