"""``sat-eval report``: the report of a directory, printed and written."""

from __future__ import annotations

from pathlib import Path

from evaluations.comparison.collection import Report, write_figures, write_report
from evaluations.comparison.options import ReportOptions
from evaluations.output import console, say
from evaluations.tables import show
from sat_interp._util.errors import UserError


def report(out: str = "results", study: str | None = None, paper_values: bool = False) -> Report:
    """Return the report of the records below a directory; nothing is printed or written.

    Args:
        out: the directory.
        study: a study's file: only its runs are shown, and all of them.
        paper_values: show the paper's own values beside.

    Raises:
        UserError: there is no record, or no such study.
    """
    return Report.of(Path(out), study, paper_values)


def print_report(options: ReportOptions) -> list[Path]:
    """Print the tables of a report, and write them with figures and a page.

    Returns:
        The files written.

    Raises:
        UserError: there is no record; or, when all else has been written, what was left out.
    """
    made = report(options.out, options.study, options.paper_values)
    out, shown = Path(options.out) / "report", console()
    show(made.tables, shown)
    for line in made.notes:
        say(shown, line)
    written = write_report(made, out)
    drawn, failures = write_figures(made, out)
    say(shown, f"in {out}: report.html, report.md, and {len(written) + len(drawn) - 2} more")
    if left_out := [*(f"left out: {one}" for one in made.left_out), *failures]:
        raise UserError("; ".join(left_out))
    return [*written, *drawn]
