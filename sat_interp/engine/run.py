"""Run jobs with an engine: order, attempts, and claims against other drivers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from sat_interp._util.errors import UserError, system_reason
from sat_interp._util.files import file_name
from sat_interp.engine.job import End, Engine, Job

ATTEMPTS = 3
"""Attempts of a job whose process or machine was lost."""
POLL = 0.2
LOCKS = ".running"
"""Directory of the locks, beside what the jobs write."""


class Claims:
    """Locks of the jobs that this driver runs; they end with its process, however it ends.

    Two drivers on one directory share the jobs: each runs those that the other has not claimed, and
    looks again at the others once they are free.

    Args:
        directory: directory that both drivers write to.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory) / LOCKS
        self._held: dict[str, list[FileLock]] = {}

    def take(self, job: Job) -> bool:
        """Lock all claims of a job, or none; return whether they are locked."""
        taken: list[FileLock] = []
        for name in job.claims:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path(name))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                for one in taken:
                    one.release()
                return False
            taken.append(lock)
        self._held[job.name] = taken
        return True

    def give_back(self, job: Job) -> None:
        """Unlock the claims of a job."""
        for lock in self._held.pop(job.name, ()):
            lock.release()

    def is_held(self, name: str) -> bool:
        """Whether a driver, this or another, holds a claim."""
        path = self.path(name)
        if not path.exists():
            return False
        try:
            with FileLock(path).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def path(self, name: str) -> Path:
        """The file of a claim."""
        return self.directory / f"{file_name(name)}.lock"


def run(
    jobs: Sequence[Job],
    engine: Engine,
    claims: Claims,
    update: Callable[[Job], None] = lambda job: None,
) -> None:
    """Run all jobs, the longest first; a job that fails stops no other.

    An attempt that was lost (its process killed, its machine gone) is repeated, three attempts in
    all. The engine is closed at the end.

    Args:
        jobs: the jobs; their states are updated.
        engine: what runs them.
        claims: the locks against other drivers.
        update: called when a job starts and when it ends.
    """
    started: dict[str, float] = {}
    try:
        while any(job.state in ("waiting", "running") for job in jobs):
            for job in _ready(jobs):
                if engine.has_room(job) and claims.take(job):
                    started[job.name] = time.perf_counter()
                    _start(job, engine, claims, update)
            if not any(job.state == "running" for job in jobs):
                time.sleep(POLL)  # all that is left is claimed by another driver, or has no room
                continue
            for job, end in engine.ended():
                job.seconds += time.perf_counter() - started[job.name]
                claims.give_back(job)
                _finish(job, end)
                update(job)
    finally:
        engine.close()
        for job in jobs:
            claims.give_back(job)


def _ready(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that can start, the longest first; of unknown times in their order."""
    unfinished = {job.name for job in jobs if job.state in ("waiting", "running")}
    ready = [job for job in jobs if job.state == "waiting" and unfinished.isdisjoint(job.after)]
    return sorted(ready, key=lambda job: -(job.estimate or 0.0))


def _start(job: Job, engine: Engine, claims: Claims, update: Callable[[Job], None]) -> None:
    job.state = "running"
    job.attempts += 1
    try:
        end = engine.start(job)
    except (UserError, OSError) as error:
        end = End(system_reason(error) if isinstance(error, OSError) else str(error))
    if end is not None:
        claims.give_back(job)
        _finish(job, end)
    update(job)


def _finish(job: Job, end: End) -> None:
    job.reason = end.reason
    if not end.reason:
        job.state = "done"
    elif end.is_final or job.attempts >= ATTEMPTS:
        job.state = "failed"
        if job.attempts > 1:
            job.reason += f" ({job.attempts} attempts)"
    else:
        job.state = "waiting"
