"""``sat-eval``: a command for each evaluation of the registry, and a few that span them.

Nothing heavy is imported before a command runs: ``sat-eval --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluations.battery.options import BatteryOptions, StatusOptions
from evaluations.comparison.options import (
    AccuracyOptions,
    CurvesOptions,
    ReportOptions,
    VerdictOptions,
)
from evaluations.core.options import DEFAULT_OUT, RunOptions, TextOptions, make_request
from evaluations.core.spec import Spec
from evaluations.registry import SPECS, find_spec
from sat_interp._util import progress
from sat_interp._util.commandline import (
    build,
    log_to_stderr,
    option_parser,
    parse_options,
    run_command,
)
from sat_interp._util.errors import UserError, shown
from sat_interp.engine.parent import end_with_parent

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

MODELS_HELP = (
    "demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of Hugging Face; a "
    "training run; a hub id. 'MODEL [untrained]' and 'MODEL [shuffled]' are its controls."
)


@dataclass(frozen=True)
class Command:
    """A command other than an evaluation.

    Attributes:
        options: dataclasses whose fields are its options.
        run: called with the MODEL arguments and the options by name.
        n_models: as argparse's ``nargs``.
        has_sections: whether it takes the options of every evaluation, as ``--lm.stories``.
    """

    name: str
    summary: str
    description: str
    examples: tuple[str, ...]
    options: tuple[type, ...]
    run: Callable[[list[str], Mapping[str, Any]], object]
    n_models: str = "+"
    has_sections: bool = False


def main(argv: Sequence[str] | None = None, records_only: bool = False) -> int:
    """Run ``sat-eval``.

    Args:
        argv: the arguments; by default those of this process.
        records_only: whether an evaluation writes no tables and figures beside its records.

    Returns:
        The exit code: 0, 2 for what the user can mend, 130 when interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    log_to_stderr()
    end_with_parent()
    with progress.lines():
        return run_command(lambda: _run(arguments, records_only))


def build_parser(only: str | None = None) -> ArgumentParser:
    """Return the parser of all commands, or of one of them alone, which is made sooner."""
    parser = option_parser(
        prog="sat-eval",
        description="Is a transformer easier to understand? One evaluation of it, or several.",
    )
    commands = parser.add_subcommands(required=True)
    for spec in (spec for spec in SPECS if only in (None, spec.name)):
        own = option_parser(
            *spec.option_classes,
            description=f"{spec.summary}\n\n{spec.description}",
            examples=_listed(spec),
        )
        own.add_argument("models", nargs="+", type=str, metavar="MODEL", help=MODELS_HELP)
        own.set_defaults(out=DEFAULT_OUT)
        commands.add_subcommand(spec.name, own, help=spec.summary)
    for command in (command for command in COMMANDS if only in (None, command.name)):
        commands.add_subcommand(command.name, _command_parser(command), help=command.summary)
    return parser


def _run(arguments: Sequence[str], records_only: bool) -> None:
    known = {spec.name for spec in SPECS} | {command.name for command in COMMANDS}
    only = next((name for name in arguments[:1] if name in known), None)
    values = parse_options(build_parser(only), arguments)
    name = str(values["subcommand"])
    settings = dict(values[name])
    models = settings.pop("models", [])
    if not 0 <= settings.get("seed", 0) < 2**63:  # what every generator takes
        raise UserError(f"seed must be from 0 to 2^63 - 1, not {shown(settings['seed'])}")
    commands = {command.name: command for command in COMMANDS}
    if name in commands:
        commands[name].run(models, settings)
    else:
        _evaluate(find_spec(name), models, settings, records_only)


def _evaluate(
    spec: Spec, models: list[str], settings: Mapping[str, Any], records_only: bool
) -> None:
    from evaluations.core.runner import run
    from evaluations.output import console, finish, say

    request = make_request(models, spec.options, spec.shared, settings)
    if (instead := spec.instead(request)) is not None:
        made, outcome = instead
        for one in made:
            say(console(), f"{one['model']} {one['unit']}: {', '.join(one['files'])}")
        outcome.raise_failures(len(models))
        return
    finish(spec, request, run(spec, request), records_only)


def _all(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.battery.command import run_battery

    run_battery(models, build(BatteryOptions, settings), settings)


def _report(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.comparison.command import print_report

    print_report(models, build(ReportOptions, settings))


def _status(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.battery.status import print_status

    print_status(models, build(StatusOptions, settings))


def _check(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.battery.command import check

    check(models, build(TextOptions, settings), settings.get("tokenizer"))


def _accuracy(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.comparison.accuracy import print_accuracy

    print_accuracy(models, build(AccuracyOptions, settings))


def _verdict(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.comparison.verdict_page import print_verdict

    if models:
        raise UserError(f"verdict takes a study, no MODEL: leave out {shown(models[0])}")
    print_verdict(build(VerdictOptions, settings))


def _curves(models: list[str], settings: Mapping[str, Any]) -> None:
    from evaluations.comparison.curves import draw_curves, read_runs
    from evaluations.output import console, say
    from evaluations.tables import draw

    runs, problems = read_runs(models)
    if runs:
        written = draw.save({"": [draw_curves(runs)]}, Path(settings["out"]), "curves")
        say(console(), ", ".join(map(str, written)))
    if problems:
        raise UserError("; ".join(map(str, problems)))


COMMANDS = (
    Command(
        "all",
        f"The whole battery on several models: {', '.join(spec.name for spec in SPECS)}.",
        "What is done is skipped, so that the same command resumes after an interruption; a part "
        "that fails stops no other, and is named at the end. What the parts print goes to "
        "OUT/logs; their tables and figures to OUT. sat-eval report then makes Tables 1 and 2. "
        "Options of one part are written with its name: --lm.stories 20, or lm: {stories: 20} in a "
        "YAML file (--config).",
        (
            "sat-eval all demo:baseline demo:local-k4 demo:global-k4 --preset quick",
            "sat-eval all --study studies/demo.yaml --out results/demo-study --jobs 2",
            "sat-eval all ./gpt2-directory --data stories.jsonl.gz --parts lm,sae",
            "sat-eval all demo:baseline --lm.stories 20 --acdc.tau 0.01,0.03",
            "sat-eval all --study studies/paper.yaml --engine ray --address head:6379",
        ),
        (BatteryOptions, TextOptions, RunOptions),
        _all,
        n_models="*",
        has_sections=True,
    ),
    Command(
        "report",
        "The paper's tables and figures, from the records below a directory.",
        "Models that differ only in their training seed are one row: mean and 95 % interval, and "
        "the paired differences to the baseline and, of learned gates, to their controls. A single "
        "model has the interval over its own stories or neurons, where that was recorded. Tables "
        "are printed and written as Markdown, LaTeX and CSV to OUT/report, figures beside them, "
        "all of it in one HTML page. MODEL arguments are names in the records (of one model, or of "
        "all seeds of one kind), in the order of their rows; all are shown by default. A record "
        "with a field of a wrong type is left out and named, and so is a figure that fails: all "
        "else is written, and the exit code is 2.",
        (
            "sat-eval report",
            "sat-eval report --out results/demo-study --study studies/demo.yaml",
            "sat-eval report --out results/tinystories-slice --paper-values",
            "sat-eval report demo:local-k4 demo:baseline --only lm,acdc",
        ),
        (ReportOptions,),
        _report,
        n_models="*",
    ),
    Command(
        "status",
        "What is done, running and missing of a study, from its runs and records alone.",
        "A row for each run and MODEL: its training, then each evaluation. An evaluation is done "
        "if there is a record of its present version for a model of that name, and of the task and "
        "single values that the study names; it is running if a sat-eval all on this or another "
        "machine has claimed it in OUT. Nothing is loaded, and no cluster is asked.",
        (
            "sat-eval status --study studies/demo.yaml --out results/demo-study",
            "sat-eval status demo:baseline demo:local-k4 --out results/demo --parts lm,acdc",
        ),
        (StatusOptions,),
        _status,
        n_models="*",
    ),
    Command(
        "check",
        "Which evaluations will work on a model, with what budget and time; no weights are read.",
        "For each model: what it is, the text it would be measured on, and for every evaluation "
        "whether it can be run, what its defaults read and make, and about how long that takes on "
        "one core.",
        (
            "sat-eval check ./gpt2-directory --data stories.jsonl.gz",
            "sat-eval check demo:baseline runs/mine",
        ),
        (TextOptions, RunOptions),
        _check,
    ),
    Command(
        "accuracy",
        "How often models are right on each task: which circuits are worth a search.",
        "Share of prompts on which the right answer has a higher logit than the wrong one, with "
        "its interval; the model's perplexity beside it.",
        ("sat-eval accuracy demo:baseline demo:local-k4 --tasks ioi,quotes,gender",),
        (AccuracyOptions,),
        _accuracy,
    ),
    Command(
        "verdict",
        "Is self-ablation the cause? A study's planned comparisons, with one answer each.",
        "Paired t tests over training seeds, corrected by Holm's method, and whether each interval "
        "excludes the effect that the paper reports. The plan is docs/study.md.",
        ("sat-eval verdict --study studies/answer.yaml --out results/answer",),
        (VerdictOptions,),
        _verdict,
        n_models="*",
    ),
    Command(
        "curves",
        "Training curves of several runs in one figure: both streams, validations as points.",
        "MODEL is a directory that sat-train wrote, or its log.jsonl.",
        ("sat-eval curves runs/baseline runs/local-k4 --out results/mine",),
        (CurvesOptions,),
        _curves,
    ),
)


def _command_parser(command: Command) -> ArgumentParser:
    sections = {spec.name: (*spec.shared, spec.options) for spec in SPECS}
    parser = option_parser(
        *command.options,
        description=f"{command.summary}\n\n{command.description}",
        examples=_listed(command),
        sections=sections if command.has_sections else {},
    )
    parser.add_argument(
        "models", nargs=command.n_models, type=str, metavar="MODEL", help=MODELS_HELP
    )
    if RunOptions in command.options:
        parser.set_defaults(out=DEFAULT_OUT)
    return parser


def _listed(owner: Spec | Command) -> str:
    return "Examples:\n\n" + "\n".join(f"    {line}" for line in owner.examples)


if __name__ == "__main__":
    sys.exit(main())
