"""Errors that a user can correct: one line that says how, without a traceback."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MOST_CHOICES = 24
"""Names that a message lists; a model has hundreds of hook points."""
MOST_CHARACTERS = 300
"""Characters of another library's message that one of our own quotes."""


class UserError(ValueError):
    """An error that the user can correct; its text is one line that says how.

    The commands print it as ``error: ...`` on stderr and exit with code 2. It is a ``ValueError``,
    so that notebooks and other libraries can catch it without importing this module.
    """


def system_reason(error: OSError) -> str:
    """An error of the system in its own words, with the file: ``No space left on device: /x``."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def shown(value: object) -> str:
    """A value as a message shows it: one short line, whatever the value is."""
    text = _SHORT.repr(value)
    return text if text.isprintable() else ascii(text)


def first_line(error: BaseException) -> str:
    """First line of another library's error message, to end one of our own.

    A first line that only announces what follows (it ends in a colon) is joined with the next. An
    error without a message gives the name of its class.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announced = len(lines) > 1 and lines[0].endswith(":")
    return (f"{lines[0]} {lines[1]}" if announced else lines[0])[:MOST_CHARACTERS]


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def suggest(kind: str, name: object, choices: Iterable[str]) -> str:
    """``unknown preset 'dmo': did you mean 'demo'? choices: demo, tinystories-3m``."""
    known = sorted(choices)
    listed = ", ".join(known[:MOST_CHOICES]) or "none"
    if len(known) > MOST_CHOICES:
        listed += f" and {len(known) - MOST_CHOICES:,} more"
    near = difflib.get_close_matches(str(name)[:100], known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {shown(name)}{hint} choices: {listed}"
