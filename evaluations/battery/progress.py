"""Progress of a battery: an overview while it runs, and a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from evaluations.battery.feasibility import Answer
from evaluations.battery.plan import Job
from sat_interp._util import escape


@contextmanager
def overview(jobs: Sequence[Job]) -> Iterator[Callable[[Job], None]]:
    """Show an overview on a terminal; on other stderr a line when a job starts or ends.

    Yields:
        A function to call when a job starts or ends.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda job: _write_line(job, jobs)
        return
    progress = Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:8}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    tasks: dict[str, TaskID] = {
        job.title: progress.add_task(job.title, start=False, total=1, state=_state(job))
        for job in jobs
    }

    def update(job: Job) -> None:
        task = tasks[job.title]
        if job.state == "running":
            progress.start_task(task)
        progress.update(task, state=_state(job), completed=int(job.state in ("done", "failed")))

    with progress:
        yield update


def _write_line(job: Job, jobs: Sequence[Job]) -> None:
    if job.state == "running":
        estimate = "" if job.estimate is None else f", about {duration(job.estimate)}"
        waiting = sum(other.state == "waiting" for other in jobs)
        line = f"{job.title}: running{estimate}; {waiting} waiting"
    else:
        reason = f": {job.reason}" if job.reason else ""
        line = f"{job.title}: {job.state} in {duration(job.seconds)}{reason}"
    sys.stderr.write(escape.printable(line) + "\n")
    sys.stderr.flush()


def summary(jobs: Sequence[Job]) -> RichTable:
    """Return a table of the jobs with time and state."""
    table = RichTable(title="Battery", title_justify="left")
    table.add_column("Part", no_wrap=True)
    for heading in ("Models", "Time", "estimated"):
        table.add_column(heading, justify="right")
    table.add_column("State", overflow="fold")
    for job in jobs:
        estimate = "?" if job.estimate is None else duration(job.estimate)
        estimate += ", rough" if job.is_rough and job.estimate else ""
        state = f"failed: {job.reason}" if job.reason else job.state
        cells = (job.title, str(len(job.models)), duration(job.seconds), estimate)
        table.add_row(*cells, escape.terminal(state))
    return table


def answers_table(answers: Sequence[Answer]) -> RichTable:
    """Return a table of which evaluations can measure a model."""
    table = RichTable()
    for name in ("Evaluation", "Can run", "Budget, or what is missing", "Time on one core"):
        table.add_column(name)
    for answer in answers:
        seconds = "unknown" if answer.seconds is None else f"about {duration(answer.seconds)}"
        rough = " (extrapolated)" if answer.is_rough and answer.seconds is not None else ""
        table.add_row(
            answer.evaluation,
            "no" if answer.reason else "yes",
            escape.terminal(answer.reason or answer.budget),
            "" if answer.reason else seconds + rough,
        )
    return table


def duration(seconds: float) -> str:
    """Format a duration: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _state(job: Job) -> str:
    if job.state in ("waiting", "running"):
        estimate = "" if job.estimate is None else f" (about {duration(job.estimate)} in all)"
        return f"{job.state}{estimate}"
    return job.state
