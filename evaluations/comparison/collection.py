"""The whole report: tables and figures of all records below a directory, on one Markdown page."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evaluations import tables
from evaluations.comparison.floors import floors
from evaluations.comparison.measures import records_of
from evaluations.comparison.paper_tables import (
    SCORES,
    TABLE_2_DIFFERENCES,
    differences,
    models_table,
    neuron_scores,
    table_1,
    table_2,
)
from evaluations.comparison.seeds import Group, groups
from evaluations.comparison.selection import Model, models
from evaluations.comparison.versions import older_told
from evaluations.core.record import Record, read_record
from evaluations.core.records import Identity, collect, identity
from evaluations.tables import Table, draw, markdown
from sat_interp._util.errors import UserError
from sat_interp._util.files import file_name, write_atomically
from sat_interp.training.study import Study, read_study

BROWSED = 3
"""Models whose neurons are on the page: megabytes each."""

DRAWN = 24
"""Models in a figure, and on the page with their circuits."""

PARTS = {
    "acdc": "circuit", "sae": "density", "gates": "usage", "neurons": "units", "n2g": "sensitivity",
}  # fmt: skip
"""What a figure is drawn from, of a record's ``extra``."""

BROWSED_UNITS = 1500
"""Neurons on the report's own page, 2 kB each; more are on a page beside it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        records: all that belong to models of the groups, each once.
        tables: the tables to print; ``details`` are written only.
        notes: what was passed over on the way.
        left_out: records with a field of a wrong type, and which.
        files: where each record lies: ``records`` are without what only figures read.
    """

    directory: Path
    records: list[Record]
    groups: list[Group]
    tables: list[Table]
    details: list[Table]
    notes: list[str]
    study: Study | None = None
    left_out: list[str] = field(default_factory=list)
    files: Mapping[Identity, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, study: str | None = None, paper_values: bool = False) -> Report:
        """Read a directory's records and make the tables.

        Raises:
            UserError: no such directory, no record in it, or no such study.
        """
        plan = read_study(study) if study else None
        found = collect(directory)
        names = [run.name for run in plan.runs()] if plan else []
        everyone = models(found.records, names)
        rows = groups(everyone, plan)
        weights = {model.weights for group in rows for model in group.models}
        if not weights:
            whose = f" of the study {plan.name}" if plan else ""
            raise UserError(f"{directory} holds no record{whose}: run sat-eval all first")
        notes = [*found.notes(), *floors(found.records)]
        notes += older_told(
            record
            for group in rows for model in group.models for record in model.records.values()
        )  # fmt: skip
        if others := [model.name for model in everyone if model.weights not in weights]:
            notes.append(f"{len(others)} models are not of the study: {', '.join(others)}")
        if plan and (absent := _absent(plan, everyone)):
            notes.append(
                f"{len(absent)} of {len(plan.runs())} runs of the study have no record "
                f"({', '.join(absent)}): sat-train --study {study}; sat-eval all --study {study}"
            )
        shown = [table_1(rows, paper_values)]
        shown += differences(rows)
        if records_of(rows, "neurons"):
            shown += [neuron_scores(rows), *differences(rows, SCORES)]
        shown.append(table_2(rows, paper_values))
        shown += differences(rows, TABLE_2_DIFFERENCES)
        records = [one for one in found.records if str(one.model["weights_hash"]) in weights]
        notes += _bare(records)
        return cls(directory, records, rows, shown, [models_table(rows)], notes, plan,
                   found.left_out(), found.files)  # fmt: skip

    def whole(self, records: Sequence[Record]) -> list[Record]:
        """The records as their files have them, with all that figures read."""
        found = []
        for record in records:
            path = self.files.get(identity(record))
            try:
                found.append(record if path is None else read_record(path))
            except UserError as error:
                log.warning("%s", error)  # it was there a moment ago
        return found

    def drawn(self) -> set[str]:
        """The weights of the models in figures: more crowd them.

        One of each group, that of its lowest seed; of many groups, the first.
        """
        found = [group for group in self.groups if group.members][:DRAWN]
        return {group.members[min(group.members)].weights for group in found}


def _bare(records: Sequence[Record]) -> list[str]:
    """A line for each part of records that a figure is drawn from and some have not."""
    names: dict[str, list[str]] = {}
    for record in records:
        part = PARTS.get(record.evaluation)
        if part and not record.extra.get(part):
            line = f"{record.evaluation}: no figure of records without {part!r}"
            names.setdefault(line, []).append(str(record.model.get("name", "?")))
    return [f"{line}: {', '.join(dict.fromkeys(found))}" for line, found in names.items()]


def _absent(study: Study, found: Sequence[Model]) -> list[str]:
    names = {model.name for model in found}
    return [run.name for run in study.runs() if run.name not in names]


def write_report(report: Report, out: Path) -> list[Path]:
    """The tables as Markdown, LaTeX, CSV each, and ``report.md`` with all of them.

    Raises:
        OSError: they cannot be written.
    """
    every = [*report.tables, *report.details]
    text = "\n".join([*map(markdown, every), *(f"- {note}" for note in report.notes), ""])
    written = [path for table in every for path in tables.write([table], out, table.name)]
    return [*written, write_atomically(out / "report.md", text)]


def write_figures(report: Report, out: Path) -> tuple[list[Path], list[str]]:
    """Circuits and edges against faithfulness, fronts, scores, curves: one model of each group.

    Then ``report.html``, with the tables and all of them. What fails stops no other.

    Returns:
        The files written, and a line for each figure or model that is left out, with the reason.
    """
    written: list[Path] = []
    failures: list[str] = []
    for part in _parts():
        if not (found := report.whole(part.records(report))):
            continue
        try:
            written += tables.write(part.room.tables(found), out, part.stem)
            written += part.room.files(found, out, part.stem)
        except Exception as error:  # costs no figure
            log.debug("tables of %s fail", part.stem, exc_info=True)
            failures.append(f"{part.stem} tables: not written ({draw.reason_of(error)})")
        made = draw.write(part.room.FIGURES, found, out, part.stem)
        written += made[0]
        failures += made[1]
    for name, make in (("training curves", _curves), ("the page", partial(_page, written))):
        try:
            written += make(report, out)
        except Exception as error:  # costs no figure and no table
            log.debug("%s fails", name, exc_info=True)
            failures.append(f"{name}: not written ({draw.reason_of(error)})")
    return written, failures


def _page(figures: Sequence[Path], report: Report, out: Path) -> list[Path]:
    """The report as one HTML file, with the neurons of at most three models to browse.

    Raises:
        OSError: it cannot be written.
    """
    from evaluations.comparison.comparison_page import write_comparison
    from evaluations.suite.neurons.page import write_page

    drawn = report.drawn()
    chosen = [one for one in report.records if str(one.model["weights_hash"]) in drawn]
    circuits = {identity(one): one for one in report.whole(
        [one for one in chosen if one.evaluation == "acdc"])}  # fmt: skip
    records = [circuits.get(identity(record), record) for record in report.records]
    neurons = list(_neuron_details(report))
    beside: list[Path] = []
    if sum(len(model["units"]) for model in neurons) > BROWSED_UNITS:
        beside = [write_page(neurons, out / "neurons.html")]
        neurons = []
    page = write_comparison(
        records, out / "report.html", summary=[*report.tables, *report.details],
        figures=figures, neurons=neurons, drawn=drawn, notes=report.notes, beside=beside,
        files={key: os.path.relpath(path, out) for key, path in report.files.items()},
    )  # fmt: skip
    return [page, *beside]


def _neuron_details(report: Report) -> Iterator[Mapping[str, Any]]:
    """What ``neurons`` left of the first models' units, with what ``n2g`` left of them."""
    from evaluations.suite.neurons.page import with_graphs
    from evaluations.suite.neurons.reading import read_details

    for record in _of(report, "neurons")[:BROWSED]:
        for path in report.directory.rglob(f"neurons/{record.extra.get('details')}"):
            try:
                yield with_graphs(read_details(path), path.parents[1])
                break
            except (UserError, OSError) as error:
                log.warning("%s", error)


def _of(report: Report, evaluation: str) -> list[Record]:
    """The records the tables took of one model a group."""
    chosen = report.drawn()
    found = records_of(report.groups, evaluation)
    return [record for record in found if str(record.model["weights_hash"]) in chosen]


@dataclass(frozen=True)
class Part:
    """What is written of one evaluation's records, and drawn of them.

    Attributes:
        everything: whether of all records of the models that are drawn, not only of those that the
            paper's tables take: several coefficients make the front of an autoencoder.
    """

    evaluation: str
    room: Any
    stem: str
    everything: bool = False

    def records(self, report: Report) -> list[Record]:
        if not self.everything:
            return _of(report, self.evaluation)
        chosen = report.drawn()
        return [
            record
            for record in report.records
            if record.evaluation == self.evaluation and str(record.model["weights_hash"]) in chosen
        ]


def _parts() -> list[Part]:
    from evaluations.suite.circuits import report as circuits
    from evaluations.suite.gates import report as gates
    from evaluations.suite.lm import report as lm
    from evaluations.suite.n2g import report as n2g
    from evaluations.suite.neurons import report as neurons
    from evaluations.suite.sae import report as sae

    return [
        Part("acdc", circuits, "circuits"),
        Part("sae", sae, "sae", True),
        Part("lm", lm, "lm"),
        Part("gates", gates, "gates"),
        Part("neurons", neurons, "neurons"),
        Part("n2g", n2g, "n2g"),
    ]


def _curves(report: Report, out: Path) -> list[Path]:
    """Of the study's runs, else of logs that lie below the directory under a model's name."""
    from evaluations.comparison.curves import draw_curves, read_run

    chosen = report.drawn()
    names = [
        model.name for group in report.groups for model in group.models if model.weights in chosen
    ]
    if report.study:
        logs = [run.directory for run in report.study.runs() if run.name in names]
    else:
        below = sorted(report.directory.rglob("log.jsonl"))
        wanted = {file_name(name) for name in names}
        logs = [path.parent for path in below if path.parent.name in wanted]
    runs = [read_run(path) for path in logs if (path / "log.jsonl").is_file()]
    return draw.save({"": [draw_curves(runs)]}, out, "curves") if runs else []
