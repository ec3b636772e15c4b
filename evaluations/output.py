"""What a command prints and writes at its end: tables first, then files, then figures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluations.core.options import Request
from evaluations.core.outcome import Outcome
from evaluations.core.record import Record
from evaluations.core.spec import Spec
from evaluations.tables import Table, draw, show, stem
from evaluations.tables import write as write_tables
from evaluations.tables.terminal import WIDTH
from sat_interp._util import escape
from sat_interp._util.errors import UserError

log = logging.getLogger(__name__)


def console() -> Console:
    """Return standard output, 100 columns wide where that is a file or a pipe."""
    made = Console()
    if not made.is_terminal:
        made.width = WIDTH
    return made


def say(shown: Console, line: str) -> None:
    """Print a line as it is, whatever names are in it."""
    shown.print(escape.terminal(line), highlight=False, soft_wrap=True)


def finish(spec: Spec, request: Request, outcome: Outcome, records_only: bool = False) -> None:
    """Print the tables of the records, write them, draw the figures; then name what failed.

    A figure that fails costs no table, and no model the figure of the others. With
    ``records_only`` tables are printed and not written, and figures are not drawn.

    Raises:
        UserError: one line that names the models and figures that failed.
        OSError: the tables cannot be written; they have been printed.
    """
    shown, failures = console(), list[str]()
    if outcome.records:
        for line in _optional(spec, "warnings", outcome.records):
            log.warning("%s", line)
        tables = spec.report.tables(outcome.records)
        show(tables, shown)
        for line in _counts(outcome, request):
            say(shown, line)
        written, failures = write(spec, request, outcome.records, tables, records_only)
        if written:
            say(shown, f"tables and figures in {request.out}: {_first(written)}")
    try:
        outcome.raise_failures()
    except UserError as error:
        failures = [str(error), *failures]
    if failures:
        raise UserError("; ".join(failures))


def write(
    spec: Spec,
    request: Request,
    records: Sequence[Record],
    tables: Sequence[Table],
    records_only: bool = False,
) -> tuple[list[Path], list[str]]:
    """Write the tables, figures and other files of the records.

    With ``records_only`` no tables and figures, only the files that belong to the records.

    Returns:
        The files, and a line for each figure that failed.
    """
    report, out, name = spec.report, request.out, stem(spec.name, records)
    written, drawn, failures = list[Path](), list[Path](), list[str]()
    if not records_only:
        written += write_tables(tables, out, name)
        drawn, failures = draw.write(report.FIGURES, records, out, name)
    written += report.files(records, out, name)
    try:
        drawn += _optional(spec, "pages", records, request)
    except Exception as error:
        failures.append(f"page: not written ({draw.reason_of(error)})")
    return [*written, *drawn], failures


def _optional(spec: Spec, name: str, *arguments: Any) -> list[Any]:
    """Call a function of the report module, where it has one of that name."""
    function = getattr(spec.report, name, None)
    return function(*arguments) if function else []


def _counts(outcome: Outcome, request: Request) -> list[str]:
    """Return how many records there are, how many were read, how many were measured again."""
    n, again = len(outcome.records), outcome.renewed
    kept = f" ({outcome.skipped} were there already; --force measures them again)"
    lines = [f"{n} record{'s' * (n != 1)} in {request.out}{kept if outcome.skipped else ''}"]
    if again:
        them = "1 was" if again == 1 else f"{again} were"
        reason = "the record was of an older version of this evaluation"
        lines.append(f"{them} measured again: {reason}")
    return lines


def _first(written: list[Path]) -> str:
    """Return the names of the files to open: the tables, and the first figure or page."""
    tables = [path for path in written if path.suffix == ".md"]
    pages = [path for path in written if path.suffix == ".html"]
    figures = [path for path in written if path.suffix == ".png"]
    chosen = [*tables[:1], *(pages or figures)[:1]]
    more = len(written) - len(chosen)
    return ", ".join(path.name for path in chosen) + (f", and {more} more" if more else "")
