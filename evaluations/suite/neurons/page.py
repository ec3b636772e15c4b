"""A page for looking at neurons: one HTML file with their excerpts, explanations and scores.

It holds thousands of neurons. The list's values are written as columns; excerpts are written layer
by layer, gzipped, and read when one of the layer's neurons is chosen; a level is one digit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluations.tables import page
from evaluations.tables.view import brackets, number
from sat_interp._util.errors import UserError

HERE = "evaluations.suite.neurons"
SCRIPTS = ("histogram.js", "graph.js", "list.js", "neurons.js")
COLUMNS = (
    "layer",
    "index",
    "score",
    "detection",
    "fuzzing",
    "control",
    "density",
    "maximum",
    "explanation",
    "reason",
)
SIGNIFICANT = 4
"""Digits of a value."""
LEVELS = "0123456789a"

log = logging.getLogger(__name__)

Details = Mapping[str, Any]
"""The file that ``neurons`` writes of a model (`evaluations.suite.neurons.details`): ``model``,
``examiner``, ``text``, ``figures``, ``reasons``, ``vocabulary`` and ``units``, each with scores,
explanation and excerpts, and a ``graph`` where ``n2g`` made one."""


def write_page(models: Iterable[Details], path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the page of one model, or of several, of which two are shown side by side.

    Args:
        models: read one after the other: the details of a large model are a gigabyte in memory.
        notes: sentences about all of them, such as the difference of their means.

    Raises:
        UserError: there is no model.
        OSError: the page cannot be written.
    """
    index: list[dict[str, Any]] = []
    pieces: list[Markup] = []
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
            excerpts = [_excerpts(unit) for unit in members]
            pieces.append(page.data_script(f"excerpts-{place}-{layer}", excerpts, packed=True))
    if not index:
        raise UserError("a page of neurons needs at least one model")
    fragment = page.Fragment(
        Markup("").join([page.data_script("neurons", index), *pieces]),
        page.source(HERE, "neurons.css"),
        page.source(HERE, *SCRIPTS),
    )
    names = ", ".join(str(model["name"]) for model in index)
    return page.write(
        path, HERE, "neuron_page.html", fragment, title="Neurons", names=names, notes=notes
    )


def with_graphs(model: Details, directory: Path) -> Details:
    """The model with the graphs that ``n2g`` made of its neurons, where there are any.

    Args:
        directory: of the model's records: ``directory/n2g/*.graphs``.
    """
    graphs: dict[str, Any] = {}
    for path in sorted((directory / "n2g").glob("*.graphs")):
        try:
            layer = json.loads(path.read_text(encoding="utf-8"))
            if layer.get("read") == model.get("read"):  # the same units on the same text
                graphs |= {
                    neuron["unit"]: neuron["graph"]
                    for neuron in layer["neurons"]
                    if neuron["graph"]["nodes"]
                }
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s holds no graphs; it is skipped", path)
    units = [{**unit, "graph": graphs.get(unit["unit"])} for unit in model["units"]]
    return {**model, "units": units}


def _notes(model: Details) -> list[str]:
    """The text and the examiner, the values with their intervals, and what was not scored."""
    text = [str(model[name]) for name in ("text", "hook", "stream") if model.get(name)]
    examiner = f"Explained by {model['examiner']}. " if model.get("examiner") else ""
    values = [_value(one) for one in model.get("figures", ()) if one.get("value") is not None]
    lost = [f"{count:,} {reason}" for reason, count in model.get("reasons", {}).items() if count]
    lines = [
        examiner + ", ".join(text),
        ". ".join(values),
        f"Not scored: {', '.join(lost)}." if lost else "",
    ]
    return [line for line in lines if line]


def _value(metric: Mapping[str, Any]) -> str:
    value = metric["value"]
    text = f"{metric['title']} {number(value, 0 if value == int(value) else 3)}"
    if metric.get("low") is not None and metric.get("high") is not None:
        text += f" {brackets(metric['low'], metric['high'], 3)}"
    return text + (f", n = {metric['n']:,}" if metric.get("n") is not None else "")


def _peaks(unit: Mapping[str, Any]) -> list[int]:
    """The most active token of each excerpt, each once: a search for a token finds these."""
    peaks = {
        excerpt["tokens"][excerpt["levels"].index(max(excerpt["levels"]))]: None
        for excerpt in unit["excerpts"]
        if max(excerpt["levels"], default=0) > 0
    }
    return list(peaks)


def _excerpts(unit: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a unit that is shown once it is chosen."""
    excerpts = [
        [
            excerpt["half"],
            excerpt["kind"],
            excerpt["story"],
            excerpt["start"],
            excerpt["tokens"],
            _digits(excerpt["levels"]),
            excerpt["simulated"] and _digits(excerpt["simulated"]),
        ]
        for excerpt in unit["excerpts"]
    ]
    return {"excerpts": excerpts} | ({"graph": unit["graph"]} if unit.get("graph") else {})


def _digits(levels: Sequence[float]) -> str:
    """Levels from 0 to 10, a character each."""
    return "".join(LEVELS[min(10, max(0, round(level)))] for level in levels)


def _short(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value
