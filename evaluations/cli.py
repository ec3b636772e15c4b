"""sat-eval: one typed function a command, and the command line that is derived from it.

Nothing heavy is imported before a command runs: ``sat-eval --help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sat_interp.commandline import run_command, underscored

Dtype = Literal["float32", "float64", "bfloat16"]


def lm(
    models: list[str],
    data: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    activation_stories: int = 200,
    resamples: int = 2000,
) -> list[Any]:
    """Language modelling: perplexity, bits per byte, L1 of weights, sparsity of activations.

    Every story of the validation split is scored whole, from position 0, for the clean stream and,
    for models with gates, the ablated one. A table is printed; a record for each model is written.
    What is already there is not run again, whatever the model is called by now.

    Examples::

        sat-eval lm demo:baseline demo:local-k4 demo:global-k4
        sat-eval lm runs/mine --data stories.jsonl.gz
        sat-eval lm ./gpt2-directory --data train.txt --validation held-out.txt --stories 500
        sat-eval lm runs/mine --config lm.yaml ; sat-eval lm runs/mine --print_config

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        data: demo, tinystories, a Hugging Face dataset (name:column), or .txt, .jsonl[.gz],
            .parquet files. Its validation split is scored, or all of files that have none.
            Where one of the models was trained on it, all are scored on what was held out then.
            Default: what each model was trained on (its held-out stories), else demo.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.
        out: directory of the records.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the computation.
        seed: of the bootstrap, the sample of stories, and gates that are random.
        activation_stories: stories whose activations are measured; 0 for none.
        resamples: bootstrap resamples.

    Returns:
        A ``Record`` for each model, the written ones and those that were there.
    """
    from evaluations.language import EVALUATION, LanguageConfig
    from evaluations.models import LoadedModel, load_model, origin
    from evaluations.origin import Origin, origin_of_text, text_to_score
    from evaluations.report.figures import draw_language
    from evaluations.report.tables import LANGUAGE, write_tables
    from evaluations.runner import run
    from evaluations.text import Text, evaluation_text
    from sat_interp.data.sources import parse_data

    if data is not None:
        parse_data(data, validation)  # a wrong name is told before any model is loaded
    named = validation or data  # what would be scored
    shared: Origin | None = None
    if named is not None:
        parse_data(named)
        shared = origin_of_text(_origins(models, origin), named)
    config = LanguageConfig(seed, resamples, activation_stories)

    def load(spec: str) -> LoadedModel:
        return load_model(spec, device, dtype, tokenizer)

    def text(loaded: LoadedModel) -> Text:
        own = Origin(data=loaded.data, validation=loaded.validation)
        name, held, was_trained_on = text_to_score(own, shared, data, validation)
        return evaluation_text(loaded.tokenizer, name, held, stories, was_trained_on)

    outcome = run(EVALUATION, models, text, config, out, force, load=load)
    written = [*write_tables(LANGUAGE, outcome.records, Path(out), "lm")]
    written += draw_language(outcome.records, Path(out) / "lm")
    _show(outcome, LANGUAGE, out, written)
    return outcome.records


def _origins(models: Sequence[str], origin: Callable[[str], Any]) -> list[Any]:
    """Where the models come from; those that cannot be found fail on their own, later."""
    from sat_interp.errors import UserError

    found = []
    for spec in models:
        with contextlib.suppress(UserError, OSError):
            found.append(origin(spec))
    return found


COMMANDS: dict[str, Callable[..., object]] = {"lm": lm}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sat-eval``; returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        parsed = build_parser().parse_args([underscored(one) for one in arguments])
    except argparse.ArgumentError as error:
        sys.stderr.write(f"error: {_one_line(error)}\n")
        return 2
    chosen = parsed.subcommand
    settings = dict(parsed[chosen].as_dict())
    settings.pop("config", None)
    return run_command(lambda: COMMANDS[chosen](**settings))


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
    parameters = inspect.signature(function).parameters
    switches = {name for name, one in parameters.items() if one.default is False}
    told = _argument_help(text)
    by_hand = switches | ({"models"} & parameters.keys())
    if "models" in parameters:
        parser.add_argument("models", nargs="+", type=str, metavar="MODEL", help=told["models"])
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
        return " ".join(text.split()).replace("lm.models", "MODEL")
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


def _show(outcome: Any, layouts: Sequence[Any], out: str, written: Sequence[Path] = ()) -> None:
    """Print the tables of what went well; then fail, in one line, for what did not."""
    from rich.console import Console

    from evaluations.report.tables import rich_table

    console = Console()
    if not console.is_terminal:
        console.width = 130  # a file or a pipe has no edge to wrap at
    if outcome.records:
        for layout in layouts:
            console.print(rich_table(layout, outcome.records))
        kept = f" ({outcome.skipped} were there already; --force runs them again)"
        count = f"{len(outcome.records)} record{'s' * (len(outcome.records) != 1)}"
        console.print(f"{count} in {out}{kept if outcome.skipped else ''}", highlight=False)
        if written:
            names = ", ".join(str(path) for path in written)
            console.print(f"tables and figure: {names}", highlight=False, soft_wrap=True)
    outcome.raise_failures()
