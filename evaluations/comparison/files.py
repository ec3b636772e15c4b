"""The files of a report: tables, figures and pages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluations import tables
from evaluations.comparison.comparison_page import Section, write_comparison
from evaluations.comparison.curves import draw_curves, read_runs
from evaluations.core.spec import Spec
from evaluations.tables import draw, markdown
from sat_interp._util import escape
from sat_interp._util.files import file_name, write_atomically

if TYPE_CHECKING:
    from evaluations.comparison.collection import Report

log = logging.getLogger(__name__)


def write(report: Report, out: Path) -> tuple[list[Path], list[str]]:
    """Write tables, figures and pages. What fails stops no other.

    Figures are of one model of each group; there are none where the groups are too many.

    Returns:
        The files written, and a line for each that could not be, with the reason.

    Raises:
        OSError: the tables cannot be written.
    """
    every = [*report.tables, *report.details]
    written = [path for table in every for path in tables.write([table], out, table.name)]
    failures: list[str] = []
    sections = []
    for spec in report.specs:
        if section := _section(report, spec, out, failures):
            sections.append(section)
            written += section.files
    curves = _attempt("training curves", failures, lambda: _curves(report, out))
    page = _attempt(
        "the page",
        failures,
        lambda: [write_comparison(report, sections, curves, out / "report.html")],
    )
    text = _attempt("report.md", failures, lambda: [_write_markdown(report, sections, out)])
    return [*written, *curves, *page, *text], failures


def _section(report: Report, spec: Spec, out: Path, failures: list[str]) -> Section | None:
    """Write an evaluation's own tables, files, figures and page; None where it has no record."""
    records = report.shown(spec)
    if not records:
        return None
    section, room, whole = Section(spec, records), spec.report, report.whole(records)
    section.whole = whole

    def write_tables() -> list[Path]:
        section.tables = room.tables(records)
        written = tables.write(section.tables, out, spec.name)
        return written + (room.files(whole, out, spec.name) if whole else [])

    section.files += _attempt(f"{spec.name} tables", failures, write_tables)
    if whole:
        section.figures, failed = draw.write(room.FIGURES, whole, out, spec.name)
        failures += failed
    browse = getattr(room, "browse", None)
    if whole and browse:
        path = out / f"{spec.name}.html"
        section.pages = _attempt(
            f"{spec.name} page", failures, lambda: browse(whole, report.directory, path)
        )
    section.files += [*section.figures, *section.pages]
    return section


def _attempt(name: str, failures: list[str], make: Callable[[], list[Path]]) -> list[Path]:
    """The files that are made; none where that fails, with a line why in ``failures``."""
    try:
        return make()
    except Exception as error:
        log.debug("%s: not written", name, exc_info=True)
        failures.append(f"{name}: not written ({draw.reason_of(error)})")
        return []


def _write_markdown(report: Report, sections: Sequence[Section], out: Path) -> Path:
    """The summary and all tables on one page."""
    summary = [
        f"- **{escape.markdown(one.question)}** {escape.markdown(one.text)}"
        for one in report.summary
    ]
    notes = [f"- {escape.markdown(note)}" for note in report.notes]
    lines = ["## Summary", "", *summary, "", "## Tables", ""]
    lines += [*map(markdown, [*report.tables, *report.details]), *notes, ""]
    for section in sections:
        lines += [f"## {section.title}", "", *map(markdown, section.tables)]
    return write_atomically(out / "report.md", "\n".join(lines))


def _curves(report: Report, out: Path) -> list[Path]:
    """Training curves of the study's runs, else of logs below the directory, by a model's name."""
    weights = report.drawn()
    models = [model for group in report.groups for model in group.models]
    names = [model.name for model in models if model.weights in weights]
    if report.study:
        logs = [run.directory for run in report.study.runs() if run.name in names]
    else:
        wanted = {file_name(name) for name in names}
        below = sorted(report.directory.rglob("log.jsonl"))
        logs = [path.parent for path in below if path.parent.name in wanted]
    runs, problems = read_runs(path for path in logs if (path / "log.jsonl").is_file())
    for problem in problems:
        log.warning("training curves: a run is left out: %s", problem)
    return draw.save({"": [draw_curves(runs)]}, out, "curves") if runs else []
