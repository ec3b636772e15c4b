"""JSON and YAML files from any source, read with limits on size and nesting.

Configurations, checkpoints and studies are read here. A file that is not a regular file (a pipe
never ends), too large, not UTF-8, nested too deeply, or too large once its aliases are followed
raises :class:`UnreadableError`, whose text is one line.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 16 << 20
"""Size of the largest file that is read."""
MOST_VALUES = 100_000
"""Largest number of values in a YAML file, with the values of an alias counted at each use."""
MOST_DEPTH = 50
"""Largest number of levels of nesting in a YAML file."""


class UnreadableError(ValueError):
    """A file cannot be read in its format; the text gives the reason in one line."""


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        UnreadableError: the file does not exist, is not a regular file, is too large, or cannot be
            read.
    """
    try:
        # Without O_NONBLOCK the open itself would wait for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)  # open() below would raise for a directory
        raise UnreadableError("it is not a regular file")
    with open(descriptor, "rb") as file:
        if status.st_size > most:
            raise UnreadableError(f"it has {status.st_size:,} bytes, more than {most:,}")
        try:
            return file.read()
        except (OSError, MemoryError) as error:
            raise UnreadableError(
                getattr(error, "strerror", None) or "not enough memory"
            ) from error


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """:func:`read_bytes` as UTF-8.

    Raises:
        UnreadableError: as there, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"it is not UTF-8 ({error.reason} at byte {error.start:,})"
        ) from error


def read_json(path: str | Path, most: int = MOST_BYTES) -> Any:
    """A JSON file's content.

    Raises:
        UnreadableError: as :func:`read_text`, or it is not valid JSON or nested too deeply.
    """
    text = read_text(path, most)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UnreadableError("it is nested too deeply") from error
    except (ValueError, MemoryError) as error:
        raise UnreadableError(f"it is not valid JSON: {_one_line(error)}") from error


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; empty where it cannot be read or holds something else."""
    try:
        content = read_json(path)
    except UnreadableError:
        return {}
    return content if isinstance(content, dict) else {}


def read_yaml(path: str | Path, most: int = 1 << 18) -> Any:
    """A YAML file's content, of plain types.

    Raises:
        UnreadableError: as :func:`read_text`, or it is not valid YAML, nested too deeply, has a key
            twice in one mapping, or holds more than ``MOST_VALUES`` values once its aliases are
            followed.
    """
    text = read_text(path, most)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _count(node, {}, 0)
        return yaml.safe_load(text)
    except UnreadableError:
        raise
    except RecursionError as error:
        raise UnreadableError("it is nested too deeply") from error
    # A date such as 2024-99-99 or a number of too many digits is a ValueError of the constructor.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UnreadableError(f"it is not valid YAML: {_one_line(error)}") from error


def _count(node: yaml.Node, counted: dict[int, int], depth: int) -> int:
    """Count the values under a node, following each alias."""
    if depth > MOST_DEPTH:
        raise UnreadableError("it is nested too deeply")
    if id(node) in counted:
        if not counted[id(node)]:  # still being counted
            raise UnreadableError("an alias refers to a value that contains it")
        return counted[id(node)]
    counted[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        _refuse_repeated(node)
        children = [item for pair in node.value for item in pair]
    total = 1 + sum(_count(child, counted, depth + 1) for child in children)
    if total > MOST_VALUES:
        raise UnreadableError(
            f"it holds more than {MOST_VALUES:,} values once its aliases are followed"
        )
    counted[id(node)] = total
    return total


def _refuse_repeated(node: yaml.MappingNode) -> None:
    """Refuse a mapping that has a key twice: YAML would take the last one."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if (first := lines.setdefault((key.tag, key.value), line)) != line:
            raise UnreadableError(f"{key.value} is there twice, in lines {first} and {line}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
