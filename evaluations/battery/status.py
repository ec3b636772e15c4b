"""The command ``sat-eval status``: what is done, running and missing, from files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable

from evaluations.battery.options import StatusOptions
from evaluations.battery.plan import chosen_specs, claim, size_of
from evaluations.core.model_source import ModelSource
from evaluations.core.records import collect
from evaluations.core.spec import Spec
from evaluations.output import console, say
from sat_interp._util import escape
from sat_interp._util.errors import UserError
from sat_interp.engine.run import Claims
from sat_interp.training.directory import RunDirectory
from sat_interp.training.state import checkpoints
from sat_interp.training.study import Study, StudyRun, read_study

DONE, RUNNING, MISSING, NONE = "done", "running", "missing", "–"


@dataclass(frozen=True)
class Row:
    """The state of a model.

    Attributes:
        name: the model's name in records.
        training: state of its training; – for a model that is no run of the study.
        evaluations: state by evaluation; – where the evaluation does not apply.
    """

    name: str
    training: str
    evaluations: Mapping[str, str]


def print_status(models: Sequence[str], options: StatusOptions) -> list[Row]:
    """Print the state of a study and of further models.

    Raises:
        UserError: there is no model, or no such study or evaluation.
    """
    study = read_study(options.study) if options.study else None
    if study is None and not models:
        raise UserError("there is no model to list: name one, or --study FILE")
    specs = chosen_specs(options.parts)
    rows = status(models, study, options.out, specs)
    terminal = console()
    terminal.print(status_table(rows, specs))
    for line in totals(rows):
        say(terminal, line)
    return rows


def status(
    models: Sequence[str], study: Study | None, out: str | Path, specs: Sequence[Spec]
) -> list[Row]:
    """Return the state of each run of a study and of further models."""
    measured = _measured(out, specs)
    runs = study.runs() if study else []
    trained = Claims(study.directory) if study else Claims(out)
    rows = [_row_of_run(run, trained, Claims(out), measured, specs) for run in runs]
    for model in models:
        source = ModelSource.of(model)
        has_gates = size_of(model).has_gates
        states = _states(source.name, model, has_gates, Claims(out), measured, specs)
        rows.append(Row(source.name, NONE, states))
    return rows


def status_table(rows: Sequence[Row], specs: Sequence[Spec]) -> RichTable:
    """Return a row for each model: training, then each evaluation."""
    table = RichTable(title="State", title_justify="left")
    table.add_column("Model", overflow="fold")
    for heading in ("training", *(spec.name for spec in specs)):
        table.add_column(heading)
    for row in rows:
        cells = [row.name, row.training, *(row.evaluations[spec.name] for spec in specs)]
        table.add_row(*map(escape.terminal, cells))
    return table


def totals(rows: Sequence[Row]) -> list[str]:
    """Return a line for the training and one for the evaluations: how many are in which state."""
    training = Counter(row.training for row in rows if row.training != NONE)
    states = Counter(state for row in rows for state in row.evaluations.values() if state != NONE)
    begun = sum(n for state, n in training.items() if state not in (DONE, RUNNING, MISSING))
    interrupted = f", {begun} interrupted" if begun else ""
    lines = []
    if training:
        lines.append(f"training: {_counted(training)}{interrupted}, of {training.total()} runs")
    return [*lines, f"evaluations: {_counted(states)}, of {states.total()}"]


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{states.get(state, 0)} {state}" for state in (DONE, RUNNING, MISSING))


def _measured(out: str | Path, specs: Sequence[Spec]) -> set[tuple[str, str]]:
    """Return the names of models and evaluations of which there is a record of this version."""
    if not Path(out).is_dir():
        return set()
    versions = {spec.name: spec.version for spec in specs}
    return {
        (str(record.model["name"]), record.evaluation)
        for record in collect(out).records
        if versions.get(record.evaluation) == record.version
    }


def _row_of_run(
    run: StudyRun,
    trained: Claims,
    claims: Claims,
    measured: set[tuple[str, str]],
    specs: Sequence[Spec],
) -> Row:
    has_gates = run.config.ablation.has_gate_weights
    states = _states(run.name, str(run.directory), has_gates, claims, measured, specs)
    return Row(run.name, _training(run, trained), states)


def _training(run: StudyRun, trained: Claims) -> str:
    """Return ``done``, ``running``, ``missing``, or the step of an interrupted run."""
    directory = RunDirectory(run.directory)
    if directory.finished() is not None:
        return DONE
    if trained.is_held(run.name):
        return RUNNING
    if kept := checkpoints(directory.checkpoints):
        step = int(kept[-1].name.rpartition("-")[2])
        return f"at step {step:,} of {run.config.steps:,}"
    return MISSING


def _states(
    name: str,
    model: str,
    has_gates: bool,
    claims: Claims,
    measured: set[tuple[str, str]],
    specs: Sequence[Spec],
) -> dict[str, str]:
    states = {}
    for spec in specs:
        if "gates" in spec.needs and not has_gates:
            states[spec.name] = NONE
        elif (name, spec.name) in measured:
            states[spec.name] = DONE
        else:
            held = claims.is_held(claim(spec.name, model))
            states[spec.name] = RUNNING if held else MISSING
    return states
