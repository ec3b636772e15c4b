"""``sat-eval all``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from evaluations.battery.run import Part


def all_parts(
    models: list[str] | None = None,
    study: str | None = None,
    preset: Literal["quick", "demo", "paper"] = "demo",
    jobs: int = 1,
    parts: str | None = None,
    data: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
) -> None:
    """The whole battery on several models: lm, gates, acdc, sae, neurons, n2g.

    What is done is skipped, so that the same command goes on after an interruption; a part that
    fails stops no other, and is told at the end. What the parts print goes to OUT/logs; their
    tables and figures to OUT. sat-eval report then makes Tables 1 and 2.

    Examples::

        sat-eval all demo:baseline demo:local-k4 demo:global-k4 --preset quick
        sat-eval all --study studies/demo.yaml --out results/demo-study --jobs 2
        sat-eval all ./gpt2-directory --data stories.jsonl.gz --parts lm,sae

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        study: a study's file (sat-train --study): its trained runs are the models.
        preset: quick (the built-in models in minutes), demo (the commands' own defaults, or near),
            paper (the published budgets).
        jobs: parts that run side by side, each on its share of the cores.
        parts: only these, with commas between them.
        data: the text, as in sat-eval lm. Needed for models whose training text is not known.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the models' own.
        out: directory of the records.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
    """
    from pathlib import Path

    from evaluations.battery.progress import duration, overview, summary
    from evaluations.battery.run import (
        estimated_seconds,
        plan,
        raise_failures,
        run_beside,
        run_here,
    )
    from evaluations.commands import COMMANDS
    from evaluations.commands.show import console, say
    from sat_interp._util.errors import UserError

    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    chosen, missing = _models(models or [], study)
    common = {
        "data": data, "validation": validation, "tokenizer": tokenizer, "out": out,
        "force": force or None, "device": device,
    }  # fmt: skip
    planned = plan(chosen, preset, common, COMMANDS, _chosen(parts))
    seconds = estimated_seconds(planned, jobs)
    told = "an unknown time" if seconds is None else f"about {duration(seconds)}"
    if rough := [job.name for job in planned if job.is_rough and job.state == "waiting"]:
        told += f" (rough: {', '.join(rough)} extrapolated)"
    shown = console()
    shown.print(
        f"{len(chosen)} models, {len(planned)} parts: {told}, less what is done", highlight=False
    )
    with overview(planned) as update:
        if jobs == 1:
            run_here(planned, COMMANDS, Path(out) / "logs", update)
        else:
            run_beside(planned, jobs, Path(out) / "logs", update)
    shown.print(summary(planned))
    say(shown, f"tables: sat-eval report --out {out}" + (f" --study {study}" if study else ""))
    raise_failures(planned)
    if missing:
        raise UserError(
            f"{len(missing)} runs of the study are not trained yet ({', '.join(missing)}): "
            f"sat-train --study {study}"
        )


def _models(models: list[str], study: str | None) -> tuple[list[str], list[str]]:
    """The models of a command line and a study, and the study's runs that are not there yet."""
    from sat_interp._util.errors import UserError
    from sat_interp.training.study import read_study

    runs = read_study(study).runs() if study else []
    trained = [run for run in runs if (run.directory / "summary.json").is_file()]
    chosen = list(dict.fromkeys([*models, *(str(run.directory) for run in trained)]))
    if not chosen:
        hint = f": sat-train --study {study}" if study else ": name one, or --study FILE"
        raise UserError(f"there is no model to evaluate{hint}")
    return chosen, [run.name for run in runs if run not in trained]


def _chosen(parts: str | None) -> Sequence[Part]:
    """The parts that are asked for, in their own order."""
    from evaluations.battery.run import PARTS
    from sat_interp._util.errors import UserError, suggest

    if parts is None:
        return PARTS
    known = {part.name: part for part in PARTS}
    names = [name.strip() for name in parts.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(suggest("part", name, known))
    return tuple(part for part in PARTS if part.name in names)
