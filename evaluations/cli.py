"""sat-eval: the command line, derived from the typed functions in ``commands/``.

Nothing heavy is imported before a command runs: ``sat-eval --help`` answers at once.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from evaluations.commands import COMMANDS
from sat_interp._util.commandline import (
    check_config_files,
    log_to_stderr,
    run_command,
    say_error,
    underscored,
)
from sat_interp._util.errors import UserError, shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sat-eval``; returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    arguments = [underscored(one) for one in arguments]
    log_to_stderr()
    try:
        check_config_files(arguments)
        parsed = build_parser().parse_args(arguments)
    except (argparse.ArgumentError, UserError) as error:
        say_error(f"error: {_one_line(error)}")
        return 2
    chosen = parsed.subcommand
    settings = dict(parsed[chosen].as_dict())
    settings.pop("config", None)

    def command() -> None:
        if not 0 <= settings.get("seed", 0) < 2**63:  # what every generator takes
            raise UserError(f"seed must be from 0 to 2^63 - 1, not {shown(settings['seed'])}")
        COMMANDS[chosen](**settings)

    return run_command(command)


def build_parser() -> Any:
    """The parser of all commands, derived from their signatures and docstrings."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Defaults in the help, and examples as they are written."""

    parser = ArgumentParser(
        prog="sat-eval",
        formatter_class=Formatter,
        description="Is a transformer easier to understand? One evaluation of it, or several.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True)
    for name, function in COMMANDS.items():
        commands.add_subcommand(name, _command_parser(function), help=_summary(function))
    return parser


def _command_parser(function: Callable[..., object]) -> Any:
    from jsonargparse import ArgumentParser

    text = inspect.getdoc(function) or ""
    parser = ArgumentParser(
        description=_described(text),
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="settings from a YAML file")
    # Left as strings, the parser would resolve them itself, with all that the module imports for
    # its type hints alone: torch.
    function.__annotations__ = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    switches = {name for name, one in parameters.items() if one.default is False}
    told = _argument_help(text)
    by_hand = switches | ({"models"} & parameters.keys())
    if "models" in parameters:
        # the battery's may come from a study instead
        some = "+" if parameters["models"].default is inspect.Parameter.empty else "*"
        parser.add_argument("models", nargs=some, type=str, metavar="MODEL", help=told["models"])
    parser.add_function_arguments(function, skip={*by_hand}, as_group=False)
    for name in sorted(switches):
        parser.add_argument(f"--{name}", action="store_true", help=told[name])
    return parser


def _described(text: str) -> str:
    """A docstring up to its arguments, its double colons made single ones."""
    return text.split("\nArgs:")[0].strip().replace("::", ":")


def _summary(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def _argument_help(text: str) -> dict[str, str]:
    """The entries of a docstring's Args section."""
    section = re.split(r"\n\w+:\n", text.split("Args:\n")[-1])[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE)
    return {name: " ".join(told.split()) for name, told in entries}


def _one_line(error: Exception) -> str:
    """A parser's complaint in one line: which option, and what was wrong with it."""
    text = str(error)
    option = re.match(r'Parser key "([^"]+)":', text)
    given = re.search(r"(?:Given|Got) value: (.*)", text)
    if not option or not given:
        return re.sub(r"\b\w+\.models\b", "MODEL", " ".join(text.split()))
    name = option[1].split(".")[-1].replace("_", "-")
    choices = re.search(r"Literal\[(.*?)\]", text)
    wanted = f"one of {choices[1]}" if choices else "another type"
    for kind, words in {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }.items():
        if f"<class '{kind}'>" in text:
            wanted = words
    return f"--{name} must be {wanted}, not {given[1].strip()!r}"
