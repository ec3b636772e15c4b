"""Tables of a battery: its parts at the end, and what can be measured before."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as RichTable

from evaluations.battery.feasibility import Answer
from evaluations.battery.plan import EvaluationJob
from sat_interp._util import escape
from sat_interp.engine.overview import duration


def summary(jobs: Sequence[EvaluationJob]) -> RichTable:
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
