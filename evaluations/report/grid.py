"""A table of cells, and how it looks: Markdown, LaTeX, CSV, the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table as RichTable

from evaluations.record import Direction
from evaluations.report.tables import ARROWS
from sat_interp.files import write_atomically

EMPTY = "–"


@dataclass(frozen=True)
class Heading:
    """A column's heading; ``key`` names it in CSV, the arrow points to what is better."""

    title: str
    key: str
    direction: Direction | None = None

    @property
    def text(self) -> str:
        return f"{self.title} {ARROWS[self.direction]}".strip()


@dataclass(frozen=True)
class Cell:
    """What a cell shows, whether it is the best of its column, and its figures in full."""

    text: str
    is_best: bool = False
    exact: dict[str, float | int | str | None] = field(default_factory=dict)
    """By ending of the column's key in CSV: "" the value, "_low", "_high", "_n", ..."""


@dataclass(frozen=True)
class Grid:
    """A table: name of its files, title, headings, rows, and notes below."""

    name: str
    title: str
    headings: tuple[Heading, ...]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    n_labels: int = 1
    """How many of the first columns are names, not figures."""


def markdown(grid: Grid) -> str:
    """The table as GitHub's Markdown, its notes below."""
    sides = [":--" if place < grid.n_labels else "--:" for place in range(len(grid.headings))]
    lines = [[_pipe(heading.text) for heading in grid.headings], sides]
    lines += [
        [f"**{_pipe(cell.text)}**" if cell.is_best else _pipe(cell.text) for cell in row]
        for row in grid.rows
    ]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {note}" for note in grid.notes]
    return "\n".join([f"**{grid.title}**", "", *table, "", *notes, *([""] if notes else [])])


def latex(grid: Grid) -> str:
    """The table as LaTeX; it needs the package booktabs."""
    n = len(grid.headings)
    sides = "l" * grid.n_labels + "r" * (n - grid.n_labels)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{tex(grid.title)}}}",
        f"\\begin{{tabular}}{{{sides}}}",
        "\\toprule",
        " & ".join(tex(heading.text) for heading in grid.headings) + " \\\\",
        "\\midrule",
    ]
    for row in grid.rows:
        cells = [
            f"\\textbf{{{tex(cell.text)}}}" if cell.is_best else tex(cell.text) for cell in row
        ]
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\smallskip\\footnotesize {tex(note)}" for note in grid.notes]
    return "\n".join([*lines, "\\end{table}", ""])


def csv_text(grid: Grid) -> str:
    """The table as CSV at full precision; what has no figure is empty."""
    endings = [
        list(dict.fromkeys(ending for row in grid.rows for ending in row[place].exact)) or [""]
        for place in range(len(grid.headings))
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    named = list(zip(grid.headings, endings, strict=True))
    writer.writerow([heading.key + ending for heading, ours in named for ending in ours])
    for row in grid.rows:
        writer.writerow(
            [
                cell.exact.get(ending)
                for cell, ours in zip(row, endings, strict=True)
                for ending in ours
            ]
        )
    return buffer.getvalue()


def rich_table(grid: Grid) -> RichTable:
    """The table for a terminal."""
    from rich.markup import escape

    table = RichTable(title=grid.title, title_justify="left", caption=escape("\n".join(grid.notes)))
    table.caption_justify = "left"
    for place, heading in enumerate(grid.headings):
        is_label = place < grid.n_labels
        table.add_column(
            heading.text, justify="left" if is_label else "right", no_wrap=not place,
            overflow="fold",
        )  # fmt: skip
    for row in grid.rows:
        table.add_row(*(_rich(cell) for cell in row))
    return table


def write_grids(grids: Sequence[Grid], out: Path) -> list[Path]:
    """``out/<name>.md``, ``.tex`` and ``.csv`` of each table.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    for grid in grids:
        for ending, text in (("md", markdown), ("tex", latex), ("csv", csv_text)):
            written.append(write_atomically(out / f"{grid.name}.{ending}", text(grid)))
    return written


def _rich(cell: Cell) -> str:
    from rich.markup import escape

    return f"[bold]{escape(cell.text)}[/bold]" if cell.is_best else escape(cell.text)


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_",
    "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "↓": "$\\downarrow$", "↑": "$\\uparrow$", "†": "$\\dagger$", "−": "$-$", "±": "$\\pm$",
    "–": "--", "×": "$\\times$", "§": "\\S{}",
}  # fmt: skip


def tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)
