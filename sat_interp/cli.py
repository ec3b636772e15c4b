"""The command ``sat-train``: the fields of TrainConfig as options, and ``train``."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from sat_interp._util.commandline import check_config_files, log_to_stderr, run_command, underscored
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.reading import Unreadable, read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = """\
examples:
  sat-train --out runs/baseline                       the preset demo: about two minutes
  sat-train --variant local --k 4 --out runs/local    with gates
  sat-train --preset tinystories-3m --variant global --k 8 --out runs/paper --precision bf16
  sat-train --data stories.jsonl.gz --tokenizer bpe:10000 --out runs/mine
  sat-train --out runs/baseline --resume              go on after an interruption
  sat-train --match-perplexity 6.5 --out runs/matched a baseline no better than that
  sat-train --preset tinystories-3m --print_config > run.yaml; sat-train --config run.yaml --out DIR
  torchrun --nproc-per-node 2 --no-python sat-train --out runs/two
  sat-train --study studies/demo.yaml                 many runs: what is missing of them
"""

_FLAGS = ("resume", "compile")
_FOR_GATES = (
    "k", "k_attention", "k_neurons", "gates", "soft", "unit", "forward_mask", "temperature",
    "near_ties",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sat-train``; returns 0, 2 for what the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _log_to_stderr()
    names = [argument.partition("=")[0] for argument in arguments]
    command = _train_study if "--study" in names else _train
    return run_command(lambda: command(arguments))


def _train(arguments: list[str]) -> None:
    settings = parse(arguments)
    from sat_interp.training.config import TrainConfig
    from sat_interp.training.loop import train
    from sat_interp.training.report import describe

    result = train(TrainConfig(**settings))
    final = describe(result.summary["final"])
    logging.getLogger(__name__).info("validation %s; the model is in %s", final, result.out)


def _train_study(arguments: list[str]) -> None:
    """``sat-train --study FILE [--out DIR]``: a table at the end, then a failure for any run's."""
    from rich.console import Console

    from sat_interp.training.study import raise_failures, read_study, train_study
    from sat_interp.training.study_table import study_table

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("study", "out"):
        parser.add_argument(f"--{name}")
    try:
        given, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if others:
        raise UserError(f"{others[0]} does not go with --study: settings stand in its file")
    done = train_study(read_study(given.study, given.out))
    Console(width=None if sys.stdout.isatty() else 110).print(study_table(done))
    raise_failures(done)


def parse(arguments: list[str]) -> dict[str, Any]:
    """The fields of TrainConfig that a command line and its ``--config`` file ask for.

    ``--preset`` changes the defaults; ``--k`` stands for ``--k_attention`` and ``--k_neurons``
    where these are not given themselves. ``--a-b`` is ``--a_b``.

    Raises:
        UserError: the command line or the file makes no sense.
    """
    import jsonargparse

    arguments = [underscored(argument) for argument in arguments]
    check_config_files(arguments)
    early, file = _early(arguments)
    parser = _parser(early.preset or file.get("preset") or "demo")
    try:
        namespace = parser.parse_args(_spread_k(arguments, early.k, file))
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_explain(str(error), parser, early.config)) from error
    settings = namespace.as_dict()
    _refuse_gates_without_variant(arguments, settings)
    for name in ("config", "k", "study"):
        settings.pop(name, None)
    return settings


def _parser(preset: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    from sat_interp.training.config import TrainConfig, preset_settings

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """jsonargparse's help, with the examples as they stand."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="sat-train",
        usage="sat-train --out DIR [--preset NAME] [--variant none|local|global] [--k K] [options]",
        description="Train a transformer with or without self-ablation gates.\n\n" + EXAMPLES,
        formatter_class=Formatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options.")
    parser.add_argument("--study", help="YAML file that names many runs; takes --out beside it.")
    parser.add_argument("--k", type=int | None, default=None, help="k_attention and k_neurons.")
    parser.add_class_arguments(TrainConfig, as_group=False, skip=set(_FLAGS))
    for flag, text in _docstrings(TrainConfig, _FLAGS).items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    parser.set_defaults(preset_settings(preset))
    return parser


def _docstrings(config: type, names: Sequence[str]) -> dict[str, str]:
    """What stands under these fields of a dataclass."""
    from docstring_parser import parse_from_object

    found = {param.arg_name: param.description or "" for param in parse_from_object(config).params}
    return {name: " ".join(found.get(name, "").split()) for name in names}


def _early(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """``--preset`` and ``--k``, which decide the other defaults, and the config file's content."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("preset", "k", "config"):
        parser.add_argument(f"--{name}")
    try:
        early, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    return early, _yaml(early.config) if early.config else {}


def _yaml(path: str) -> dict[str, Any]:
    """A config file's content; what is wrong with it, the parser proper will say."""
    try:
        content = read_yaml(path)
    except Unreadable:
        return {}
    return content if isinstance(content, dict) else {}


def _spread_k(arguments: list[str], k: str | None, file: dict[str, Any]) -> list[str]:
    """Add ``--k_attention`` and ``--k_neurons`` where ``k`` is given and they are not.

    Given on the command line, k goes before what a config file says; given in the file, it does
    not go before k_attention and k_neurons there.
    """
    explicit = {argument.partition("=")[0] for argument in arguments}
    names = [name for name in ("k_attention", "k_neurons") if f"--{name}" not in explicit]
    if k is None:
        k = file.get("k")
        names = [name for name in names if name not in file]
    if k is None:
        return arguments
    return arguments + [part for name in names for part in (f"--{name}", str(k))]


def _refuse_gates_without_variant(arguments: list[str], settings: dict[str, Any]) -> None:
    """Who asks for k winners wants gates, unless ``--variant none`` is said beside it."""
    explicit = [argument.partition("=")[0] for argument in arguments]
    if settings["variant"] != "none" or "--variant" in explicit:
        return
    for option in explicit:
        if option.removeprefix("--") in _FOR_GATES and option.startswith("--"):
            raise UserError(f"{option} is for gates: add --variant local or --variant global")


def _explain(message: str, parser: ArgumentParser, file: str | None) -> str:
    """jsonargparse's several lines as one that says what to do."""
    options = [action.dest for action in parser._actions]
    if match := re.match(r"unrecognized arguments: --([^\s=]+)", message):
        return _unknown("option --", match[1], options)
    if match := re.match(r"Option '(\S+)' is not accepted", message):
        return _unknown("setting ", match[1], options)
    if match := re.match(r'Parser key "(\w+)":.*Given? value: (.*)', message, re.DOTALL):
        return _expected(match[1], match[2])
    if match := re.match(r'Parser key "(\w+)":.*Got value: (.*)', message, re.DOTALL):
        return _expected(match[1], match[2])
    message = " ".join(message.split())
    if re.search(r"parsing config|Unexpected config", message):
        return f"{file} is no YAML mapping of options: {message}"
    return message.removeprefix('Parser key "config": ')


def _unknown(kind: str, name: str, options: list[str]) -> str:
    """``suggest`` without its list: there are too many options for one line."""
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}?" if near else "they are listed by sat-train --help"
    return f"unknown {kind}{name}: {hint}"


def _expected(name: str, value: str) -> str:
    from sat_interp.training.config import TrainConfig

    hint = get_type_hints(TrainConfig).get(name, int)
    choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
    if choices:
        return suggest(name, value, choices)
    types = get_args(hint) or (hint,)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted = " or ".join(words[kind] for kind in types if kind in words)
    return f"{name} must be {wanted}, not {value!r}"


def _log_to_stderr() -> None:
    """The toolkit's own progress, and every warning, one line each."""
    log_to_stderr()
    is_first = os.environ.get("RANK", "0") == "0"  # under torchrun, one process speaks
    logging.getLogger("sat_interp").setLevel(logging.INFO if is_first else logging.ERROR)
