"""What a command prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evaluations.report.tables import Layout, rich_table
from evaluations.runner import Outcome


def console() -> Console:
    """Standard output; 130 columns where that is a file or a pipe, which has no edge to wrap at."""
    made = Console()
    if not made.is_terminal:
        made.width = 130
    return made


def show(
    outcome: Outcome, layouts: Sequence[Layout], out: str, written: Sequence[Path] = ()
) -> None:
    """Print the tables of what went well; then fail, in one line, for what did not."""
    told = console()
    if outcome.records:
        for layout in layouts:
            told.print(rich_table(layout, outcome.records))
        kept = f" ({outcome.skipped} were there already; --force runs them again)"
        count = f"{len(outcome.records)} record{'s' * (len(outcome.records) != 1)}"
        told.print(f"{count} in {out}{kept if outcome.skipped else ''}", highlight=False)
        if outcome.renewed:
            them = "1 was" if outcome.renewed == 1 else f"{outcome.renewed} were"
            told.print(
                f"{them} measured again: the record was of an older version of this evaluation",
                highlight=False,
            )
        if written:
            names = ", ".join(str(path) for path in written)
            told.print(f"tables and figure: {names}", highlight=False, soft_wrap=True)
    outcome.raise_failures()
