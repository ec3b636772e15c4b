"""CSV rows under a .txt name: one story a row, in quotes where it holds a quote or a line break.

Some copies of TinyStories are such a table of one column. Split at blank lines it would give
halves of stories with doubled quotes in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class NotQuotedError(Exception):
    """The text is not a CSV table of one column."""


class Row(NamedTuple):
    """A row; where ``quoted``, ``text`` is the content of the quotes, with doubled quotes."""

    text: str
    quoted: bool


def is_quoted(lines: Iterable[str], longest: int) -> bool:
    """Whether the text is a CSV table of one column and at least two rows.

    Every row must be a single field, and there must be a sign that the quotes are CSV's and not
    the stories' own: a doubled quote, or all rows quoted and either a line break inside a row or
    no blank line between rows. Reading stops at the first row that does not fit.
    """
    n_rows, all_quoted, blank, doubled, broken = 0, True, False, False, False
    try:
        for row in _rows(lines, longest):
            if not row.quoted and not row.text:
                blank = True
                continue
            n_rows += 1
            all_quoted = all_quoted and row.quoted
            doubled = doubled or (row.quoted and '""' in row.text)
            broken = broken or "\n" in row.text
    except NotQuotedError:
        return False
    return n_rows > 1 and (doubled or (all_quoted and (broken or not blank)))


def quoted_stories(lines: Iterable[str], column: str, longest: int) -> Iterator[str]:
    """The stories of a text that :func:`is_quoted` accepts; a first row ``column`` is a heading.

    Raises:
        NotQuotedError: the text has changed since.
    """
    is_first = True
    for row in _rows(lines, longest):
        story = (row.text.replace('""', '"') if row.quoted else row.text).strip()
        if story and not (is_first and story == column):
            yield story
        is_first = is_first and not story


def _rows(lines: Iterable[str], longest: int) -> Iterator[Row]:
    """The rows of a table of one column; blank lines give empty rows.

    Args:
        lines: with their ends; a long one may come in parts.

    Raises:
        NotQuotedError: a row is something else, or longer than ``longest`` characters.
    """
    held: list[str] = []
    n_quotes = size = 0
    for line in lines:
        if held and not held[0].startswith('"'):
            raise NotQuotedError  # a row without quotes that is too long for one part
        held.append(line)
        n_quotes += line.count('"')
        size += len(line)
        if size > longest:
            raise NotQuotedError
        if n_quotes % 2 and held[0].startswith('"') or not line.endswith("\n"):
            continue  # a line break inside the quotes, or a part of a line
        yield _row("".join(held).rstrip(), n_quotes)
        held, n_quotes, size = [], 0, 0
    if held:
        yield _row("".join(held).rstrip(), n_quotes)


def _row(line: str, n_quotes: int) -> Row:
    if n_quotes == 0 and "," not in line:
        return Row(line.strip(), quoted=False)
    inside = line[1:-1]
    if len(line) < 2 or line[0] != '"' or line[-1] != '"' or '"' in inside.replace('""', ""):
        raise NotQuotedError
    return Row(inside, quoted=True)
