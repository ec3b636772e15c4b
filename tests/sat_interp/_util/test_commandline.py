"""Lines of the log and of errors: nothing in a name reaches the terminal as a command."""

from __future__ import annotations

import io
import logging

import pytest

from sat_interp._util.commandline import (
    log_to_stderr,
    option_parser,
    parse_options,
    run_command,
)
from sat_interp._util.errors import UserError

NAMES = {
    "\x1b[31mred": "\\x1b[31mred",
    "a\nerror: forged": "a\\nerror: forged",
    "\x9b2J": "\\x9b2J",
    "\u202eevil": "\\u202eevil",
    "\udcff": "\\udcff",
    "a\rb\x07": "a\\rb\\x07",
    "100 % of %s": "100 % of %s",
}


@pytest.fixture
def logged(monkeypatch):
    """A function that hands a record to the log's handler and returns what was written.

    Records do not go through a logger: pytest keeps what loggers see, and its processes cannot send
    a lone surrogate to each other.
    """
    root, stream = logging.getLogger(), io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    log_to_stderr()
    assert root.level == logging.WARNING
    (handler,) = root.handlers

    def write(message: str, name: str, error: BaseException | None = None) -> str:
        told = (type(error), error, error.__traceback__) if error else None
        record = logging.LogRecord("any", logging.WARNING, "file", 1, message, (name,), told)
        handler.handle(record)
        return stream.getvalue()

    yield write
    root.setLevel(level)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_log_line_is_one_line_without_control_characters(name, logged):
    assert logged("%s is read", name) == f"{NAMES[name]} is read\n"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_traceback_keeps_its_lines_and_no_control_character(name, logged):
    try:
        raise ValueError(name)
    except ValueError as error:
        written = logged("%s failed", name, error)
    first, second, *_ = written.splitlines()
    assert first == f"{NAMES[name]} failed"
    assert second.startswith("Traceback")
    assert not set("\x1b\x9b\u202e\udcff\r\x07") & set(written)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_an_error_is_one_line_without_control_characters(name, capsys):
    def fail():
        raise UserError(name)

    assert run_command(fail) == 2
    assert capsys.readouterr().err == f"error: {NAMES[name]}\n"


def test_handlers_of_the_program_stay(monkeypatch):
    handler = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    log_to_stderr()
    assert logging.getLogger().handlers == [handler]


def test_what_the_encoding_of_standard_output_lacks_is_no_traceback(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_command(lambda: print("0.49 \u2013 0.52", flush=True)) == 0
    assert written.getvalue() == b"0.49 ? 0.52\n"


@pytest.mark.parametrize("arguments", [["--study="], ["--out", ""], ["--study", "", "--out", "a"]])
def test_empty_text_is_no_value(arguments):
    parser = option_parser()
    for name in ("--study", "--out"):
        parser.add_argument(name)
    with pytest.raises(UserError, match="--(study|out) is empty: give a value"):
        parse_options(parser, arguments)
