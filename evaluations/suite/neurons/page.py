"""A page for looking at neurons: one HTML file with the excerpts, explanations and scores of them.

Thousands of neurons lie in it. What the list shows is written as columns; excerpts are written
layer by layer, each piece read when one of its neurons is looked at; a level is one digit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluations.comparison.page import assemble, data_script, escaped, fill, template
from evaluations.tables.view import number
from sat_interp._util.errors import UserError

STYLES, SCRIPTS = ("neurons.css",), ("histogram.js", "graph.js", "list.js", "neurons.js")
COLUMNS = ("layer", "index", "score", "detection", "fuzzing", "control", "density", "maximum",
           "explanation", "reason")  # fmt: skip
SIGNIFICANT = 4  # digits of a figure
LEVELS = "0123456789a"

log = logging.getLogger(__name__)

Details = Mapping[str, Any]
"""What ``neurons`` leaves of a model, as JSON: ``model``, ``examiner``, ``text``, ``figures``,
``reasons``, ``vocabulary`` and ``units``, each with its figures, explanation and excerpts, and
perhaps a ``graph``."""


def write_page(models: Sequence[Details], path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the page of one model, or of several, two of them side by side at a time.

    Args:
        notes: what is said of all of them, such as the difference of their means.

    Raises:
        UserError: there is no model.
        OSError: the page cannot be written.
    """
    body, data = neuron_browser(models, notes)
    names = ", ".join(str(model["model"]) for model in models)
    head = {"names": escaped(names), "browser": body}
    whole = fill(template("neuron_page.html"), head)
    return assemble(path, f"Neurons of {names}", whole, STYLES, SCRIPTS, data)


def neuron_browser(models: Sequence[Details], notes: Sequence[str] = ()) -> tuple[str, str]:
    """The part of a page that shows neurons, and its data; it needs `STYLES` and `SCRIPTS`.

    Raises:
        UserError: there is no model.
    """
    if not models:
        raise UserError("a page of neurons needs at least one model")
    index, pieces = [], []
    for place, model in enumerate(models):
        units = sorted(model["units"], key=lambda unit: (unit["layer"], unit["index"]))
        index.append(
            {
                "name": model["model"],
                "notes": _notes(model),
                "vocabulary": model["vocabulary"],
                "columns": {name: [_short(unit.get(name)) for unit in units] for name in COLUMNS},
                "peaks": [_peaks(unit) for unit in units],
            }
        )
        for layer, members in groupby(units, key=lambda unit: unit["layer"]):
            kept = [_excerpts(unit) for unit in members]
            pieces.append(data_script(f"excerpts-{place}-{layer}", kept))
    told = "\n".join(f"<p>{escaped(note)}</p>" for note in notes)
    body = fill(template("neurons.html"), {"notes": told})
    return body, data_script("neurons", index) + "".join(pieces)


def with_graphs(model: Details, directory: Path) -> Details:
    """The model with the graphs that ``n2g`` has left of its neurons, where it has any.

    Args:
        directory: of the model's records: ``directory/n2g/*.graphs``.
    """
    graphs: dict[str, Any] = {}
    for path in sorted((directory / "n2g").glob("*.graphs")):
        try:
            layer = json.loads(path.read_text(encoding="utf-8"))
            found = {one["unit"]: one["graph"] for one in layer["neurons"] if one["graph"]["nodes"]}
            if layer.get("read") == model.get("read"):  # of other units, or on other text
                graphs.update(found)
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s holds no graphs; it is passed over", path)
    units = [{**unit, "graph": graphs.get(unit["unit"])} for unit in model["units"]]
    return {**model, "units": units}


def _notes(model: Details) -> list[str]:
    """What was read and asked, the figures with their intervals, and what could not be scored."""
    read = [str(model[name]) for name in ("text", "hook", "stream") if model.get(name)]
    asked = f"Explained by {model['examiner']}. " if model.get("examiner") else ""
    figures = [_figure(one) for one in model.get("figures", ()) if one.get("value") is not None]
    lost = [f"{count:,} {reason}" for reason, count in model.get("reasons", {}).items() if count]
    lines = [asked + ", ".join(read), ". ".join(figures), lost and f"Unscored: {', '.join(lost)}."]
    return [line for line in lines if line]


def _figure(figure: Mapping[str, Any]) -> str:
    value = figure["value"]
    text = f"{figure['title']} {number(value, 0 if value == int(value) else 3)}"
    if figure.get("low") is not None and figure.get("high") is not None:
        text += f" [{number(figure['low'], 3)}, {number(figure['high'], 3)}]"
    return text + (f", n = {figure['n']:,}" if figure.get("n") is not None else "")


def _peaks(unit: Mapping[str, Any]) -> list[int]:
    """The tokens it fires on most in its excerpts, each once: what a search for a token finds."""
    peaks = {
        one["tokens"][one["levels"].index(max(one["levels"]))]: None
        for one in unit["excerpts"]
        if max(one["levels"], default=0) > 0
    }
    return list(peaks)


def _excerpts(unit: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a unit once it is looked at."""
    kept: dict[str, Any] = {
        "excerpts": [
            [one["half"], one["kind"], one["story"], one["start"], one["tokens"],
             _digits(one["levels"]), one["simulated"] and _digits(one["simulated"])]
            for one in unit["excerpts"]
        ]
    }  # fmt: skip
    return {**kept, "graph": unit["graph"]} if unit.get("graph") else kept


def _digits(levels: Sequence[float]) -> str:
    """Levels from 0 to 10, a character each."""
    return "".join(LEVELS[min(10, max(0, round(level)))] for level in levels)


def _short(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value
