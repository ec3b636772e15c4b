"""Overview of jobs while they run: the same text on a terminal and in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sat_interp._util import escape
from sat_interp.engine.job import Job

SHOWN = 12
"""Running jobs that are listed on a terminal."""


@contextmanager
def overview(jobs: Sequence[Job], n_parallel: int | None = None) -> Iterator[Callable[[Job], None]]:
    """Write a line to stderr when a job starts or ends; on a terminal the running ones below it.

    Args:
        jobs: the jobs.
        n_parallel: how many run at a time, for the time left; by default as many as run now.

    Yields:
        A function to call when a job starts or ends.
    """
    clock = _Clock(jobs, n_parallel)
    console = Console(file=sys.stderr)
    if not console.is_terminal:

        def write(job: Job) -> None:
            clock.note(job)
            sys.stderr.write(escape.printable(f"{event(job)}; {clock.text()}") + "\n")
            sys.stderr.flush()

        yield write
        return
    with Live(
        console=console,
        get_renderable=lambda: _running(jobs, clock),
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
    ) as live:

        def update(job: Job) -> None:
            clock.note(job)
            if job.state != "running":
                live.console.print(escape.terminal(event(job)), highlight=False)
            live.refresh()

        yield update


def event(job: Job) -> str:
    """Return what happened to a job: ``lm: done in 3 s``."""
    if job.state == "running":
        estimate = "" if job.estimate is None else f", about {duration(job.estimate)}"
        again = f", attempt {job.attempts}" if job.attempts > 1 else ""
        return f"{job.name}: running{estimate}{again}"
    if job.state == "waiting":
        return f"{job.name}: to be repeated: {job.reason}"
    if job.was_finished and not job.reason:
        return f"{job.name}: already done"
    reason = f": {job.reason}" if job.reason else ""
    return f"{job.name}: {job.state} in {duration(job.seconds)}{reason}"


def counts(jobs: Sequence[Job]) -> str:
    """Return ``4 of 12 done, 2 running, 1 failed``."""
    states = Counter(job.state for job in jobs if job.state != "nothing to do")
    failed = f", {states['failed']} failed" if states["failed"] else ""
    return f"{states['done']} of {states.total()} done, {states['running']} running{failed}"


def seconds_left(
    jobs: Sequence[Job], elapsed: Callable[[Job], float], n_parallel: int
) -> float | None:
    """Return the time until all jobs have ended, from what similar jobs took.

    A job of a kind of which some are done takes as long as these did, in proportion to the
    estimates where all have one. A kind of which none is done takes its estimate, corrected by how
    far the estimates of all done jobs were off.

    Args:
        jobs: the jobs.
        elapsed: seconds for which a job has been running.
        n_parallel: how many run at a time.

    Returns:
        Seconds; None while a job's time is unknown.
    """
    done = [job for job in jobs if job.state == "done" and not job.was_finished]
    by_kind: dict[str, list[Job]] = defaultdict(list)
    for job in done:
        by_kind[job.kind].append(job)
    ratio = _ratio(done) or 1.0
    left = []
    for job in jobs:
        if job.state not in ("waiting", "running"):
            continue
        whole = _expected(job, by_kind[job.kind], ratio)
        if whole is None:
            return None
        left.append(max(0.0, whole - elapsed(job)))
    return max([sum(left) / max(1, n_parallel), *left], default=0.0)


def _expected(job: Job, similar: Sequence[Job], ratio: float) -> float | None:
    """Return the time of a job from what similar ones took."""
    own = _ratio(similar)
    if own is not None and job.estimate is not None:
        return job.estimate * own
    if similar:
        return sum(one.seconds for one in similar) / len(similar)
    return None if job.estimate is None else job.estimate * ratio


def _ratio(done: Sequence[Job]) -> float | None:
    """Return the time that jobs took, in units of their estimates."""
    if not done or any(not job.estimate for job in done):
        return None
    return sum(job.seconds for job in done) / sum(job.estimate or 0.0 for job in done)


def duration(seconds: float) -> str:
    """Format a duration: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Clock:
    """When each running job was started."""

    def __init__(self, jobs: Sequence[Job], n_parallel: int | None) -> None:
        self.jobs, self.n_parallel = jobs, n_parallel
        self.started: dict[str, float] = {}

    def note(self, job: Job) -> None:
        """Take the time of a job that starts."""
        if job.state == "running":
            self.started[job.name] = time.monotonic()

    def elapsed(self, job: Job) -> float:
        """Seconds for which a job has been running; 0 if it is not."""
        if job.state != "running":
            return 0.0
        return time.monotonic() - self.started.get(job.name, time.monotonic())

    def text(self) -> str:
        """``4 of 12 done, 2 running, about 3 min left``."""
        running = sum(job.state == "running" for job in self.jobs)
        left = seconds_left(self.jobs, self.elapsed, self.n_parallel or running)
        time_left = f", about {duration(left)} left" if left else ""
        return counts(self.jobs) + time_left


def _running(jobs: Sequence[Job], clock: _Clock) -> Group:
    running = [job for job in jobs if job.state == "running"]
    lines = [f"{event(job)}, for {duration(clock.elapsed(job))}" for job in running[:SHOWN]]
    if len(running) > SHOWN:
        lines.append(f"and {len(running) - SHOWN} more")
    return Group(*(Text(escape.printable(line)) for line in [*lines, clock.text()]))
