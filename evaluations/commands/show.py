"""What a command prints and writes at its end: tables first, then files, then figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluations import tables
from evaluations.core.outcome import Outcome
from evaluations.tables.terminal import WIDTH
from sat_interp._util import escape
from sat_interp._util.errors import UserError


def console(width: int = WIDTH) -> Console:
    """Standard output; ``width`` columns where that is a file or a pipe, which has no edge."""
    made = Console()
    if not made.is_terminal:
        made.width = width
    return made


def say(shown: Console, line: str) -> None:
    """Print a line as it is, whatever names are in it."""
    shown.print(escape.terminal(line), highlight=False, soft_wrap=True)


def finish(outcome: Outcome, room: Any, out: str, pages: Mapping[str, Any] | None = None) -> None:
    """Print the tables of what went well, write them, draw the figures; then say what failed.

    A figure that fails costs no table, and no model the figure of the others.

    Args:
        room: the module of the evaluation's tables, figures and files.
        pages: further files, each written by a function of the records.

    Raises:
        UserError: one line that names the models and figures that failed.
        OSError: the tables cannot be written; they have been printed.
    """
    from evaluations.tables import draw

    shown, failures, records = console(), list[str](), outcome.records
    if records:
        made = room.tables(records)
        tables.show(made, shown)
        kept = f" ({outcome.skipped} were there already; --force runs them again)"
        count = f"{len(records)} record{'s' * (len(records) != 1)}"
        say(shown, f"{count} in {out}{kept if outcome.skipped else ''}")
        if outcome.renewed:
            them = "1 was" if outcome.renewed == 1 else f"{outcome.renewed} were"
            why = "the record was of an older version of this evaluation"
            say(shown, f"{them} measured again: {why}")
        stem = tables.stem(records[0].evaluation, records)
        written = [*tables.write(made, Path(out), stem), *room.files(records, Path(out), stem)]
        drawn, failures = draw.write(room.FIGURES, records, Path(out), stem)
        for name, write in (pages or {}).items():
            try:
                drawn.append(write(records))
            except Exception as error:
                failures.append(f"{name}: not written ({draw.reason_of(error)})")
        say(shown, f"tables and figures: {', '.join(map(str, [*written, *drawn]))}")
    try:
        outcome.raise_failures()
    except UserError as error:
        failures = [str(error), *failures]
    if failures:
        raise UserError("; ".join(failures))
