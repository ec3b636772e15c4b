"""A table of cells, and how it looks: Markdown, LaTeX, CSV, the terminal."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from evaluations.core.record import Direction
from evaluations.tables.tables import ARROWS, framed
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

EMPTY = "–"
PAGE_ROWS = 45
"""Rows of a table that a page of LaTeX has room for."""
SCALED = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
"""Begins what LaTeX shall make no wider than the text; a brace ends it."""
LINE_LETTERS = 95
"""Letters of a line of a table that LaTeX's text is wide enough for, or nearly."""
HEADING_LETTERS = 14
"""Of a heading's line, where a table is wider."""


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
    within: str = ""
    """Of a single model, its own interval: behind the text wherever there is room."""

    @property
    def whole(self) -> str:
        return f"{self.text} {self.within}".strip()


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
    own: str = ""
    """What the intervals of single models are of; said where they are shown."""

    @property
    def told(self) -> list[str]:
        """All that stands below the table."""
        return [self.own, *self.notes] if self.own else self.notes


def markdown(grid: Grid) -> str:
    """The table as GitHub's Markdown, its notes below."""
    sides = [":--" if place < grid.n_labels else "--:" for place in range(len(grid.headings))]
    lines = [[escape.markdown(heading.text) for heading in grid.headings], sides]
    lines += [list(map(_markdown_cell, row)) for row in grid.rows]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {escape.markdown(note)}" for note in grid.told]
    title = f"**{escape.markdown(grid.title)}**"
    return "\n".join([title, "", *table, "", *notes, *([""] if notes else [])])


def _markdown_cell(cell: Cell) -> str:
    text, within = escape.markdown(cell.text), escape.markdown(cell.within)
    return f"{f'**{text}**' if cell.is_best else text} {within}".strip()


def latex(grid: Grid) -> str:
    """The table as LaTeX, several where it is longer than a page; it needs booktabs, graphicx."""
    is_stacked = _letters(grid) > LINE_LETTERS
    parts = _pages(grid, PAGE_ROWS // 2 if is_stacked else PAGE_ROWS)
    tables = [
        _latex_table(grid, rows, number, is_stacked, notes=number == len(parts) - 1)
        for number, rows in enumerate(parts)
    ]
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *tables])


def _pages(grid: Grid, room: int) -> list[list[list[Cell]]]:
    """The rows in parts that fit a page; rows with one first label stay together."""
    blocks: list[list[list[Cell]]] = []
    for row in grid.rows:
        if blocks and grid.n_labels > 1 and blocks[-1][0][0].text == row[0].text:
            blocks[-1].append(row)
        else:
            blocks.append([row])
    parts: list[list[list[Cell]]] = [[]]
    for block in blocks:
        if parts[-1] and len(parts[-1]) + len(block) > room:
            parts.append([])
        parts[-1] += block
    return parts


def _latex_table(
    grid: Grid, rows: Sequence[Sequence[Cell]], number: int, is_stacked: bool, notes: bool
) -> str:
    """One part of a table, scaled down where it is wider than the text.

    Args:
        is_stacked: whether headings are broken and intervals stand below their figures.
    """
    n = len(grid.headings)
    sides = "l" * grid.n_labels + "r" * (n - grid.n_labels)
    title = f"{grid.title} (continued)" if number else grid.title
    heads = []
    for place, one in enumerate(grid.headings):
        parts = textwrap.wrap(one.text, HEADING_LETTERS) if is_stacked else [one.text]
        heads.append(_stack([*map(escape.latex, parts)], sides[place]))
    lines = [
        "\\begin{table}",
        "\\centering\\footnotesize",
        f"\\caption{{{escape.latex(title)}}}",
        SCALED,
        f"\\begin{{tabular}}{{{sides}}}",
        "\\toprule",
        " & ".join(heads) + " \\\\",
        "\\midrule",
    ]
    lines += [" & ".join(_latex_cell(cell, is_stacked) for cell in row) + " \\\\" for row in rows]
    lines += ["\\bottomrule", "\\end{tabular}}"]
    for note in grid.told if notes else ():
        lines += ["", f"\\smallskip\\raggedright {escape.latex(note)}\\par"]
    return "\n".join([*lines, "\\end{table}", ""])


def _letters(grid: Grid) -> int:
    """Of the longest cells of all columns."""
    columns = zip(*grid.rows, strict=True)
    longest = [max(len(cell.whole) for cell in column) for column in columns]
    heads = [len(heading.text) for heading in grid.headings]
    return sum(map(max, zip(longest, heads, strict=True))) if longest else sum(heads)


def _latex_cell(cell: Cell, is_stacked: bool) -> str:
    parts = re.split(r" (?=\[)|, (?=n=)", cell.text) if is_stacked else [cell.text]
    lines = [
        f"\\textbf{{{escape.latex(part)}}}" if cell.is_best else escape.latex(part)
        for part in parts
    ]
    if cell.within:
        lines.append(f"{{\\scriptsize {escape.latex(cell.within)}}}")
    return _stack(lines, "r") if is_stacked else " ".join(lines)


def _stack(lines: Sequence[str], side: str) -> str:
    if len(lines) < 2:
        return "".join(lines)
    joined = " \\\\ ".join(lines)
    return f"\\begin{{tabular}}[c]{{@{{}}{side}@{{}}}}{joined}\\end{{tabular}}"


def csv_text(grid: Grid) -> str:
    """The table as CSV at full precision; what has no figure is empty."""
    endings = [
        list(dict.fromkeys(ending for row in grid.rows for ending in row[place].exact)) or [""]
        for place in range(len(grid.headings))
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    named = list(zip(grid.headings, endings, strict=True))
    writer.writerow(
        [escape.csv(heading.key + ending) for heading, ours in named for ending in ours]
    )
    for row in grid.rows:
        writer.writerow(
            [
                escape.csv(cell.exact.get(ending))
                for cell, ours in zip(row, endings, strict=True)
                for ending in ours
            ]
        )
    return buffer.getvalue()


def rich_table(grid: Grid, within: Literal["behind", "below", "left out"] = "behind") -> RichTable:
    """The table for a terminal.

    Args:
        within: where the intervals of single models stand.
    """
    notes = grid.told
    if within == "left out" and grid.own:
        notes = [*grid.notes, f"Intervals of single models have no room here: {grid.name}.md."]
    table = framed(grid.title, *notes)
    for place, heading in enumerate(grid.headings):
        is_label = place < grid.n_labels
        table.add_column(
            escape.terminal(heading.text), justify="left" if is_label else "right",
            no_wrap=not place, overflow="fold",
        )  # fmt: skip
    between = {"behind": " ", "below": "\n"}.get(within)
    for row in grid.rows:
        table.add_row(*(_rich(cell, between) for cell in row))
    return table


def fitted(grid: Grid, console: Console) -> RichTable:
    """The table with as much of the intervals of single models as the terminal is wide for."""
    endless = console.options.update(max_width=10_000)
    for table in (rich_table(grid), rich_table(grid, "below")):
        if console.measure(table, options=endless).maximum <= console.width:
            return table
    return rich_table(grid, "left out")


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


def _rich(cell: Cell, between: str | None) -> Text:
    shown = Text().append_text(escape.terminal(cell.text, "bold" if cell.is_best else ""))
    if cell.within and between:
        shown.append(between).append_text(escape.terminal(cell.within))
    return shown
