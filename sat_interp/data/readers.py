"""Stories out of local .txt, .jsonl, .jsonl.gz and .parquet files, one at a time.

A .txt file holds one story between two ``<|endoftext|>``, as TinyStories' files do. A file without
that mark has its stories parted by blank lines; one without blank lines has a story on each line.
Surrounding white space is dropped. A .txt file of rows in CSV's quotes (``quoted.py``) is read row
by row, with a warning. The other formats give the column's text unchanged; a column is a
name, or names with dots between them for a field inside another.
"""

from __future__ import annotations

import functools
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

from sat_interp._util.errors import UserError, suggest
from sat_interp.data.parquet import read_parquet
from sat_interp.data.quoted import NotQuotedError, is_quoted, quoted_stories
from sat_interp.data.tokenizer import END_OF_TEXT

logger = logging.getLogger(__name__)

EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
# Raised when the same bytes would be read as other stories; part of a corpus' name.
READER_VERSIONS = {".txt": 2, ".jsonl": 1, ".jsonl.gz": 1, ".parquet": 1}

_CHUNK = 1 << 20
# Longer than any story: reading stops there, to bound the memory.
_LONGEST = 1 << 28
_LONGEST_LINE = 64 * _CHUNK
# A text that stays inside quotes for longer is not a CSV row.
_LONGEST_ROW = 1 << 24
# Separators may lie across the border of two chunks; none is as long as this.
_OVERLAP = 4096
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def extension(path: Path) -> str | None:
    """The one of ``EXTENSIONS`` that ``path`` ends with, whatever its case; None for another."""
    name = path.name.lower()
    return next((known for known in EXTENSIONS if name.endswith(known)), None)


def read_stories(path: Path, column: str) -> Iterator[str]:
    """The stories of one file, streamed: a few megabytes and the longest story are held at a time.

    A row whose text is null gives the empty story; halves of surrogate pairs become U+FFFD.

    Raises:
        UserError: the file does not have the format of its name, has no such column (the message
            lists the others), holds something else than text in it (named by file and line), a
            .txt story of more than 268 million characters, or a line of JSON over 64 MiB.
    """
    kind = extension(path)
    if kind is None:
        raise UserError(f"{path}: only {', '.join(EXTENSIONS)} files can be read")
    if kind == ".parquet":
        return read_parquet(path, column)
    if kind == ".txt":
        return _read_txt(path, column)
    return _read_jsonl(path, column)


def encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot express, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_txt(path: Path, column: str) -> Iterator[str]:
    stat = path.stat()
    if _has_csv_rows(path, stat.st_size, stat.st_mtime_ns):
        try:
            yield from quoted_stories(_lines(path), column, _LONGEST_ROW)
        except NotQuotedError:
            raise UserError(f"{path} was changed while it was read") from None
        return
    for piece in _pieces(path, _txt_separator(path)):
        if story := piece.strip():
            yield story


@functools.lru_cache(maxsize=256)
def _has_csv_rows(path: Path, size: int, modified: int) -> bool:
    """Whether the file holds rows in CSV's quotes; determined, and warned of, once per content."""
    is_csv = is_quoted(_lines(path), _LONGEST_ROW)
    if is_csv:
        logger.warning("%s holds CSV rows: each is read as a story, without its quotes", path)
    return is_csv


def _txt_separator(path: Path) -> re.Pattern[str]:
    """Separator of this file's stories: the mark, else blank lines, else line ends."""
    marked, blank, tail = False, False, ""
    for chunk in _chunks(path):
        window = tail + chunk
        if END_OF_TEXT in window:
            marked = True
            break
        blank = blank or any(match.end() < len(window) for match in _BLANK_LINES.finditer(window))
        tail = window[-_OVERLAP:]
    if marked:
        return re.compile(re.escape(END_OF_TEXT))
    return _BLANK_LINES if blank else re.compile("\n")


def _pieces(path: Path, separator: re.Pattern[str]) -> Iterator[str]:
    """The text between separators.

    Raises:
        UserError: a piece is longer than any story.
    """
    whole: list[str] = []  # parts of the current piece without a separator
    tail, size = "", 0
    for chunk in _chunks(path):
        first, *others = separator.split(tail + chunk)
        if others:
            yield "".join([*whole, first])
            yield from others[:-1]
            whole, size = [], 0
            first = others[-1]
        whole.append(first[:-_OVERLAP])
        tail = first[-_OVERLAP:]
        size += len(first) - len(tail)
        if size > _LONGEST:
            raise UserError(
                f"{path} holds a story of more than {_LONGEST:,} characters: separate stories by "
                "blank lines"
            )
    yield "".join([*whole, tail])


def _chunks(path: Path) -> Iterator[str]:
    with _text(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends; a long one comes in parts."""
    with _text(path) as file:
        while line := file.readline(_CHUNK):
            yield line


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): convert it first") from error


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    compressed = path.name.lower().endswith(".gz")
    number = 0
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            for number, line in enumerate(_rows(file, path), start=1):
                if line.strip():
                    yield _jsonl_story(line, column, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged after line {number}: {error}") from error


def _rows(file: BufferedIOBase, path: Path) -> Iterator[bytes]:
    """The lines of a file, none of them longer than memory can hold.

    A few megabytes of gzip can hold tens of gigabytes without a line end.
    """
    number = 1
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise UserError(
                f"{path}:{number} is longer than {_LONGEST_LINE:,} bytes: one story on a line"
            )
        yield line
        number += 1


def _jsonl_story(line: bytes, column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is not an object like {{"{column}": "Once upon a time ..."}}')
    values = fields_named(row, column)
    if not values:
        raise UserError(f"{where}: {suggest('column', column, field_names(row))}")
    if len(values) > 1:
        raise UserError(f"{where} has {len(values)} fields {column!r}: rename one of them")
    story = values[0]
    if story is None:
        return ""
    if not isinstance(story, str):
        raise UserError(f"{where}: column {column!r} holds {type(story).__name__}, not text")
    return encodable(story)


def fields_named(row: Mapping[str, Any], name: str) -> list[Any]:
    """Every value of that name: of its whole name if there is one, else inside other objects."""
    if name in row:
        return [row[name]]
    values = []
    for key, value in row.items():
        if isinstance(value, dict) and name.startswith(f"{key}."):
            values += fields_named(value, name[len(key) + 1 :])
    return values


def field_names(row: Mapping[str, Any], depth: int = 8) -> Iterator[str]:
    """The names in an object, and with dots those in the objects it holds, ``depth`` levels in."""
    for key, value in row.items():
        yield key
        if depth and isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in field_names(value, depth - 1))
