"""One text column of a parquet file, also where it is nested or its name has dots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from sat_interp._util.errors import UserError, first_line, suggest

_ROWS = 1_000


@dataclass(frozen=True)
class _Column:
    """Position and type of a column.

    Attributes:
        leaf: its number among the file's leaf columns, depth first, as parquet counts them.
        depth: number of structs around it.
        kind: its arrow type.
    """

    leaf: int
    depth: int
    kind: pyarrow.DataType


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """The texts of a column, streamed; null (or a null struct around it) gives the empty text.

    Args:
        column: a column's name, dots included; else names of structs and of the field in them,
            with dots between.

    Raises:
        UserError: the file is not a parquet file, or has no such column, several, or one that
            does not hold text.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            place = _find(file.schema_arrow, column, path)
            batches = file.reader.iter_batches(
                _ROWS, row_groups=range(file.metadata.num_row_groups), column_indices=[place.leaf]
            )
            for batch in batches:
                texts = batch.column(0)
                if place.depth:  # of each struct only the one field was read
                    texts = pyarrow.compute.struct_field(texts, [0] * place.depth)
                for text in texts:
                    yield text.as_py() or ""
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        if error.errno is not None:  # the file system's; arrow's own have no number
            raise
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable parquet file: {first_line(error)}")


def _find(schema: pyarrow.Schema, column: str, path: Path) -> _Column:
    columns = _search(list(schema), column)
    if not columns:
        raise UserError(f"{path}: {suggest('column', column, _names(list(schema)))}")
    if len(columns) > 1:
        raise UserError(f"{path} has {len(columns)} columns {column!r}: rename one of them")
    if not _is_text(columns[0].kind):
        kind = str(columns[0].kind)
        shown = kind if len(kind) < 60 else f"{kind[:60]}..."
        raise UserError(f"{path}: column {column!r} holds {shown}, not text")
    return columns[0]


def _search(fields: Sequence[pyarrow.Field], name: str) -> list[_Column]:
    """Every column of that name: of its whole name if there is one, else through structs."""
    exact: list[_Column] = []
    nested: list[_Column] = []
    leaf = 0
    for field in fields:
        if field.name == name:
            exact.append(_Column(leaf, 0, field.type))
        elif name.startswith(f"{field.name}.") and pyarrow.types.is_struct(field.type):
            inner = _search(list(field.type), name[len(field.name) + 1 :])
            nested += [_Column(leaf + item.leaf, item.depth + 1, item.kind) for item in inner]
        leaf += _leaves(field.type)
    return exact or nested


def _names(fields: Sequence[pyarrow.Field]) -> Iterator[str]:
    """The names of all columns, those inside structs with dots."""
    for field in fields:
        yield field.name
        if pyarrow.types.is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in _names(list(field.type)))


def _leaves(kind: pyarrow.DataType) -> int:
    """How many of parquet's columns a column of this type takes."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _leaves(kind.storage_type)
    if not pyarrow.types.is_nested(kind):
        return 1
    return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields))


def _is_text(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
