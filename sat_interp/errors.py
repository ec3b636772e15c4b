"""Errors a user can cause: one line that says what to do, never a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Something the user can mend; its text is one line that says how.

    The commands print it as ``error: ...`` on stderr and exit with code 2. It is a ``ValueError``,
    so that notebooks and other libraries can catch it without importing this module.
    """


def suggest(kind: str, name: object, choices: Iterable[str]) -> str:
    """``unknown preset 'dmo': did you mean 'demo'? choices: demo, tinystories-3m``."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} choices: {', '.join(known) or 'none'}"


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
    sys.stderr.write(line + "\n")
