"""The report as one HTML file: summary, tables, and a section for each evaluation.

It needs no network: see `evaluations.tables.page`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from evaluations.comparison.provenance import provenance
from evaluations.core.record import Record
from evaluations.core.records import identity
from evaluations.core.spec import Spec
from evaluations.tables import Table, glossary, html, rows
from evaluations.tables.page import Fragment, source, write

if TYPE_CHECKING:
    from evaluations.comparison.collection import Report

HERE = "evaluations.comparison"
FULL = 60
"""Records of an evaluation of which all values are on the page; of more, those of models in
figures, and links to the others."""


@dataclass
class Section:
    """The part of the page about one evaluation.

    Attributes:
        records: those its tables show.
        whole: those its figures show, with all that figures read.
        figures: PNG and SVG files.
        pages: pages of their own, in the same directory.
        files: all files written.
    """

    spec: Spec
    records: Sequence[Record]
    whole: Sequence[Record] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Path] = ()
    pages: Sequence[Path] = ()
    files: list[Path] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The subject: the summary up to its colon."""
        return self.spec.summary.partition(": ")[0]

    def fragment(self) -> Fragment | None:
        """What the evaluation draws on a page in place of figures; None for most."""
        make: Callable[..., Fragment] | None = getattr(self.spec.report, "fragment", None)
        return make(self.whole) if make else None

    def warnings(self) -> list[str]:
        """Reasons why values of the records mean little."""
        warn: Callable[..., list[str]] | None = getattr(self.spec.report, "warnings", None)
        return warn(self.records) if warn else []


def write_comparison(
    report: Report, sections: Sequence[Section], curves: Sequence[Path], path: Path
) -> Path:
    """Write the page.

    Args:
        curves: figure of the training curves.

    Raises:
        OSError: it cannot be written, or a figure cannot be read.
    """
    shown = [_shown(report, section, path.parent) for section in sections]
    fragments = [one["fragment"] for one in shown if one["fragment"]]
    tables = [*report.tables, *report.details]
    return write(
        path,
        HERE,
        "comparison.html",
        Fragment(
            Markup(),
            Markup("\n").join([source(HERE, "comparison.css"), *(one.style for one in fragments)]),
            Markup("\n").join(one.script for one in fragments),
        ),
        title="Comparison of models",
        names=list(dict.fromkeys(str(row.model) for row in rows(report.records))),
        notes=report.notes,
        warnings=_warnings(report.records, sections),
        answers=report.summary,
        tables=_html(tables),
        figures=_images(curves),
        sections=shown,
        glossary=_glossary([*tables, *(table for one in sections for table in one.tables)]),
    )


def _shown(report: Report, section: Section, out: Path) -> dict[str, Any]:
    """The values of a section in the template."""
    fragment = section.fragment()
    replaced = fragment.replaces if fragment else ()
    name = section.spec.name
    records = section.records
    links: list[tuple[str, str]] = []
    if len(records) > FULL:
        links = [_link(report, record, out) for record in records]
        records = section.whole
    return {
        "name": name,
        "title": section.title,
        "about": section.spec.summary.partition(": ")[2],
        "tables": _html(section.tables),
        "fragment": fragment,
        "figures": _images(section.figures, [f"{name}-{one}".strip("-") for one in replaced]),
        "pages": [(page.name, quote(page.name)) for page in section.pages],
        "provenance": Markup(provenance(records)),
        "links": links,
    }


def _link(report: Report, record: Record, out: Path) -> tuple[str, str]:
    """The name of a record's model, and the address of its file."""
    path = report.files.get(identity(record))
    address = quote(os.path.relpath(path, out)) if path else ""
    return str(record.model.get("name", "?")), address


def _html(tables: Iterable[Table]) -> list[Markup]:
    return [Markup(html(table)) for table in tables]


def _images(figures: Iterable[Path], replaced: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Names and data of SVG files.

    They are images, so that ids of two figures cannot clash, and none can run a script.
    """
    return [
        (path.stem, base64.b64encode(path.read_bytes()).decode())
        for path in figures
        if path.suffix == ".svg" and not any(_is_numbered(path.stem, one) for one in replaced)
    ]


def _is_numbered(stem: str, name: str) -> bool:
    """Whether a figure's file is of that name, or is one of several: ``acdc-2``."""
    return stem == name or stem.removeprefix(f"{name}-").isdecimal()


def _glossary(tables: Iterable[Table]) -> list[tuple[str, str, list[str]]]:
    """Anchor, title and definitions of each column; two evaluations may use one title.

    Of a definition and a longer one that begins with it, the longer one is given.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for table in tables:
        for column, definition in glossary([table]).items():
            definitions = found.setdefault(column.anchor, (column.title, []))[1]
            if not any(one.startswith(definition) for one in definitions):
                definitions[:] = [one for one in definitions if not definition.startswith(one)]
                definitions.append(definition)
    return [(anchor, *found[anchor]) for anchor in sorted(found)]


def _warnings(records: Sequence[Record], sections: Iterable[Section]) -> list[str]:
    """What a reader must know before using any value."""
    lines = [line for section in sections for line in section.warnings()]
    dirty = sum(str(record.commit).endswith("-dirty") for record in records)
    if dirty:
        lines.append(f"{dirty} of {len(records)} records come from a tree with uncommitted changes")
    return list(dict.fromkeys(lines))
