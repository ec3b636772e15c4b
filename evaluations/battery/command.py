"""The commands ``sat-eval all`` and ``sat-eval check``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluations.battery.feasibility import Answer, Subject, answers
from evaluations.battery.measures import measured_study
from evaluations.battery.options import BatteryOptions
from evaluations.battery.plan import (
    Budgets,
    EvaluationJob,
    chosen_specs,
    estimated_seconds,
    plan,
    study_plan,
)
from evaluations.battery.progress import answers_table, summary
from evaluations.battery.run import raise_failures, run_parts
from evaluations.core.inputs import default_task
from evaluations.core.model_source import ModelSource, sources
from evaluations.core.models import LoadedModel
from evaluations.core.options import DEFAULT_OUT, RunOptions, TextOptions
from evaluations.core.outcome import Outcome
from evaluations.core.text import Text
from evaluations.core.text_source import TrainingText, text_finder, training_text_finder
from evaluations.output import console, say
from evaluations.registry import SPECS
from sat_interp._util.errors import UserError
from sat_interp.engine.overview import duration
from sat_interp.training.study import Study


def run_battery(
    models: Sequence[str], options: BatteryOptions, settings: Mapping[str, Any]
) -> list[EvaluationJob]:
    """Run the battery and print a table of its jobs.

    Args:
        models: MODEL arguments, in addition to the models of the study.
        options: models, evaluations and budget.
        settings: values of shared options for all evaluations, and by name of an evaluation its own
            options.

    Raises:
        UserError: there is no model, a part failed, or runs of the study are not trained yet.
    """
    study = measured_study(options.study)
    chosen, missing = _models(models, study, options)
    out = str(settings.get("out") or DEFAULT_OUT)
    common = {"out": out, **_changed(settings)}
    names = [spec.name for spec in SPECS]
    own = {name: _given(settings[name]) for name in names if settings.get(name)}
    budgets = Budgets(options.preset, common, own)
    if study is not None and study.measures:
        jobs = study_plan(chosen, study.measures, budgets, options.parts)
    else:
        jobs = plan(chosen, budgets, chosen_specs(options.parts))
    terminal = console()
    terminal.print(_forecast(chosen, jobs, options.n_local), highlight=False)
    run_parts(jobs, options, out)
    terminal.print(summary(jobs))
    which = f" --study {options.study}" if options.study else ""
    say(terminal, f"tables: sat-eval report --out {out}{which}")
    raise_failures(jobs)
    if missing:
        raise UserError(
            f"{len(missing)} runs of the study are not trained yet ({', '.join(missing)}): "
            f"sat-train --study {options.study}"
        )
    return jobs


def check(models: Sequence[str], text: TextOptions, tokenizer: str | None) -> list[list[Answer]]:
    """Print which evaluations can measure each model, without reading weights.

    Raises:
        UserError: a model cannot be read; raised after the other models are printed.
    """
    chosen = sources(list(models), tokenizer)
    text_of = text_finder(chosen, text.data, text.validation, text.stories)
    trained_on = training_text_finder(chosen, text.data, text.validation, text.stories)
    terminal, outcome, all_answers = console(), Outcome(), []
    for source in chosen:
        try:
            subject = _subject(source, text_of, trained_on)
        except UserError as error:
            outcome.failures[source.label] = str(error)
            continue
        all_answers.append(answers(subject))
        for line in subject.described():
            say(terminal, line)
        terminal.print(answers_table(all_answers[-1]))
    outcome.raise_failures()
    return all_answers


def _models(
    models: Sequence[str], study: Study | None, options: BatteryOptions
) -> tuple[list[str], list[str]]:
    """Return the models of a command line and a study, and the names of untrained runs."""
    runs = study.runs() if study else []
    places = {
        run.name: Path(options.runs) / run.name if options.runs else run.directory for run in runs
    }
    trained = {name: place for name, place in places.items() if _is_trained(place)}
    chosen = list(dict.fromkeys([*models, *map(str, trained.values())]))
    if not chosen:
        hint = f": sat-train --study {options.study}" if study else ": name one, or --study FILE"
        raise UserError(f"there is no model to evaluate{hint}")
    return chosen, [name for name in places if name not in trained]


def _is_trained(place: Path) -> bool:
    """Return whether a directory is a run that has ended, or a model."""
    return any((place / name).is_file() for name in ("summary.json", "cfg.json"))


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shared options that differ from their defaults."""
    defaults = {**vars(TextOptions()), **vars(RunOptions())}
    return {
        name: settings[name]
        for name, default in defaults.items()
        if name != "out" and settings.get(name, default) != default
    }


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an evaluation that are set."""
    return {name: value for name, value in settings.items() if value is not None}


def _forecast(models: Sequence[str], jobs: Sequence[EvaluationJob], n_processes: int) -> str:
    seconds = estimated_seconds(jobs, n_processes)
    time = "an unknown time" if seconds is None else f"about {duration(seconds)}"
    if rough := [job.name for job in jobs if job.is_rough and job.state == "waiting"]:
        time += f" (rough: {', '.join(rough)} extrapolated)"
    return f"{len(models)} models, {len(jobs)} parts: {time}, less if there are records already"


def _subject(
    source: ModelSource,
    text_of: Callable[[LoadedModel], Text],
    trained_on: Callable[[LoadedModel], TrainingText],
) -> Subject:
    """Return a model's configuration and data, without its weights.

    Raises:
        UserError: the model cannot be read.
    """
    known = source.outline

    def train_tokens(enough: int) -> int:
        return trained_on(known).n_tokens(enough)

    try:
        return Subject(known, default_task(known), train_tokens, text_of(known))
    except UserError as error:
        return Subject(known, default_task(known), train_tokens, no_text=str(error))
