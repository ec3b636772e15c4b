"""What every command does alike: how options are spelled, how failures are told."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sat_interp.errors import UserError
from sat_interp.escape import printable


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
        _say(f"error: {error}")
        return 2
    except OSError as error:
        # A full disk, a missing permission, a directory where a file should be: the system's
        # own words name the cause and the file.
        where = f": {error.filename}" if error.filename else ""
        _say(f"error: {error.strerror or error}{where}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted: finished work is kept, run the same command again")
        return 130
    return 0


def _say(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")
