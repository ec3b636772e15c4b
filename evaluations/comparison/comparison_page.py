"""A comparison of models as one HTML file: tables, figures, circuits, neurons.

Made of records and of the figures drawn from them, with what every figure rests on; see ``page``
for how it stays whole without a network.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from evaluations.comparison.page import assemble, escaped, fill, template
from evaluations.comparison.provenance import provenance
from evaluations.core.record import Record
from evaluations.core.records import Identity, identity
from evaluations.suite.circuits import report as circuits
from evaluations.suite.circuits.draw import PARTS
from evaluations.suite.circuits.picture import circuit_picture, part_color
from evaluations.suite.gates import report as gates
from evaluations.suite.lm import report as lm
from evaluations.suite.n2g import report as n2g
from evaluations.suite.neurons import report as neuron_tables
from evaluations.suite.neurons.page import SCRIPTS, STYLES, Details, neuron_browser
from evaluations.suite.sae import report as sae
from evaluations.suite.sae.front import is_converged
from evaluations.tables import Row, Table, html, rows

TOLD_IN_FULL = 60
"""Records of an evaluation whose every figure is on the page."""


@dataclass(frozen=True)
class Section:
    """A part of the page: what one evaluation found.

    Attributes:
        tables: the tables of its records.
    """

    evaluation: str
    title: str
    tables: Callable[[Sequence[Record]], Sequence[Table]]
    figures: str = ""
    """What the names of its figures begin with, where that is not the evaluation's name."""


SECTIONS = (
    Section("lm", "Language modelling", lm.tables),
    Section("acdc", "Circuits", circuits.tables, figures="circuits"),
    Section("sae", "Sparse autoencoders", sae.tables),
    Section("gates", "Gates", gates.tables),
    Section("neurons", "Neuron explanations", neuron_tables.tables),
    Section("n2g", "Graphs of neurons", n2g.tables),
)


def write_comparison(
    records: Sequence[Record],
    path: Path,
    title: str = "Comparison of models",
    summary: Sequence[Table] = (),
    figures: Sequence[Path] = (),
    neurons: Sequence[Details] = (),
    drawn: Collection[str] = (),
    notes: Sequence[str] = (),
    beside: Sequence[Path] = (),
    files: Mapping[Identity, str] | None = None,
) -> Path:
    """Write the report.

    Args:
        records: of any evaluations; those no section is about are in none.
        summary: tables that stand before all others, such as the paper's Table 1 and Table 2.
        figures: of which the ``.svg`` files are put in, each in the section whose evaluation its
            name begins with, others at the summary.
        neurons: of the models whose neurons can be looked at.
        drawn: weights of the models whose circuits are drawn; all by default.
        notes: sentences said at the top.
        beside: pages in the same directory that hold what this one has no room for.
        files: where records lie, as seen from the page: of many records those whose models are not
            drawn are linked to, in place of every figure of theirs.

    Raises:
        OSError: it cannot be written, or a figure cannot be read.
    """
    drawings = [figure for figure in figures if figure.suffix == ".svg"]
    places = {figure: _home(figure) for figure in drawings}
    parts = [
        part
        for section in SECTIONS
        if (
            part := _section(
                section,
                records,
                [one for one in drawings if places[one] is section],
                drawn,
                files or {},
            )
        )
    ]
    rest = [figure for figure in drawings if places[figure] is None]
    data, styles, scripts = "", ["comparison.css"], ["circuits.js"]
    if summary or rest:
        tables = "".join(map(html, summary)) + "".join(map(_figure, rest))
        parts.insert(0, _part("summary", "Summary", tables))
    if neurons:
        browser, data = neuron_browser(neurons)
        parts.append(_part("browse", "Neurons, one by one", browser))
        styles, scripts = [*styles, *STYLES], [*scripts, *SCRIPTS]
    for page in beside:
        link = f'<p><a href="{escaped(quote(page.name))}">{escaped(page.name)}</a></p>'
        parts.append(_part("browse", "Neurons, one by one: a page of their own", link))
    names = list(dict.fromkeys(str(row.model) for row in rows(records)))
    head = {
        "title": escaped(title),
        "names": escaped(", ".join(names)),
        "notes": "".join(f"<p>{escaped(note)}</p>" for note in notes),
        "warnings": _warnings(records),
        "contents": "".join(
            f'<a href="#{name}">{escaped(heading)}</a>' for name, heading, _ in parts
        ),
        "parts": "".join(text for _, _, text in parts),
    }
    body = fill(template("comparison.html"), head)
    return assemble(path, title, body, styles, scripts, data)


def _section(
    section: Section,
    records: Sequence[Record],
    figures: Sequence[Path],
    drawn: Collection[str],
    files: Mapping[Identity, str],
) -> tuple[str, str, str] | None:
    """A section's place in the page, its title and HTML; None where nothing is known of it."""
    found = [record for record in records if record.evaluation == section.evaluation]
    if not found:
        return None
    text = "".join(map(html, section.tables(found)))
    if section.evaluation == "acdc":
        text += _circuits([one for one in rows(found) if not drawn or _weights(one) in drawn])
        # circuits are drawn anew, to be pointed at
        figures = [figure for figure in figures if figure.stem.endswith("-curves")]
    text += "".join(map(_figure, figures))
    text += "<details class='provenance'><summary>Every figure, and what it rests on</summary>"
    if len(found) > TOLD_IN_FULL and files:
        kept = [record for record in found if str(record.model["weights_hash"]) in drawn]
        links = [_link(record, files) for record in found if record not in kept]
        text += f"{provenance(kept)}<p class='small'>{' '.join(links)}</p></details>"
    else:
        text += f"{provenance(found)}</details>"
    return _part(section.evaluation, section.title, text)


def _link(record: Record, files: Mapping[Identity, str]) -> str:
    """A link to a record's file."""
    name, path = escaped(record.model.get("name", "?")), files.get(identity(record))
    return f'<a href="{escaped(quote(path))}">{name}</a>' if path else name


def _part(name: str, title: str, text: str) -> tuple[str, str, str]:
    return name, title, f'<section id="{name}"><h2>{escaped(title)}</h2>\n{text}</section>\n'


def _home(figure: Path) -> Section | None:
    """The section that a figure belongs to, by its name."""
    first = figure.stem.partition("-")[0]
    return next(
        (section for section in SECTIONS if first in (section.evaluation, section.figures)), None
    )


def _weights(row: Row) -> str:
    return str(row.records["acdc"].model["weights_hash"])


def _figure(path: Path) -> str:
    """As an image, so that two figures' inner names cannot meet, and none can run a script."""
    content = base64.b64encode(path.read_bytes()).decode()
    name = escaped(path.stem)
    return (
        f'<figure class="drawing"><img alt="{name}" src="data:image/svg+xml;base64,{content}">'
        "</figure>\n"
    )


def _circuits(found: Sequence[Row]) -> str:
    """The circuits side by side, each with its warning above it."""
    panels = []
    for row in found:
        record = row.records["acdc"]
        if "circuit" not in record.extra:
            continue
        circuit, marked = record.extra["circuit"], record.extra.get("marked")
        warning = f"<p class='warning small'>{escaped(marked)}</p>" if marked else ""
        count = f"{len(circuit['edges']):,} of {circuit['graph']['n_edges']:,} edges"
        panels.append(
            f"<figure class='panel'><figcaption><h3>{escaped(row.model)}</h3> "
            f"<span class='soft'>{count}</span></figcaption>{warning}"
            f"{circuit_picture(circuit)}<p class='told small soft' aria-live='polite'></p></figure>"
        )
    colors = "".join(
        f'<span style="--c:{part_color(part)}">{escaped(name)}</span> '
        for part, (name, _) in PARTS.items()
    )
    return (
        f"<p class='small soft circuit-legend'>to {colors} · width: effect · point at a node or an "
        f"edge; a click holds it</p><div class='panels'>{''.join(panels)}</div>\n"
    )


def _warnings(records: Sequence[Record]) -> str:
    """What has to be known before any figure is believed."""
    found = circuits.warnings([record for record in records if record.evaluation == "acdc"])
    autoencoders = [record for record in records if record.evaluation == "sae"]
    if autoencoders:
        found += [
            f"{record.model['name']}: its autoencoder explains less than half of the variance"
            for record in autoencoders
            if not is_converged(record)
        ]
    dirty = sum(str(record.commit).endswith("-dirty") for record in records)
    if dirty:
        found.append(f"{dirty} of {len(records)} records come from a tree with uncommitted changes")
    if not found:
        return ""
    listed = "".join(f"<li>{escaped(one)}</li>" for one in dict.fromkeys(found))
    return f"<div class='warning' role='note'><ul>{listed}</ul></div>"
