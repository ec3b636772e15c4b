"""How a battery is shown: one overview while it runs, one table at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from evaluations.battery.run import Job
from sat_interp._util import escape


@contextmanager
def overview(jobs: Sequence[Job]) -> Iterator[Callable[[Job], None]]:
    """A line for each part on the terminal; nothing at all where stderr is none.

    Yields:
        What to call when a job begins or ends.
    """
    console = Console(file=sys.stderr)  # this one, also while a part's output is redirected
    progress = Progress(
        SpinnerColumn(finished_text=" "), TextColumn("{task.description:8}"), TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"), console=console, disable=not console.is_terminal,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    tasks: dict[str, TaskID] = {
        job.name: progress.add_task(job.name, start=False, total=1, state=_told(job))
        for job in jobs
    }

    def update(job: Job) -> None:
        task = tasks[job.name]
        if job.state == "running":
            progress.start_task(task)
        progress.update(task, state=_told(job), completed=int(job.state in ("done", "failed")))

    with progress:
        yield update


def summary(jobs: Sequence[Job]) -> RichTable:
    """What became of each part."""
    table = RichTable(title="Battery", title_justify="left")
    table.add_column("Part", no_wrap=True)
    for heading in ("Models", "Time", "estimated"):
        table.add_column(heading, justify="right")
    table.add_column("State", overflow="fold")
    for job in jobs:
        estimate = "?" if job.estimate is None else duration(job.estimate)
        estimate += ", rough" if job.is_rough and job.estimate else ""
        state = f"failed: {job.reason}" if job.reason else job.state
        cells = (job.name, str(len(job.models)), duration(job.seconds), estimate)
        table.add_row(*cells, escape.terminal(state))
    return table


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _told(job: Job) -> str:
    if job.state in ("waiting", "running"):
        estimate = "" if job.estimate is None else f" (about {duration(job.estimate)} in all)"
        return f"{job.state}{estimate}"
    return job.state
