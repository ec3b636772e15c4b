"""What a command prints and writes at its end: tables first, then files, then figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from evaluations.core.outcome import Outcome
from evaluations.core.record import Record
from evaluations.tables.drawing import Draw, draw_figures
from evaluations.tables.tables import Layout, rich_table
from sat_interp._util import escape
from sat_interp._util.errors import UserError


def console(width: int = 130) -> Console:
    """Standard output; ``width`` columns where that is a file or a pipe, which has no edge."""
    made = Console()
    if not made.is_terminal:
        made.width = width
    return made


def say(shown: Console, line: str) -> None:
    """Print a line as it is, whatever names are in it."""
    shown.print(escape.terminal(line), highlight=False, soft_wrap=True)


def finish(
    outcome: Outcome,
    layouts: Sequence[Layout],
    out: str,
    write: Callable[[Sequence[Record]], list[Path]],
    figures: Mapping[str, Draw],
    label: Callable[[Sequence[Record]], Sequence[Record]] = list,
) -> None:
    """Print the tables of what went well, write them, draw the figures; then say what failed.

    A figure that fails costs no table, and no model the figure of the others.

    Args:
        write: writes tables and other files of the records.
        figures: by what they show.
        label: gives records the names under which tables show them.

    Raises:
        UserError: one line that names the models and figures that failed.
        OSError: the tables cannot be written; they have been printed.
    """
    shown, failures = console(), list[str]()
    if outcome.records:
        named = label(outcome.records)
        for layout in layouts:
            shown.print(rich_table(layout, named))
        kept = f" ({outcome.skipped} were there already; --force runs them again)"
        count = f"{len(outcome.records)} record{'s' * (len(outcome.records) != 1)}"
        say(shown, f"{count} in {out}{kept if outcome.skipped else ''}")
        if outcome.renewed:
            them = "1 was" if outcome.renewed == 1 else f"{outcome.renewed} were"
            why = "the record was of an older version of this evaluation"
            say(shown, f"{them} measured again: {why}")
        written = write(outcome.records)
        drawn, failures = draw_figures(figures, outcome.records)
        if written or drawn:
            say(shown, f"tables and figures: {', '.join(map(str, [*written, *drawn]))}")
    try:
        outcome.raise_failures()
    except UserError as error:
        failures = [str(error), *failures]
    if failures:
        raise UserError("; ".join(failures))
