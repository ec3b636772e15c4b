"""The command ``sat-eval status``: what is done, running and missing, from files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from evaluations.battery.measures import measured_study
from evaluations.battery.options import StatusOptions
from evaluations.battery.plan import chosen_specs, claim, size_of, title
from evaluations.core.model_source import ModelSource
from evaluations.core.record import Record
from evaluations.core.records import collect
from evaluations.core.spec import Spec
from evaluations.output import console, say
from evaluations.registry import find_spec
from sat_interp._util import escape
from sat_interp._util.errors import UserError
from sat_interp.engine.run import Claims
from sat_interp.training.directory import RunDirectory
from sat_interp.training.state import checkpoints
from sat_interp.training.study import Study, StudyRun

DONE, RUNNING, MISSING, NONE = "done", "running", "missing", "–"


@dataclass(frozen=True)
class Part:
    """An evaluation, with the options that a study names for it.

    Attributes:
        title: as in ``sat-eval all``: ``acdc``, then ``acdc-2``.
    """

    title: str
    spec: Spec
    options: Mapping[str, Any]

    def is_in(self, record: Record) -> bool:
        """Whether a record is of this evaluation, as it is now, and states no other options.

        Compared are the task and the single values that the record's configuration has by the
        option's name.
        """
        if (record.evaluation, record.version) != (self.spec.name, self.spec.version):
            return False
        stated = {**record.config, "task": record.data.get("spec")}
        return all(
            stated[name] == wanted
            for name, wanted in self.options.items()
            if isinstance(wanted, str | int | float) and name in stated
        )


@dataclass(frozen=True)
class Row:
    """The state of a model.

    Attributes:
        name: the model's name in records.
        training: state of its training; – for a model that is no run of the study.
        evaluations: state by title of a part; – where the evaluation does not apply.
    """

    name: str
    training: str
    evaluations: Mapping[str, str]


def print_status(models: Sequence[str], options: StatusOptions) -> list[Row]:
    """Print the state of a study and of further models.

    Raises:
        UserError: there is no model, or no such study or evaluation.
    """
    study = measured_study(options.study)
    if study is None and not models:
        raise UserError("there is no model to list: name one, or --study FILE")
    parts = parts_of(study, options.parts)
    rows = status(models, study, options.out, parts)
    terminal = console()
    terminal.print(status_table(rows, parts))
    for line in totals(rows):
        say(terminal, line)
    return rows


def parts_of(study: Study | None, names: Sequence[str] = ()) -> list[Part]:
    """Return what a study names, or all evaluations; of these those of the names, if any.

    Raises:
        UserError: there is no such evaluation.
    """
    specs, counts, parts = chosen_specs(names), Counter[str](), []
    if study is None or not study.measures:
        return [Part(spec.name, spec, {}) for spec in specs]
    for name, options in (one for entry in study.measures for one in entry.items()):
        if find_spec(name) in specs:
            parts.append(Part(title(name, counts[name]), find_spec(name), options))
            counts[name] += 1
    return parts


def status(
    models: Sequence[str], study: Study | None, out: str | Path, parts: Sequence[Part]
) -> list[Row]:
    """Return the state of each run of a study and of further models."""
    measured = _measured(out, parts)
    runs = study.runs() if study else []
    trained = Claims(study.directory) if study else Claims(out)
    rows = [_row_of_run(run, trained, Claims(out), measured, parts) for run in runs]
    for model in models:
        source = ModelSource.of(model)
        has_gates = size_of(model).has_gates
        states = _states(source.name, model, has_gates, Claims(out), measured, parts)
        rows.append(Row(source.name, NONE, states))
    return rows


def status_table(rows: Sequence[Row], parts: Sequence[Part]) -> RichTable:
    """Return a row for each model: training, then each evaluation."""
    table = RichTable(title="State", title_justify="left")
    table.add_column("Model", overflow="fold")
    for heading in ("training", *(part.title for part in parts)):
        table.add_column(heading)
    for row in rows:
        cells = [row.name, row.training, *(row.evaluations[part.title] for part in parts)]
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


def _measured(out: str | Path, parts: Sequence[Part]) -> set[tuple[str, str]]:
    """Return the names of models and the titles of parts of which there is a record."""
    if not Path(out).is_dir():
        return set()
    return {
        (str(record.model["name"]), part.title)
        for record in collect(out).records
        for part in parts
        if part.is_in(record)
    }


def _row_of_run(
    run: StudyRun,
    trained: Claims,
    claims: Claims,
    measured: set[tuple[str, str]],
    parts: Sequence[Part],
) -> Row:
    has_gates = run.config.ablation.has_gate_weights
    states = _states(run.name, str(run.directory), has_gates, claims, measured, parts)
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
    parts: Sequence[Part],
) -> dict[str, str]:
    states = {}
    for part in parts:
        if "gates" in part.spec.needs and not has_gates:
            states[part.title] = NONE
        elif (name, part.title) in measured:
            states[part.title] = DONE
        else:
            held = claims.is_held(claim(part.title, model))
            states[part.title] = RUNNING if held else MISSING
    return states
