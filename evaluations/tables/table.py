"""A table of cells, and its writers: Markdown, LaTeX, CSV, HTML (`terminal` has the fifth)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from evaluations.core.record import Direction
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

Exact = float | int | str | None
Kind = Literal["label", "value", "best", "none"]
"""Of a cell: a name; a value; the best value of its column; no value."""

ARROWS: dict[Direction | None, str] = {"lower": "↓", "higher": "↑", None: ""}
EMPTY = "–"
"""Shown where nothing was measured."""
UNSCORED = "n/a"
"""Shown where a measurement gave no value; a note has the reason."""
PAGE_ROWS = 45
"""Rows of one line that fit on a page of LaTeX, with caption and notes."""
SCALED = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
"""LaTeX that scales what follows down to the width of the text; a brace ends it."""
LINE_LETTERS = 95
"""Letters that fit, or nearly, in a line of a LaTeX table."""
HEADING_LETTERS = 14
"""Letters in a line of a heading, where a table is wider."""


@dataclass(frozen=True)
class Heading:
    """The heading of a column: its title, what is better, and what the column's values are."""

    title: str
    direction: Direction | None = None
    definition: str = ""

    @property
    def text(self) -> str:
        """The title with an arrow towards what is better."""
        return f"{self.title} {ARROWS[self.direction]}".strip()

    @property
    def anchor(self) -> str:
        """The id of the column's entry in a glossary."""
        return "column-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and its values at full precision.

    Attributes:
        text: the value, or a name.
        details: shown behind or below the text: the interval, then the number of seeds.
        exact: values by the name of their CSV column.
        hint: what the value is based on, in one line (HTML shows it on hover).
    """

    text: str
    kind: Kind = "value"
    details: tuple[str, ...] = ()
    exact: Mapping[str, Exact] = field(default_factory=dict)
    hint: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The text and its details."""
        return (self.text, *self.details)

    @property
    def whole(self) -> str:
        """The cell in one line."""
        return " ".join(self.parts)

    @classmethod
    def label(cls, name: str, text: Exact, **exact: Exact) -> Cell:
        """A cell that names its row; ``name`` is its CSV column."""
        return cls(EMPTY if text is None else str(text), "label", (), {name: text, **exact})

    @classmethod
    def none(cls, *names: str, text: str = EMPTY) -> Cell:
        """A cell without a value, empty in the CSV columns of these names."""
        return cls(text, "none", (), dict.fromkeys(names))


@dataclass(frozen=True)
class Table:
    """A table that every writer can write.

    Attributes:
        name: of its files, and of its LaTeX label, ``tab:<name>``.
        title: without a number: LaTeX has its own.
        caption: how to read the table, in sentences.
        notes: what applies to the values shown, a sentence or two each.
        commands: what to run to fill empty cells; not in LaTeX.
        n_labels: how many of the first columns name the row.
    """

    name: str
    title: str
    columns: tuple[Heading, ...]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    n_labels: int = 1

    @property
    def label(self) -> str:
        """The LaTeX label."""
        return f"tab:{self.name}"

    @property
    def has_values(self) -> bool:
        """Whether it has more than the names of its rows."""
        return len(self.columns) > self.n_labels

    @property
    def remarks(self) -> list[str]:
        """All text below the table, a paragraph each."""
        fill = [f"Not measured yet: {'; '.join(self.commands)}"] if self.commands else []
        return [part for part in (self.caption, *self.notes, *fill) if part]

    @property
    def sides(self) -> str:
        """``l`` or ``r`` for each column: names are on the left, values on the right."""
        return "".join(
            "l" if place < self.n_labels or self._is_named(place) else "r"
            for place in range(len(self.columns))
        )

    def _is_named(self, place: int) -> bool:
        """Whether the column has labels that are no numbers."""
        cells = [row[place] for row in self.rows]
        is_text = any(not cell.text.isdecimal() and cell.text != EMPTY for cell in cells)
        return is_text and all(cell.kind == "label" for cell in cells)

    def is_repeated(self, place: int) -> bool:
        """Whether the first of a row's several labels is that of the row above."""
        rows = self.rows[place - 1 : place + 1] if place else ()
        return self.n_labels > 1 and len({row[0].text for row in rows}) == 1

    def frame(self) -> pd.DataFrame:
        """The exact values: a row for each row, a column for each name in the cells."""
        rows = [
            {name: value for cell in row for name, value in cell.exact.items()} for row in self.rows
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
        return pd.DataFrame(columns, dtype=object)


def glossary(tables: Iterable[Table]) -> dict[Heading, str]:
    """The definition of each column of the tables that has one, in order."""
    columns = [column for table in tables for column in table.columns if column.definition]
    return {Heading(one.title): one.definition for one in columns}


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, its notes below."""
    sides = [{"l": ":--", "r": "--:"}[side] for side in table.sides]
    lines = [[escape.markdown(column.text) for column in table.columns], sides]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {escape.markdown(note)}" for note in table.remarks]
    return "\n".join(
        [f"**{escape.markdown(table.title)}**", "", *body, "", *notes, *[""][: len(notes)]]
    )


def _markdown_cell(cell: Cell) -> str:
    text, *details = map(escape.markdown, cell.parts)
    return " ".join([f"**{text}**" if cell.kind == "best" else text, *details])


def latex(table: Table) -> str:
    """The table as LaTeX, several where it is longer than a page; needs booktabs and graphicx."""
    is_stacked = _letters(table) > LINE_LETTERS
    lines = max((len(cell.parts) for row in table.rows for cell in row), default=1)
    pages = _pages(table, PAGE_ROWS // lines if is_stacked else PAGE_ROWS)
    return "\n".join(
        _latex_page(table, rows, page, is_stacked, is_last=page == len(pages) - 1)
        for page, rows in enumerate(pages)
    )


def _pages(table: Table, room: int) -> list[list[Sequence[Cell]]]:
    """The rows in parts that fit a page; rows with the same first label stay together."""
    blocks: list[list[Sequence[Cell]]] = []
    for place, row in enumerate(table.rows):
        if table.is_repeated(place):
            blocks[-1].append(row)
        else:
            blocks.append([row])
    pages: list[list[Sequence[Cell]]] = [[]]
    for block in blocks:
        if pages[-1] and len(pages[-1]) + len(block) > room:
            pages.append([])
        pages[-1] += block
    return pages


def _latex_page(
    table: Table, rows: Sequence[Sequence[Cell]], page: int, is_stacked: bool, is_last: bool
) -> str:
    """One page of a table, scaled down where it is wider than the text.

    Args:
        is_stacked: whether headings are broken and intervals stand below their values.
    """
    sides = table.sides
    heads = []
    for column, side in zip(table.columns, sides, strict=True):
        lines = textwrap.wrap(column.text, HEADING_LETTERS) if is_stacked else [column.text]
        heads.append(_stack([*map(escape.latex, lines)], side))
    caption = (
        f"{table.title} (continued)." if page else " ".join([f"{table.title}.", table.caption])
    )
    label = f"{table.label}-{page + 1}" if page else table.label
    lines = [" & ".join(_latex_cell(cell, is_stacked) for cell in row) for row in rows]
    body = [f"{_after_break(line)} \\\\" for line in lines]
    notes = [
        line
        for note in (table.notes if is_last else ())
        for line in ("", f"\\smallskip\\raggedright {escape.latex(note)}\\par")
    ]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            "\\begin{table}",
            "\\centering\\footnotesize",
            f"\\caption{{{escape.latex(caption.strip())}}}\\label{{{_latex_label(label)}}}",
            SCALED,
            f"\\begin{{tabular}}{{{sides}}}",
            "\\toprule",
            " & ".join(heads) + " \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}}",
            *notes,
            "\\end{table}",
            "",
        ]
    )


def _after_break(line: str) -> str:
    """A line that may follow a line break, which takes ``[`` and ``*`` for its own options."""
    return f"{{}}{line}" if line[:1] in ("[", "*") else line


def _latex_label(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9:.-]+", "-", label)


def _letters(table: Table) -> int:
    """The letters of the longest cells of all columns."""
    columns = zip(*table.rows, strict=True) if table.rows else [() for _ in table.columns]
    return sum(
        max([len(heading.text), *(len(cell.whole) for cell in column)])
        for heading, column in zip(table.columns, columns, strict=True)
    )


def _latex_cell(cell: Cell, is_stacked: bool) -> str:
    text = escape.latex(cell.text)
    lines = [f"\\textbf{{{text}}}" if cell.kind == "best" else text]
    lines += [f"{{\\scriptsize {escape.latex(part)}}}" for part in cell.details]
    return _stack(lines, "r") if is_stacked else " ".join(lines)


def _stack(lines: Sequence[str], side: str) -> str:
    if len(lines) < 2:
        return "".join(lines)
    joined = " \\\\ ".join(map(_after_break, lines))
    return f"\\begin{{tabular}}[c]{{@{{}}{side}@{{}}}}{joined}\\end{{tabular}}"


def html(table: Table, has_glossary: bool = True) -> str:
    """The table as HTML; headings link to the glossary of the page, values have a hint."""
    head = "".join(
        _html_heading(column, has_glossary, all(row[at].kind == "label" for row in table.rows))
        for at, column in enumerate(table.columns)
    )
    body = "".join(
        f"<tr>{_html_row(row, table.is_repeated(place))}</tr>\n"
        for place, row in enumerate(table.rows)
    )
    notes = [
        f"<p class='small soft'>{escape.html(note)}</p>"
        for note in (table.caption, *table.notes)
        if note
    ]
    if table.commands:
        code = " ".join(f"<code>{escape.html(command)}</code>" for command in table.commands)
        notes.append(f"<p class='small todo'>Not measured yet: {code}</p>")
    identity = f" id='{escape.html(table.name)}'" if table.name else ""
    caption = f"<caption>{escape.html(table.title)}</caption>" if table.title else ""
    return (
        f"<div class='scroll-x'><table{identity}>{caption}"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n{''.join(notes)}\n"
    )


def _html_row(row: Sequence[Cell], is_repeated: bool) -> str:
    """A row; its first label is faint where it repeats that of the row above."""
    return "".join(_html_cell(cell, is_repeated and not at) for at, cell in enumerate(row))


def _html_heading(column: Heading, is_link: bool, is_label: bool) -> str:
    # the arrow stays with the last word
    text = escape.html(f"{column.title}\u00a0{ARROWS[column.direction]}".rstrip("\u00a0"))
    kind = " class='label'" if is_label else ""
    if not column.definition:
        return f"<th{kind}>{text}</th>"
    hint = escape.html(column.definition)
    shown = f"<a href='#{column.anchor}'>{text}</a>" if is_link else text
    return f"<th{kind} title='{hint}'>{shown}</th>"


def _html_cell(cell: Cell, is_repeated: bool = False) -> str:
    text, *details = map(escape.html, cell.parts)
    hint = f" title='{escape.html(cell.hint)}'" if cell.hint else ""
    if cell.kind == "label":
        repeated = " class='repeated'" if is_repeated else ""
        return f"<th scope='row'{repeated}{hint}>{text}</th>"
    style = {"best": " class='best'", "none": " class='soft'"}.get(cell.kind, "")
    small = f" <span class='interval'>{' '.join(details)}</span>" if details else ""
    return f"<td{style}{hint}>{text}{small}</td>"


def csv_text(*tables: Table) -> str:
    """Tables of the same rows side by side as CSV, at full precision; no value is empty."""
    frame = pd.concat([table.frame() for table in tables], axis=1)
    names = list(dict.fromkeys(frame.columns))
    frame = frame.loc[:, ~frame.columns.duplicated()]
    escaped = {
        escape.csv(name): pd.Series([*map(escape.csv, frame[name])], dtype=object) for name in names
    }
    text: str = pd.DataFrame(escaped).to_csv(index=False, lineterminator="\n")
    return text


def write(tables: Sequence[Table], out: Path, stem: str) -> list[Path]:
    """``out/<stem>.md`` and ``.tex`` with all tables, and ``<stem>.csv``.

    The CSV holds the tables with the rows of the first one, side by side; others have a file of
    their own, ``<stem>-<name>.csv``.

    Returns:
        The files written; none where there is no table.

    Raises:
        OSError: they cannot be written.
    """
    if not tables:
        return []
    written = [
        write_atomically(out / f"{stem}.md", "\n".join(map(markdown, tables))),
        write_atomically(out / f"{stem}.tex", "\n".join(map(latex, tables))),
    ]
    by_rows: dict[object, list[Table]] = {}
    for table in tables:
        labels = [cell.exact for row in table.rows for cell in row[: table.n_labels]]
        by_rows.setdefault(repr(labels), []).append(table)
    for place, alike in enumerate(by_rows.values()):
        name = f"{stem}-{alike[0].name}" if place else stem
        written.append(write_atomically(out / f"{name}.csv", csv_text(*alike)))
    return written
