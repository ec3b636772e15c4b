"""Functions shared by the commands: options from dataclasses, errors in one line, the log.

:func:`option_parser` makes the options, :func:`parse_options` reads a command line, :func:`build`
makes a configuration of what was read, and :func:`run_command` runs the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jsonargparse
from docstring_parser import parse_from_object

from sat_interp._util.errors import UserError, suggest, system_reason
from sat_interp._util.escape import printable
from sat_interp._util.reading import UnreadableError, read_yaml
from sat_interp._util.settings import alternatives, choices, type_words

Config = TypeVar("Config")

_HELP = {
    "--help": "Print this help and exit.",
    "--print-config": "Print the options as YAML and exit.",
}
_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "BOOL", Path: "PATH"}


def option_parser(
    *configs: type,
    prog: str | None = None,
    usage: str | None = None,
    description: str = "",
    examples: str = "",
    sections: Mapping[str, Sequence[type]] | None = None,
    skip: Collection[str] = (),
) -> jsonargparse.ArgumentParser:
    """Parser whose options are the fields of dataclasses, for :func:`parse_options`.

    A field ``match_runs: int = 12`` becomes ``--match-runs N`` (``--match_runs`` is accepted too),
    its help is the docstring under the field. A bool that is False by default is a flag; one that
    is True has ``--no-x`` beside ``--x``; ``tuple[float, ...]`` is written with commas; Any
    is text. Fields without default are required. ``--config FILE`` reads a YAML file of options,
    ``--print-config`` prints one. Further arguments and defaults come from ``add_argument`` and
    ``set_defaults``.

    Args:
        configs: dataclasses with a docstring per field; a field of several is one option, as the
            first declares it.
        prog: name of the command, which gets ``--version``; None for a subcommand.
        usage: the usage line; by default jsonargparse's.
        description: what the command does.
        examples: command lines, shown as they are written.
        sections: dataclasses by the prefix of their options: ``--lm.stories N`` and, in a YAML
            file, ``lm: {stories: N}``; None where an option is not given.
        skip: fields that are not options.
    """
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description="\n\n".join(part.strip() for part in (description, examples) if part.strip()),
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config="--print-config",
        version=metadata.version("sat-interp") if prog else None,
    )
    parser.add_argument("--config", action="config", help="YAML file of options.", metavar="FILE")
    seen = set(skip)
    for config in configs:
        _add_fields(parser, config, "", seen)
    for section, kinds in (sections or {}).items():
        group, own = parser.add_argument_group(f"options of {section}"), set[str]()
        for kind in kinds:
            _add_fields(group, kind, f"{section}.", own)
        parser.set_defaults({f"{section}.{name}": None for name in own})
    return parser


def parse_options(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Values of every option by field name, from a command line and its ``--config`` file.

    With subcommands the result has ``subcommand`` and, under its name, that command's values.
    Options of a section are a dictionary under its name.

    Raises:
        UserError: the command line or the file is not valid; one line says which option is wrong
            and what it takes.
        SystemExit: after ``--help``, ``--version`` or ``--print-config``, with code 0.
    """
    arguments = [hyphenated(argument) for argument in arguments]
    _refuse_empty(arguments)
    config_values(arguments)
    try:
        parsed = parser.parse_args(arguments)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_explain(str(error), parser, arguments)) from error
    values: dict[str, Any] = parsed.as_dict()
    command = values.get(str(values.get("subcommand")), {})
    for options in (values, command):
        options.pop("config", None)
    return values


def build(config: type[Config], options: Mapping[str, Any]) -> Config:
    """Instance of a configuration dataclass from the options that are its fields."""
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**{name: options[name] for name in names if name in options})


def _add_fields(group: Any, config: type, prefix: str, seen: set[str]) -> None:
    """Add an option for each field that is not in ``seen`` yet."""
    hints, help_texts = get_type_hints(config), field_docstrings(config)
    for field in dataclasses.fields(config):
        if field.name in seen or not field.init:
            continue
        seen.add(field.name)
        option = f"--{prefix}{field.name.replace('_', '-')}"
        hint, default = hints[field.name], _default(field)
        hint = str | None if hint is Any else hint
        settings: dict[str, Any] = {"help": help_texts.get(field.name, ""), "default": default}
        if hint is bool and default is not dataclasses.MISSING:
            no_prefix: Any = "no-" if default else None
            settings["action"] = jsonargparse.ActionYesNo(no_prefix=no_prefix)
        else:
            is_required = default is dataclasses.MISSING
            if is_required:
                del settings["default"]
            is_tuple = get_origin(hint) is tuple
            settings |= {
                "type": _CommaList(get_args(hint)[0]) if is_tuple else hint,
                "required": is_required,
                "metavar": _metavar(hint),
            }
        group.add_argument(option, **settings)


class _CommaList:
    """Type of a tuple option: ``a,b`` on the command line, a list in a YAML file."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __call__(self, value: str | Sequence[Any]) -> tuple[Any, ...]:
        """Return the parts as a tuple.

        Raises:
            ValueError: a part has another type or is not one of the choices.
        """
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self._part(part.strip() if isinstance(part, str) else part) for part in parts)

    def _part(self, part: Any) -> Any:
        if get_origin(self.kind) is not Literal:
            return self.kind(part)
        if part not in get_args(self.kind):
            raise ValueError(part)
        return part


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def field_docstrings(config: type) -> dict[str, str]:
    """Docstrings under the fields of a dataclass and of its bases, each in one line."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__[:-1]):
        for param in parse_from_object(base).params:
            texts[param.arg_name] = " ".join((param.description or "").split())
    return texts


def _metavar(hint: Any) -> str:
    """Placeholder for an option's value: ``N``, ``{local,global}``, ``N|all``, ``X,X,...``."""
    if get_origin(hint) is tuple:
        part = _metavar(get_args(hint)[0])
        return f"{part},{part},..."
    values = choices(hint)
    names = [_METAVARS[kind] for kind in alternatives(hint) if kind in _METAVARS]
    if values and not names:
        return f"{{{','.join(values)}}}"
    return "|".join([*names[:1], *values]) or "VALUE"


class _Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Help with types as words, without null defaults, examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = _HELP.get("".join(action.option_strings[-1:]), action.help or "")
        hint = _hint(action)
        if not action.option_strings or hint is None:
            return text
        notes = ["required"] if action.required else []
        lists_choices = _metavar(hint).startswith("{")
        if action.nargs != 0 and not lists_choices and (words := type_words(hint)):
            notes.append(words.removeprefix("a "))
        if action.default != () and not any(
            action.default is item for item in (None, False, argparse.SUPPRESS)
        ):
            notes.append(f"default: {_shown_default(action.default)}")
        return f"{text} ({', '.join(notes)})" if notes else text


def _shown_default(default: Any) -> str:
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _hint(action: argparse.Action) -> Any:
    """Type of an option's value; None for flags, help and the like."""
    if isinstance(action, jsonargparse.ActionYesNo):
        return bool
    hint = getattr(action, "_typehint", None) or action.type
    return types.GenericAlias(tuple, (hint.kind, ...)) if isinstance(hint, _CommaList) else hint


@dataclasses.dataclass(frozen=True)
class _Context:
    """Where an error happened: the parser of the command, the command's name, its config file."""

    parser: jsonargparse.ArgumentParser
    command: str
    file: str

    def action(self, name: str) -> argparse.Action | None:
        """Argument of this name, which may begin with the command's."""
        name = name.removeprefix(f"{self.command}.")
        return next((item for item in self.parser._actions if item.dest == name), None)

    def option(self, name: str) -> str:
        """Argument as it is written on the command line."""
        action = self.action(name)
        if action is None:
            return name
        return action.option_strings[0] if action.option_strings else str(action.metavar or name)


def _explain(message: str, parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """Turn the parser's message of several lines into one line that says what to do."""
    subcommands = parser._subcommands_action
    commands = dict(subcommands.choices) if subcommands else {}
    name = next((part for part in arguments if part in commands), "")
    if commands and not name:
        if match := re.search(r"invalid choice: '(.*?)'", message):
            return suggest("command", match[1], commands)
        if message.startswith('expected "subcommand"'):
            return f"name a command: {', '.join(commands)}"
    context = _Context(
        commands.get(name, parser), name, given_options(arguments).get("--config", "")
    )
    for pattern, explain in _EXPLANATIONS.items():
        if match := re.match(pattern, message, re.DOTALL):
            return explain(match, context)
    return " ".join(message.split())


def _unknown_option(match: re.Match[str], context: _Context) -> str:
    if not match[1].startswith("-"):
        return f"unexpected argument {match[1]!r}"
    known = [option for action in context.parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(match[1], known, n=1)
    command = context.parser.prog.replace(" [options]", "")
    hint = f"did you mean {near[0]}?" if near else f"{command} --help lists the options"
    return f"unknown option {match[1]}: {hint}"


def _unknown_setting(match: re.Match[str], context: _Context) -> str:
    name = match[1].removeprefix(f"{context.command}.")
    known = [action.dest for action in context.parser._actions]
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"{context.file}: unknown setting {name}{hint}"


def _missing(match: re.Match[str], context: _Context) -> str:
    return f"missing {' and '.join(context.option(name) for name in match[1].split(', '))}"


def _wrong_value(match: re.Match[str], context: _Context) -> str:
    option, action = context.option(match[1]), context.action(match[1])
    details = " ".join(match[2].split())
    if action is None or action.dest == "config":
        return details
    hint, values = _hint(action), re.findall(r"(?:Given|Got) value: (.*)", match[2])
    value = values[-1].strip() if values else None
    kinds = [kind for kind in alternatives(hint) if kind is not type(None)]
    if value is not None and all(get_origin(kind) is Literal for kind in kinds):
        return suggest(option.removeprefix("--"), value, choices(hint))
    wanted = f"{option} must be {type_words(hint) or 'of another type'}"
    return f"{wanted} ({details})" if value is None else f"{wanted}, not {value!r}"


def _wrong_part(match: re.Match[str], context: _Context) -> str:
    action = context.action(match[1].removeprefix("--").replace("-", "_"))
    wanted = type_words(_hint(action)) if action else ""
    return f"{match[1]} must be {wanted or 'of another type'}, not {match[2]}"


def _needs_value(match: re.Match[str], context: _Context) -> str:
    return f"{match[1]} needs a value"


def _no_flag(match: re.Match[str], context: _Context) -> str:
    return f"{context.file}: a flag must be true or false, not {match[1]}"


def _takes_no_value(match: re.Match[str], context: _Context) -> str:
    return f"{match[1]} takes no value"


_EXPLANATIONS: dict[str, Callable[[re.Match[str], _Context], str]] = {
    r"unrecognized arguments: ([^\s=]+)": _unknown_option,
    r"Option '(\S+)' is not accepted": _unknown_setting,
    r"Subcommand '\S+' does not accept option '(\S+)'": _unknown_setting,
    r"the following arguments are required: (.*)": _missing,
    r'Parser key "([\w.]+)":(.*)': _wrong_value,
    r"argument (\S+): invalid .* value: (.*)": _wrong_part,
    r"argument (\S+): expected (?:one|at least one) argument": _needs_value,
    r"Value not boolean: (.*)\.": _no_flag,
    r"argument ([^\s/]+)\S*: ignored explicit argument": _takes_no_value,
}
"""Patterns of messages of argparse and jsonargparse, and what replaces them."""


def hyphenated(argument: str) -> str:
    """``--match_perplexity=5`` with the option as the help spells it, ``--match-perplexity=5``."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise UserError for an option whose value is empty text, as of a shell variable not set."""
    for argument, following in zip_longest(arguments, arguments[1:]):
        option, equals, value = argument.partition("=")
        if option.startswith("--") and (value if equals else following) == "":
            raise UserError(f"{option} is empty: give a value, or leave the option out")


def given_options(arguments: Sequence[str]) -> dict[str, str]:
    """Options of a command line, spelled with hyphens, and the text after each (the last one's)."""
    return dict(_options(arguments))


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = hyphenated(argument).partition("=")
        if option.startswith("--"):
            yield option, value if equals or following.startswith("--") else following


def config_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Content of the files after ``--config``; later files take precedence.

    They are read with limits on size and nesting, which the parser does not have.

    Raises:
        UserError: one does not exist, is not a regular file, too large, not UTF-8, not a YAML
            mapping, nested too deeply, or too large once its aliases are followed.
    """
    values: dict[str, Any] = {}
    for option, path in _options(arguments):
        if option != "--config" or not path:  # the parser says that the value is missing
            continue
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such file")
        try:
            content = read_yaml(path)
        except UnreadableError as error:
            raise UserError(f"{path} is not a YAML mapping of options: {error}") from error
        if content is not None and not isinstance(content, dict):
            raise UserError(f"{path} is not a YAML mapping of options")
        values |= content or {}
    return values


@contextmanager
def named_as_options(config: type) -> Iterator[None]:
    """Spell a dataclass's fields as options in the messages of errors: ``--n-heads``.

    A name of one word is changed only as the subject of the message: ``--steps must be ...``.

    Raises:
        UserError: in place of another.
    """
    names = [field.name for field in dataclasses.fields(config)]
    subject = rf"^(?:{'|'.join(names)})(?= must be )"
    anywhere = rf"(?<![\w./-])(?:{'|'.join(name for name in names if '_' in name)})(?![\w/-]|\.\w)"
    pattern = re.compile(f"{subject}|{anywhere}")
    try:
        yield
    except UserError as error:
        message = pattern.sub(lambda match: hyphenated(f"--{match[0]}"), str(error))
        raise UserError(message) from error


def run_command(command: Callable[[], object]) -> int:
    """Run a command; an error that the user can correct becomes one line and exit code 2.

    A character that the encoding of standard output lacks is printed as a question mark.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    try:
        command()
    except UserError as error:
        say_error(f"error: {error}")
        return 2
    except OSError as error:
        # A full disk, a missing permission, a directory where a file should be: the system's
        # own words name the cause and the file.
        say_error(f"error: {system_reason(error)}")
        return 2
    except (MemoryError, RecursionError, OverflowError, RuntimeError) as error:
        if (reason := _beyond_this_machine(error)) is None:
            raise
        say_error(f"error: {reason}")
        return 2
    except KeyboardInterrupt:
        say_error("interrupted: finished work is kept; run the same command again to continue")
        return 130
    return 0


def _beyond_this_machine(error: BaseException) -> str | None:
    """Name the resource that an error says is exhausted; None for any other error."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return "not enough memory: use smaller batches, a shorter context or a smaller model"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply"
    if isinstance(error, OverflowError):
        return f"a number in the input is too large ({error})"
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
