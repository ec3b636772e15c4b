"""``sat-eval report``: the report of a directory, printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluations import tables
from evaluations.comparison.collection import Report
from evaluations.comparison.files import write
from evaluations.comparison.options import ReportOptions
from evaluations.output import console, say
from sat_interp._util.errors import UserError


def print_report(models: Sequence[str], options: ReportOptions) -> list[Path]:
    """Write a report, then print its summary and tables, so that a closed pipe loses no file.

    Args:
        models: names of models in the order of their rows; all by default.

    Returns:
        The files written.

    Raises:
        UserError: there is no record; or, when all else has been written, what was left out.
    """
    report = Report.of(models, options)
    out, shown = Path(options.out) / "report", console()
    written, failures = write(report, out)
    for answer in report.summary:
        say(shown, f"{answer.question} {answer.text}")
    say(shown, "")
    tables.show(report.tables, shown)
    for line in report.notes:
        say(shown, line)
    say(shown, f"{out}: open report.html or report.md ({len(written)} files)")
    if left_out := [*(f"left out: {one}" for one in report.left_out), *failures]:
        raise UserError("; ".join(left_out))
    return written
