"""Tables in a terminal: no wider than it is, no word broken, no interval left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from evaluations.tables.table import ARROWS, Cell, Table
from sat_interp._util import escape

WIDTH = 100
"""Columns of a table where the output is a file or a pipe."""
PADDING = 1
"""Columns between two columns of a table."""
LABEL = 24
"""Letters in a line of a label."""


def show(tables: Iterable[Table], console: Console) -> None:
    """Print the tables."""
    for table in tables:
        console.print(terminal(table, console.width))


def terminal(table: Table, width: int = WIDTH) -> RenderableType:
    """The table for a terminal of ``width`` columns.

    Intervals stand behind their values where all columns fit so, else below them; columns that
    still do not fit follow in further blocks, under the same labels.
    """
    everything = range(table.n_labels, len(table.columns))
    labels = list(range(table.n_labels))
    is_stacked = _total(table, [*labels, *everything], False) > width
    blocks: list[list[int]] = [[]]
    for place in everything:
        if blocks[-1] and _total(table, [*labels, *blocks[-1], place], is_stacked) > width:
            blocks.append([])
        blocks[-1].append(place)
    parts: list[RenderableType] = [escape.terminal(table.title, "bold")]
    for block in blocks:
        parts += [_block(table, [*labels, *block], is_stacked), Text()]
    parts += [escape.terminal(note, "dim") for note in table.remarks]
    return Group(*parts, *[Text()] * bool(table.remarks))


def _block(table: Table, places: Sequence[int], is_stacked: bool) -> RichTable:
    made = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, PADDING, 0, 0), show_edge=False)
    for place in places:
        width = _width(table, place, is_stacked)
        made.add_column(
            Text("\n").join(map(escape.terminal, _heading(table, place, width))),
            justify="left" if table.sides[place] == "l" else "right",
            width=width,
            overflow="fold",
        )
    for at, row in enumerate(table.rows):
        cells = [_cell(row[place], is_stacked) for place in places]
        if table.is_repeated(at):
            cells[0] = Text()
        made.add_row(*cells)
    return made


def _heading(table: Table, place: int, width: int) -> list[str]:
    """The lines of a heading; its arrow stays with its last word."""
    column = table.columns[place]
    arrow = ARROWS[column.direction]
    text = f"{escape.printable(column.title)}\u00a0{arrow}" if arrow else column.text
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines] or [""]


def _cell(cell: Cell, is_stacked: bool) -> Text:
    text, *details = cell.parts
    shown = Text().append_text(escape.terminal(text, "bold" if cell.kind == "best" else ""))
    for part in details:
        shown.append("\n" if is_stacked else " ").append_text(escape.terminal(part))
    return shown


def _total(table: Table, places: Sequence[int], is_stacked: bool) -> int:
    return sum(_width(table, place, is_stacked) + PADDING + 1 for place in places)


def _width(table: Table, place: int, is_stacked: bool) -> int:
    """Of the longest word of a column's heading, or the longest line of its cells.

    Long labels are broken between words.
    """
    lines = _heading(table, place, 1)
    for row in table.rows:
        cell = row[place]
        if cell.kind == "label":
            lines += textwrap.wrap(cell.text, LABEL, break_long_words=False, break_on_hyphens=False)
        else:
            lines += cell.parts if is_stacked else [cell.whole]
    return max((cell_len(escape.printable(line)) for line in lines), default=1)
