"""The whole report: tables and figures of all records below a directory, on one Markdown page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluations.record import Record
from evaluations.report.cells import records_of
from evaluations.report.grid import Grid, markdown, write_grids
from evaluations.report.layer_table import EVALUATION as N2G
from evaluations.report.layer_table import layer_differences, table_2
from evaluations.report.paper_tables import (
    differences,
    models_table,
    neuron_differences,
    neuron_scores,
    table_1,
)
from evaluations.report.seeds import Group, groups
from evaluations.report.selection import Model, collect, models
from evaluations.runner import file_name
from evaluations.versions import older_told
from sat_interp.errors import UserError
from sat_interp.files import write_atomically
from sat_interp.training.study import Study, read_study

BROWSED = 3
"""Models whose neurons are on the page: megabytes each."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        records: all that belong to models of the groups, each once.
        grids: the tables to print; ``details`` are written only.
        notes: what was passed over on the way.
    """

    directory: Path
    records: list[Record]
    groups: list[Group]
    grids: list[Grid]
    details: list[Grid]
    notes: list[str]
    study: Study | None = None

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
        notes = found.told()
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
        shown += _told(differences(rows))
        if records_of(rows, "neurons"):
            shown += [neuron_scores(rows), *_told(neuron_differences(rows))]
        shown.append(table_2(rows, paper_values))
        if records_of(rows, N2G):
            shown += _told(layer_differences(rows))
        records = [one for one in found.records if str(one.model["weights_hash"]) in weights]
        return cls(directory, records, rows, shown, [models_table(rows)], notes, plan)

    def first_seed(self) -> set[str]:
        """The weights of one model a group, that of its lowest seed: more crowd a figure."""
        return {group.members[min(group.members)].weights for group in self.groups if group.members}


def _told(grid: Grid) -> list[Grid]:
    return [grid] if grid.rows else []  # nothing to compare with


def _absent(study: Study, found: Sequence[Model]) -> list[str]:
    names = {model.name for model in found}
    return [run.name for run in study.runs() if run.name not in names]


def write_report(report: Report, out: Path) -> list[Path]:
    """The tables as Markdown, LaTeX, CSV each, and ``report.md`` with all of them.

    Raises:
        OSError: they cannot be written.
    """
    every = [*report.grids, *report.details]
    text = "\n".join([*map(markdown, every), *(f"- {note}" for note in report.notes), ""])
    return [*write_grids(every, out), write_atomically(out / "report.md", text)]


def write_figures(report: Report, out: Path) -> list[Path]:
    """Circuits and edges against faithfulness, fronts, scores, curves: one model of each group.

    Then ``report.html``, with the tables and all of them. What fails is told and stops no other.
    """
    written: list[Path] = []
    for name, draw in FIGURES.items():
        with _told_where_it_fails(name):
            written += draw(report, out)
    with _told_where_it_fails("the page"):
        written.append(_page(report, written, out / "report.html"))
    return written


@contextmanager
def _told_where_it_fails(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        log.warning("%s is not drawn: %s", name, error)
    except Exception:  # one odd record must not cost the other figures
        log.exception("%s is not drawn", name)


def _page(report: Report, figures: Sequence[Path], path: Path) -> Path:
    """The report as one HTML file, with the neurons of at most three models to browse.

    Raises:
        OSError: it cannot be written.
    """
    from evaluations.report.comparison_page import write_comparison

    return write_comparison(
        report.records, path, summary=[*report.grids, *report.details], figures=figures,
        neurons=list(_neuron_details(report)), drawn=report.first_seed(), notes=report.notes,
    )  # fmt: skip


def _neuron_details(report: Report) -> Iterator[Mapping[str, Any]]:
    """What ``neurons`` left of the first models' units, with what ``n2g`` left of them."""
    from evaluations.neurons.details import read_details
    from evaluations.report.neuron_page import with_graphs

    for record in _of(report, "neurons")[:BROWSED]:
        for path in report.directory.rglob(f"neurons/{record.extra.get('details')}"):
            try:
                yield with_graphs(read_details(path), path.parents[1])
                break
            except (UserError, OSError) as error:
                log.warning("%s", error)


def _of(report: Report, evaluation: str) -> list[Record]:
    """The records the tables took of one model a group."""
    chosen = report.first_seed()
    found = records_of(report.groups, evaluation)
    return [record for record in found if str(record.model["weights_hash"]) in chosen]


def _circuits(report: Report, out: Path) -> list[Path]:
    from evaluations.report import circuits

    return circuits.write_report(_of(report, "acdc"), out, "circuits")


def _autoencoders(report: Report, out: Path) -> list[Path]:
    """All coefficients: they make the front."""
    from evaluations.report import sae

    chosen = report.first_seed()
    found = [
        record
        for record in report.records
        if record.evaluation == "sae" and str(record.model["weights_hash"]) in chosen
    ]
    return sae.write_report(found, out)


def _language(report: Report, out: Path) -> list[Path]:
    from evaluations.report.figures import draw_language

    return draw_language(_of(report, "lm"), out / "lm")


def _gates(report: Report, out: Path) -> list[Path]:
    from evaluations.report.gates import draw_gates

    return draw_gates(_of(report, "gates"), out / "gates")


def _neurons(report: Report, out: Path) -> list[Path]:
    from evaluations.report import neurons

    return neurons.write_report(_of(report, "neurons"), out)


def _graphs(report: Report, out: Path) -> list[Path]:
    from evaluations.report import n2g

    return n2g.write_report(_of(report, "n2g"), out)


def _curves(report: Report, out: Path) -> list[Path]:
    """Of the study's runs, else of logs that lie below the directory under a model's name."""
    from evaluations.report.curves import draw_curves, read_run

    chosen = report.first_seed()
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
    return draw_curves(runs, out / "curves") if runs else []


FIGURES: dict[str, Callable[[Report, Path], list[Path]]] = {
    "circuits": _circuits,
    "autoencoders": _autoencoders,
    "language modelling": _language,
    "gates": _gates,
    "neurons": _neurons,
    "graphs of neurons": _graphs,
    "training curves": _curves,
}
