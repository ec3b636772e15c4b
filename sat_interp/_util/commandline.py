"""What every command does alike: how options are spelled, how failures are told."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sat_interp._util.errors import UserError
from sat_interp._util.escape import printable
from sat_interp._util.reading import Unreadable, read_yaml


def underscored(argument: str) -> str:
    """``--match-perplexity=5`` as the parameter it names is spelled, ``--match_perplexity=5``."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.removeprefix("--").partition("=")
    return "--" + option.replace("-", "_") + equals + value


def run_command(command: Callable[[], object]) -> int:
    """Run a command's body and turn what a user can mend into one line and exit code 2."""
    try:
        command()
    except UserError as error:
        say_error(f"error: {error}")
        return 2
    except OSError as error:
        # A full disk, a missing permission, a directory where a file should be: the system's
        # own words name the cause and the file.
        where = f": {error.filename}" if error.filename else ""
        say_error(f"error: {error.strerror or error}{where}")
        return 2
    except (MemoryError, RecursionError, OverflowError, RuntimeError) as error:
        if (reason := _beyond_this_machine(error)) is None:
            raise
        say_error(f"error: {reason}")
        return 2
    except KeyboardInterrupt:
        say_error("interrupted: finished work is kept, run the same command again")
        return 130
    return 0


def check_config_files(arguments: Sequence[str]) -> None:
    """Read the files after ``--config`` within bounds, before the parser reads them without.

    A file that is not there is left to the parser, which says so.

    Raises:
        UserError: one is no regular file, too large, not UTF-8, no YAML mapping, nested too deeply,
            or grows beyond bounds through its aliases.
    """
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option != "--config":
            continue
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if not os.path.lexists(value) or os.path.isdir(value):
            continue
        try:
            content = read_yaml(value)
        except Unreadable as error:
            raise UserError(f"{value} is no YAML mapping of options: {error}") from error
        if content is not None and not isinstance(content, dict):
            raise UserError(f"{value} is no YAML mapping of options")


def _beyond_this_machine(error: BaseException) -> str | None:
    """What ran out, where an error means that; None for any other."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return "not enough memory: use smaller batches, a shorter context or a smaller model"
    if isinstance(error, RecursionError):
        return "a value from outside is nested too deeply"
    if isinstance(error, OverflowError):
        return f"a number from outside is too large ({error})"
    return None


_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


def say_error(line: str) -> None:
    """Write a line to standard error, control characters written out."""
    sys.stderr.write(printable(line) + "\n")


def log_to_stderr() -> None:
    """Write every warning to standard error, a line each; the program's own handlers stay."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapedLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class EscapedLines(logging.Formatter):
    """A message in one line, control characters written out; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))
