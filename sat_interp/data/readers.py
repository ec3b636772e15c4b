"""Stories out of local .txt, .jsonl, .jsonl.gz and .parquet files, one at a time.

A .txt file holds one story between two ``<|endoftext|>``, as TinyStories' files do. A file without
that mark has its stories parted by blank lines; one without blank lines has a story on each line.
Surrounding white space is dropped. The other formats give the column's text as it stands.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from sat_interp.data.tokenizer import END_OF_TEXT
from sat_interp.errors import UserError, suggest

EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
# Changes when the same bytes would be read as other stories: part of what names a corpus.
READER_VERSION = 1

_CHUNK = 1 << 20
# A file without any separator is cut here, so that memory stays flat: no story is so long.
_LONGEST = 16 * _CHUNK
_LONGEST_LINE = 64 * _CHUNK
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


def extension(path: Path) -> str | None:
    """The one of ``EXTENSIONS`` that ``path`` ends with, whatever its case; None for another."""
    name = path.name.lower()
    return next((known for known in EXTENSIONS if name.endswith(known)), None)


def read_stories(path: Path, column: str) -> Iterator[str]:
    """The stories of one file, streamed: no more than a few megabytes are held at a time.

    A row whose text is null gives the empty story; halves of surrogate pairs become U+FFFD.

    Raises:
        UserError: the file is not what its name says, names no such column (the message says
            which there are), or holds something else than text in it (named by file and line).
    """
    kind = extension(path)
    if kind == ".parquet":
        return _read_parquet(path, column)
    if kind == ".txt":
        return _read_txt(path)
    if kind is None:
        raise UserError(f"{path}: only {', '.join(EXTENSIONS)} files can be read")
    return _read_jsonl(path, column)


def encodable(text: str) -> str:
    """``text``, with what UTF-8 cannot express (half a surrogate pair) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_txt(path: Path) -> Iterator[str]:
    separator = _txt_separator(path)
    for piece in _pieces(path, separator):
        if story := piece.strip():
            yield story


def _txt_separator(path: Path) -> re.Pattern[str]:
    """What parts the stories of this file: the mark, else blank lines, else line ends."""
    marked, blank, tail = False, False, ""
    for chunk in _chunks(path):
        window = tail + chunk
        if END_OF_TEXT in window:
            marked = True
            break
        blank = blank or any(match.end() < len(window) for match in _BLANK_LINES.finditer(window))
        tail = window[-64:]
    if marked:
        return re.compile(re.escape(END_OF_TEXT))
    return _BLANK_LINES if blank else re.compile("\n")


def _pieces(path: Path, separator: re.Pattern[str]) -> Iterator[str]:
    """The text between separators; the last piece of a chunk waits for the chunk after it."""
    rest = ""
    for chunk in _chunks(path):
        *whole, rest = separator.split(rest + chunk)
        yield from whole
        if len(rest) >= _LONGEST:
            yield rest
            rest = ""
    yield rest


def _chunks(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): convert it first") from error


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    compressed = path.name.lower().endswith(".gz")
    number = 0
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            for number, line in enumerate(_lines(file, path), start=1):
                if line.strip():
                    yield _jsonl_story(line, column, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged after line {number}: {error}") from error


def _lines(file: BufferedIOBase, path: Path) -> Iterator[bytes]:
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
    if column not in row:
        raise UserError(f"{where}: {suggest('column', column, row)}")
    story = row[column]
    if story is None:
        return ""
    if not isinstance(story, str):
        raise UserError(f"{where}: column {column!r} holds {type(story).__name__}, not text")
    return encodable(story)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            field = _text_field(file.schema_arrow, column, path)
            for batch in file.iter_batches(batch_size=1_000, columns=[field]):
                for story in batch.column(0).to_pylist():
                    yield story or ""
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no readable parquet file: {reason}") from error


def _text_field(schema: pyarrow.Schema, column: str, path: Path) -> str:
    if column not in schema.names:
        raise UserError(f"{path}: {suggest('column', column, schema.names)}")
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text")
    return column
