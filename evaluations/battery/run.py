"""Run a battery: each evaluation in its own process, several in parallel.

Each process is a command of ``sat-eval`` for all models. It skips existing records, so a battery
that was killed is resumed by the same command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from evaluations.battery.plan import Job
from sat_interp._util.errors import UserError

POLL = 0.2
PARENT = "SAT_EVAL_PARENT"
"""Environment variable with the id of the battery's process; its commands end with it."""


@dataclass(frozen=True)
class _Child:
    """A running job."""

    job: Job
    process: subprocess.Popen[bytes]
    log: TextIO
    started: float


def run(
    jobs: Sequence[Job],
    n_processes: int,
    logs: Path,
    update: Callable[[Job], None] = lambda job: None,
) -> None:
    """Run jobs ``n_processes`` at a time, the longest first; a failure does not stop other jobs.

    Each process uses its share of the cores. The processes end with this one, even if it is killed.

    Args:
        jobs: the jobs.
        n_processes: number of parallel processes.
        logs: directory of the jobs' output, ``logs/<evaluation>.log``.
        update: called when a job starts and when it ends.
    """
    children: list[_Child] = []
    try:
        while children or _next(jobs) is not None:
            while len(children) < n_processes and (job := _next(jobs)) is not None:
                children.append(_start(job, n_processes, logs))
                update(job)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                _finish(child, logs)
                update(child.job)
            time.sleep(POLL)
    finally:
        for child in children:
            child.process.terminate()
            child.process.wait()
            child.log.close()


def raise_failures(jobs: Sequence[Job]) -> None:
    """Raise an error if a job failed.

    Raises:
        UserError: one line with each job that failed, and the reason.
    """
    failed = [f"{job.title}: {job.reason}" for job in jobs if job.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} parts failed: {'; '.join(failed)}")


def end_with_parent() -> None:
    """End this process when the battery that started it ends, even if it is killed.

    The battery's process id is in the environment, since ``os.getppid`` is already another process
    if the battery was killed while this process started.
    """
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _start(job: Job, n_processes: int, logs: Path) -> _Child:
    threads = str(_threads(n_processes))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONSAFEPATH": "1",  # a torch.py in the working directory is not imported
        PARENT: str(os.getpid()),
    }
    logs.mkdir(parents=True, exist_ok=True)
    log = open(logs / f"{job.title}.log", "w", encoding="utf-8")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluations.cli", *job.arguments],
        stdout=log,
        stderr=log,
        env=environment,
    )
    job.state = "running"
    return _Child(job, process, log, time.perf_counter())


def _finish(child: _Child, logs: Path) -> None:
    child.log.close()
    job = child.job
    job.seconds = time.perf_counter() - child.started
    job.reason = _reason(child.process.returncode, logs / f"{job.title}.log")
    job.state = "failed" if job.reason else "done"


def _next(jobs: Sequence[Job]) -> Job | None:
    """Return the longest job that can start; None if there is none."""
    open_jobs = {job.name for job in jobs if job.state in ("waiting", "running")}
    ready = [job for job in jobs if job.state == "waiting" and job.spec.after not in open_jobs]
    return max(ready, key=lambda job: job.estimate or 0.0, default=None)


def _reason(code: int, log: Path) -> str:
    """Return why a process failed: the last error in its log; empty if it did not fail."""
    if code == 0:
        return ""
    if code < 0:
        return f"ended by signal {-code}; its log is {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if code == 2 and errors else f"ended with code {code}; its log is {log}"


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _threads(n_processes: int) -> int:
    """Return the threads of one of ``n_processes`` children: its share of the cores.

    A number in ``OMP_NUM_THREADS`` is the most that a child gets.
    """
    share = max(1, _cores() // n_processes)
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def _cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
