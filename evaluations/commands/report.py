"""``sat-eval report``."""

from __future__ import annotations

from pathlib import Path


def report(
    out: str = "results", study: str | None = None, paper_values: bool = False
) -> list[Path]:
    """The paper's Tables 1 and 2 and its figures, from the records below a directory.

    Models that differ only in their training seed are one row: mean and 95 % interval, and the
    paired differences to the baseline and, of learned gates, to their controls. A single model has
    the interval over its own stories or neurons, where that was recorded. What a model has
    no record of is an empty cell that says which command fills it. Tables are printed and written
    as Markdown, LaTeX and CSV to OUT/report, figures beside them, all of it in one HTML page.

    Examples::

        sat-eval report
        sat-eval report --out results/demo-study --study studies/demo.yaml
        sat-eval report --out results/tinystories-slice --paper-values

    Args:
        out: directory with the records; other files in it, truncated and duplicate records are
            counted and passed over. A record with a field of a wrong type is left out and named,
            and so is a figure that fails: all else is written, and the exit code is 2.
        study: a study's file (sat-train --study): only its runs are shown, and all of them.
        paper_values: show the paper's own values beside.

    Returns:
        The files written.
    """
    from evaluations import tables
    from evaluations.commands.show import console, say
    from evaluations.comparison.collection import Report, write_figures, write_report
    from sat_interp._util.errors import UserError

    made = Report.of(Path(out), study, paper_values)
    shown = console()
    tables.show(made.tables, shown)
    for line in made.notes:
        say(shown, line)
    written = write_report(made, Path(out) / "report")
    drawn, failures = write_figures(made, Path(out) / "report")
    written += drawn
    names = ", ".join(dict.fromkeys(path.name for path in written))
    say(shown, f"in {Path(out) / 'report'}: {names}")
    if left_out := [*(f"left out: {one}" for one in made.left_out), *failures]:
        raise UserError("; ".join(left_out))
    return written
