"""The report of a directory: which records it shows, and its summary and tables.

`evaluations.comparison.command` prints and writes it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from evaluations.comparison import bridge, paper_measures, paper_tables
from evaluations.comparison.files import write as write_files
from evaluations.comparison.floors import floors
from evaluations.comparison.measures import Comparison, Measure, records_of
from evaluations.comparison.options import ReportOptions
from evaluations.comparison.seeds import Group, groups
from evaluations.comparison.selection import Model, models
from evaluations.comparison.summary import Answer, answers
from evaluations.comparison.versions import older_told
from evaluations.core.frame import results_frame
from evaluations.core.record import Record, read_record
from evaluations.core.records import Collected, Identity, collect, identity
from evaluations.core.spec import Spec
from evaluations.registry import SPECS, find_spec
from evaluations.tables import Table, html
from evaluations.tables.page import render
from sat_interp._util.errors import UserError, suggest
from sat_interp.training.study import Study, read_study

DRAWN = 24
"""Models in a figure, and on the page with their circuits; a report of more has no figures."""

DEFAULTS = ReportOptions()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What is known of the models below a directory.

    Attributes:
        specs: the evaluations shown.
        records: all records of the models shown, each once, without what only figures read.
        groups: the rows of the tables.
        summary: the answer to each evaluation's question.
        tables: the paper's tables, and the paired differences of their rows.
        details: further tables, which are written and not printed.
        notes: what was skipped, and why.
        left_out: records with a field of a wrong type.
        files: the file of each record.
    """

    directory: Path
    specs: list[Spec]
    records: list[Record]
    groups: list[Group]
    summary: list[Answer]
    tables: list[Table]
    details: list[Table]
    notes: list[str]
    study: Study | None = None
    left_out: list[str] = field(default_factory=list)
    files: Mapping[Identity, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str] = (), options: ReportOptions = DEFAULTS) -> Report:
        """Read the records of a directory and make the tables.

        Args:
            names: of models, or of groups of models that differ in their seed, in the order of
                their rows; all by default.

        Raises:
            UserError: no such directory, evaluation, model or study, or no record.
        """
        found = collect(options.out)
        study = None if options.study is None else read_study(options.study)
        specs = _chosen_specs(options)
        evaluations = {spec.name for spec in specs}
        known = [record for record in found.records if record.evaluation in evaluations]
        everyone = models(known, [run.name for run in study.runs()] if study else [])
        chosen = _chosen_models(everyone, names, options.exclude)
        rows = groups(chosen, study)
        if names:
            places = {model.key: place for place, model in enumerate(chosen)}
            rows = [group for group in rows if group.members]
            rows.sort(key=lambda group: min(places[model.key] for model in group.models))
        weights = [model.weights for group in rows for model in group.models]
        if not weights:
            whose = f" of the study {study.name}" if study else ""
            raise UserError(f"{options.out} holds no record{whose}: run sat-eval all first")
        places = {weight: place for place, weight in reversed(list(enumerate(weights)))}
        records = [record for record in known if str(record.model["weights_hash"]) in places]
        if names:  # the rows of all tables are in this order
            records = [_at(record, places[str(record.model["weights_hash"])]) for record in records]
        tables, details = _tables(rows, evaluations, options.paper_values)
        present = {record.evaluation for record in records}
        headlines = {
            spec.name: spec.report.HEADLINE
            for spec in specs
            if spec.name in present and hasattr(spec.report, "HEADLINE")
        }
        return cls(
            Path(options.out),
            specs,
            records,
            rows,
            answers(Comparison(rows), headlines),
            tables,
            details,
            [
                *_notes(found, rows, known),
                *_of_study(study, options, everyone),
                *_without_figures(specs, records),
            ],
            study,
            found.left_out(),
            found.files,
        )

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each metric of each record (see ``results_frame``)."""
        return results_frame(self.records)

    def shown(self, spec: Spec) -> list[Record]:
        """The records that the evaluation's own tables show.

        Those the paper's tables take, one of each model; all where these take none, or where the
        evaluation shows several records of a model together (``report.EVERY_RECORD``).
        """
        own = [record for record in self.records if record.evaluation == spec.name]
        taken = set(map(identity, records_of(self.groups, spec.name)))
        if getattr(spec.report, "EVERY_RECORD", False) or not taken:
            return own
        return [record for record in own if identity(record) in taken]

    def drawn(self) -> set[str]:
        """The weights of the models in figures: one of each group; none of too many groups."""
        found = [group for group in self.groups if group.members]
        if len(found) > DRAWN:
            return set()
        return {group.members[min(group.members)].weights for group in found}

    def whole(self, records: Iterable[Record]) -> list[Record]:
        """The records of the models in figures, read again with all that figures show."""
        weights = self.drawn()
        found = []
        for record in records:
            if str(record.model["weights_hash"]) not in weights:
                continue
            path = self.files.get(identity(record))
            try:
                again = record if path is None else read_record(path)
                found.append(dataclasses.replace(again, model=record.model))
            except UserError as error:
                log.warning("%s", error)  # removed, or damaged, since it was read first
        return found

    def write(self, out: str | Path | None = None) -> list[Path]:
        """Write tables, figures and pages to a directory, by default ``report`` below the records.

        Raises:
            UserError: some were left out; all others are written.
            OSError: they cannot be written.
        """
        written, failures = write_files(self, Path(out) if out else self.directory / "report")
        if failures:
            raise UserError("; ".join(failures))
        return written

    def _repr_html_(self) -> str:
        summary = render("evaluations.comparison", "summary.html", answers=self.summary)
        return summary + Markup("\n").join(Markup(html(table)) for table in self.tables)

    def __repr__(self) -> str:
        names = [group.name for group in self.groups]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"<Report of {self.directory}: {', '.join(names[:4])}{more}>"


def report(
    models: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path = "results",
    study: str | Path | None = None,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    paper_values: bool = False,
) -> Report:
    """Return the report of a directory of records; nothing is written or printed.

    Args:
        models: names of models, in the order of their rows; all by default.
        out: directory with the records.
        study: study file: only its runs are shown.
        only: evaluations to show; all by default.
        exclude: evaluations and models to leave out.
        paper_values: show the paper's own values beside.

    Returns:
        The report: ``.summary``, ``.tables``, ``.frame``, and ``.write()`` for the files.

    Raises:
        UserError: no such directory, evaluation, model or study, or no record.
    """
    options = ReportOptions(
        str(out), None if study is None else str(study), _split(only), _split(exclude), paper_values
    )
    names = [models] if isinstance(models, str | Path) else models or ()
    return Report.of([str(name) for name in names], options)


def _split(names: str | Sequence[str]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(part.strip() for part in parts if part.strip())


def _chosen_specs(options: ReportOptions) -> list[Spec]:
    wanted = [find_spec(name) for name in options.only] or list(SPECS)
    return [spec for spec in wanted if spec.name not in options.exclude]


def _chosen_models(
    everyone: Sequence[Model], names: Sequence[str], exclude: Sequence[str]
) -> list[Model]:
    """The models of these names in their order, without those excluded."""
    evaluations = {spec.name for spec in SPECS}
    left_out = {
        model.key
        for name in exclude
        if name not in evaluations
        for model in _named(everyone, name, "model or evaluation", evaluations)
    }
    chosen = {model.key: model for name in names for model in _named(everyone, name, "model")}
    kept = list(chosen.values()) if names else everyone
    return [model for model in kept if model.key not in left_out]


def _named(
    everyone: Sequence[Model], name: str, kind: str, others: Iterable[str] = ()
) -> list[Model]:
    """The models of a name, a directory, or a name without its seed.

    A directory that no record names is read, and its weights decide: records hold no local paths.

    Raises:
        UserError: there is none.
    """
    found = [model for model in everyone if name.rstrip("/") in _names(model)]
    if not found and Path(name).is_dir():
        from evaluations.core.model_source import load_model  # imports torch, slowly

        weights = load_model(name).weights_hash
        found = [model for model in everyone if model.weights == weights]
        if not found:
            raise UserError(f"no record is of the model in {name}: measure it first")
    if not found:
        raise UserError(suggest(kind, name, {model.name for model in everyone} | set(others)))
    return found


def _names(model: Model) -> set[str]:
    stem = re.sub(r"-s(?:eed)?\d+$", "", model.name)
    return {model.name, stem, model.spec, Path(model.spec).name}


def _at(record: Record, place: int) -> Record:
    return dataclasses.replace(record, model={**record.model, "order": place})


def _tables(
    rows: Sequence[Group], evaluations: set[str], paper_values: bool
) -> tuple[list[Table], list[Table]]:
    """The tables of the evaluations shown: those that are printed, and others."""

    def among(measures: Sequence[Measure]) -> list[Measure]:
        return [measure for measure in measures if measure.evaluation in evaluations]

    tables, details = list[Table](), list[Table]()
    if first := among(paper_measures.TABLE_1):
        tables.append(paper_tables.table_1(rows, paper_values, first))
        tables += paper_tables.differences(rows, first)
        details.append(paper_tables.models_table(rows, first))
    if records_of(rows, "neurons"):
        tables.append(paper_tables.neuron_scores(rows))
        tables += paper_tables.differences(rows, paper_measures.SCORES)
    if "n2g" in evaluations:
        tables.append(paper_tables.table_2(rows, paper_values))
        tables += paper_tables.differences(rows, paper_measures.TABLE_2_DIFFERENCES)
    if records_of(rows, "ablate"):
        tables.append(paper_tables.table_3(rows))
        tables += paper_tables.differences(rows, bridge.TABLE_3)
    if records_of(rows, "lens"):
        tables.append(paper_tables.lenses(rows))
        tables += paper_tables.differences(rows, paper_measures.LENSES)
    return tables, details


def _notes(found: Collected, rows: Sequence[Group], known: Sequence[Record]) -> list[str]:
    """What was skipped, the scores of control models, and which records are of older code."""
    taken = [
        record for group in rows for model in group.models for record in model.records.values()
    ]
    lines = [*found.notes(), *floors(known), *older_told(taken)]
    if (n := sum(bool(group.members) for group in rows)) > DRAWN:
        lines.append(
            f"{n} rows are more than a figure shows ({DRAWN}): no figures; name the models to "
            "draw: sat-eval report MODEL..."
        )
    return lines


def _without_figures(specs: Iterable[Spec], records: Sequence[Record]) -> list[str]:
    """A line for each evaluation whose figures need a part that some records do not have."""
    lines = []
    for spec in specs:
        part = getattr(spec.report, "DRAWN_FROM", "")
        names = [
            str(record.model.get("name", "?"))
            for record in records
            if part and record.evaluation == spec.name and not record.extra.get(part)
        ]
        if names:
            names = list(dict.fromkeys(names))
            lines.append(f"{spec.name}: no figure of records without {part!r}: {', '.join(names)}")
    return lines


def _of_study(study: Study | None, options: ReportOptions, everyone: Sequence[Model]) -> list[str]:
    """The models that are not of the study, and its runs without a record."""
    if study is None:
        return []
    notes, runs = [], [run.name for run in study.runs()]
    if others := [model.name for model in everyone if model.name not in runs]:
        notes.append(f"{len(others)} models are not of the study: {', '.join(others)}")
    names = {model.name for model in everyone}
    if absent := [name for name in runs if name not in names]:
        notes.append(
            f"{len(absent)} of {len(runs)} runs of the study have no record "
            f"({', '.join(absent)}): sat-train --study {options.study}; "
            f"sat-eval all --study {options.study}"
        )
    return notes
