"""The command ``sat-train``: the fields of TrainConfig as options, and ``train``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sat_interp._util.commandline import (
    build,
    config_values,
    given_options,
    hyphenated,
    log_to_stderr,
    named_as_options,
    option_parser,
    parse_options,
    run_command,
)
from sat_interp._util.errors import UserError
from sat_interp.engine.choose import EngineOptions
from sat_interp.engine.parent import end_with_parent
from sat_interp.model.config import SelfAblationConfig
from sat_interp.training.config import TrainConfig, preset_settings

if TYPE_CHECKING:
    from sat_interp.training.study import Study

EXAMPLES = """\
examples:
  sat-train --out runs/baseline                       the preset demo: about two minutes
  sat-train --variant local --k 4 --out runs/local    with gates
  sat-train --preset tinystories-3m --variant global --k 8 --out runs/paper --precision bf16
  sat-train --data stories.jsonl.gz --tokenizer bpe:10000 --out runs/mine
  sat-train --out runs/baseline --resume              continue after an interruption
  sat-train --match-perplexity 6.5 --out runs/matched a baseline of this validation perplexity
  sat-train --preset tinystories-3m --print-config > run.yaml; sat-train --config run.yaml --out DIR
  torchrun --nproc-per-node 2 --no-python sat-train --out runs/two
  sat-train --init PYTHIA --variant local --k 64 --data stories.txt --out runs/gated
                                                      gates for a pretrained model
  sat-train --study studies/demo.yaml                 every run of a study that is not finished
  sat-train --study studies/demo.yaml --jobs 2        two at a time, on a GPU each where there are
  sat-train --study studies/paper.yaml --engine ray --address head:6379     on a Ray cluster
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sat-train``.

    Returns:
        The exit code: 0; 2 for an error that the user can correct; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _log_to_stderr()
    end_with_parent()
    command = _train_study if "--study" in given_options(arguments) else _train
    return run_command(lambda: command(arguments))


def _train(arguments: list[str]) -> None:
    settings = parse(arguments)
    from sat_interp.training.report import describe
    from sat_interp.training.train import train

    with named_as_options(TrainConfig):
        result = train(TrainConfig(**settings))
    final = describe(result.summary["final"])
    logging.getLogger(__name__).info("validation %s; the model is in %s", final, result.out)


def _train_study(arguments: list[str]) -> None:
    """Train what is missing of a study, print a table, and fail if any run failed."""
    from rich.console import Console

    from sat_interp.training.study import read_study
    from sat_interp.training.study_table import study_table
    from sat_interp.training.study_training import raise_failures, train_study

    own = [hyphenated(f"--{field.name}") for field in dataclasses.fields(EngineOptions)]
    known = ("--study", "--out", *own)
    others = [name for name in given_options(arguments) if hyphenated(name) not in known]
    if others:
        raise UserError(f"{others[0]} cannot be combined with --study: put it into the study file")
    parser = option_parser(EngineOptions, prog="sat-train")
    parser.add_argument("--study", required=True)
    parser.add_argument("--out")
    options = parse_options(parser, arguments)
    study = read_study(options["study"], options["out"])
    _check_measures(study)
    done = train_study(study, options=build(EngineOptions, options))
    Console(width=None if sys.stdout.isatty() else 110).print(study_table(done))
    raise_failures(done)


def _check_measures(study: Study) -> None:
    """Let what measures studies look at ``measures``, before hours of training.

    Training does not import evaluations: they are found by the entry point ``sat_interp.measures``.
    """
    for entry in metadata.entry_points(group="sat_interp.measures"):
        entry.load()(study.measures)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields of TrainConfig that a command line and its ``--config`` file set.

    ``--preset`` changes the defaults; ``--k`` sets ``--k-attention`` and ``--k-neurons`` where
    these are not given themselves.

    Raises:
        UserError: the command line or the file is not valid.
    """
    given = given_options(arguments)
    file = config_values(arguments)
    preset = given.get("--preset") or file.get("preset")
    from_model = (given.get("--init") or file.get("init")) is not None
    parser = option_parser(
        TrainConfig,
        prog="sat-train",
        usage="sat-train --out DIR [--preset NAME] [--variant none|local|global] [--k K] [options]",
        description="Train a transformer with or without self-ablation gates.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--study",
        metavar="FILE",
        help="YAML file that describes many runs; takes only --out, --jobs N, --engine local|ray "
        "and --address HOST:PORT.",
    )
    parser.add_argument(
        "--k", type=int | None, metavar="N", help="Value of --k-attention and --k-neurons."
    )
    parser.set_defaults(preset_settings(None if preset is None else str(preset), from_model))
    settings = parse_options(parser, [*arguments, *_spread_k(given, file)])
    _refuse_gates_without_variant(given, settings)
    return {name: value for name, value in settings.items() if name not in ("k", "study")}


def _spread_k(given: dict[str, str], file: dict[str, Any]) -> list[str]:
    """``--k-attention`` and ``--k-neurons`` where ``k`` is given and they are not.

    On the command line k takes precedence over a config file; in the file it does not take
    precedence over k_attention and k_neurons there.
    """
    names = [name for name in ("k_attention", "k_neurons") if hyphenated(f"--{name}") not in given]
    k = given.get("--k")
    if k is None:
        k = file.get("k")
        names = [name for name in names if name not in file]
    return [] if k is None else [f"--{name}={k}" for name in names]


def _refuse_gates_without_variant(given: dict[str, str], settings: dict[str, Any]) -> None:
    """Refuse settings of gates for a model without any, unless ``--variant none`` is explicit."""
    if settings["variant"] != "none" or "--variant" in given:
        return
    names = ["k", *(field.name for field in dataclasses.fields(SelfAblationConfig))]
    for option in map(hyphenated, (f"--{name}" for name in names)):
        if option in given:
            raise UserError(f"{option} needs gates: add --variant local or --variant global")


def _log_to_stderr() -> None:
    """Write progress and every warning to standard error, one line each."""
    log_to_stderr()
    is_first = os.environ.get("RANK", "0") == "0"  # under torchrun only the first process logs
    logging.getLogger("sat_interp").setLevel(logging.INFO if is_first else logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
