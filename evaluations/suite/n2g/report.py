"""Tables and figures of ``n2g``: scores of the graphs, Table 2, effect of the thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Direction, Metric, Record
from evaluations.core.statistics import ENOUGH, interval_of
from evaluations.suite.n2g.draw import draw_graph, write_graphml
from evaluations.suite.n2g.table import CONVENTIONS, ROWS
from evaluations.tables import (
    Cell,
    Column,
    Heading,
    Layout,
    Row,
    Table,
    draw,
    make_table,
    make_tables,
    rows,
)
from evaluations.tables.headline import Headline
from evaluations.tables.table import EMPTY, UNSCORED
from evaluations.tables.view import exact_values, number
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically

HEADLINE = Headline(
    "Are its neurons' graphs simpler?",
    "density_nonempty",
    "density of graphs with edges",
    3,
    "lower",
)
DRAWN_FROM = "sensitivity"
"""Entry of ``record.extra`` that figures are drawn from."""
TITLES = {
    "density": "Graph density, E/(N(N-1))",
    "density_undirected": "Graph density, 2E/(N(N-1))",
    "transitivity": "Transitivity",
    "edges_to_activation": "Edges to activating nodes",
    "out_degree": "Out-degree",
    "entropy": "Neuron entropy, bits",
    "diversity": "Token diversity",
    "empty": "Empty graphs",
    "unfaithful": "No faithful window",
}
"""The rows of Table 2."""
DEFINITIONS = {
    "density": "Edges E of a neuron's graph over all ordered pairs of its N nodes",
    "density_undirected": "Edges E of a neuron's graph over all unordered pairs of its N nodes",
    "transitivity": "Share of the graph's connected triples of nodes that are triangles",
    "edges_to_activation": "Number of edges that lead to activating nodes",
    "out_degree": "Edges that leave a node, mean over nodes",
    "entropy": "Entropy of the distribution of activating tokens",
    "diversity": "Number of word classes among the activating tokens",
    "empty": "Share of neurons whose graph has no edge",
    "unfaithful": "Share of neurons whose activation no short window of any excerpt keeps",
}
DIGITS = 3
F1 = "F1 of predicting, on held-out excerpts, where a neuron fires; by"
LOOKUPS = {
    "published": ("ever", "tokens that ever fire it"),
    "windows": ("same evidence", "tokens that fire it in the windows the graph is made of"),
    "": ("whole excerpts", "tokens that fire it in the whole excerpts"),
}


def _column(metric: str, heading: str, definition: str, digits: int = 3) -> Column:
    return Column("n2g", metric, heading, digits, interval=True, definition=definition)


def _lookups(suffix: str) -> list[Column]:
    return [
        _column(f"f1_lookup{name and f'_{name}'}{suffix}", f"F1 lookup, {title}", f"{F1} {about}")
        for name, (title, about) in LOOKUPS.items()
    ]


SCORES = (
    Layout(
        "n2g",
        "Do the graphs describe their neurons? Firing on held-out excerpts",
        (
            _column("f1_trie", "F1 graph", f"{F1} its graph"),
            *_lookups(""),
            _column("f1_always", "F1 always", f"{F1} always predicting that it fires (control)"),
            _column(
                "predicts",
                "Graph predicts",
                "Share of neurons whose graph predicts firing anywhere",
            ),
            _column("empty", "Empty graphs", DEFINITIONS["empty"]),
            _column(
                "tokens_per_unit",
                "Tokens per neuron",
                "Tokens the model has read for each neuron",
                0,
            ),
        ),
    ),
    Layout(
        "n2g-predicting",
        "Firing on held-out excerpts, of neurons whose graph and lookups predict it somewhere",
        (
            _column("f1_trie_predicting", "F1 graph", f"{F1} its graph"),
            _column(
                "precision_trie_predicting",
                "Precision",
                "Share of the tokens the graph predicts that fire the neuron",
            ),
            _column(
                "recall_trie_predicting",
                "Recall",
                "Share of the tokens that fire the neuron that the graph predicts",
            ),
            *_lookups("_predicting"),
            *(
                _column(
                    f"f1_gain{name and f'_{name}'}_predicting",
                    f"F1 graph - lookup, {title}",
                    f"F1 of the graph minus F1 of the lookup of {about}",
                )
                for name, (title, about) in LOOKUPS.items()
            ),
        ),
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """How well graphs describe their neurons, and the paper's Table 2 under both conventions."""
    models = rows(records, "n2g")
    if not models:
        return []
    notes = _notes(models)
    return [*make_tables(SCORES, records), *(_graphs(models, name, notes) for name in CONVENTIONS)]


def details(record: Record, out: Path) -> pd.DataFrame:
    """Return a row for each neuron: layer, index, the metrics and scores of its graph.

    Args:
        out: directory of the records.

    Raises:
        UserError: the graphs are missing.
    """
    made = []
    for path in graph_files(record, out):
        layer = json.loads(path.read_text(encoding="utf-8"))
        for neuron in layer["neurons"]:
            scores = {f"{name}_f1": one["f1"] for name, one in neuron.get("scores", {}).items()}
            index = int(str(neuron["unit"]).rpartition(".")[2])
            made.append(
                {
                    "model": record.model.get("name"),
                    "layer": layer["layer"],
                    "index": index,
                    "reason": neuron["reason"],
                    **(neuron.get("metrics") or {}),
                    **scores,
                }
            )
    return pd.DataFrame(made)


def graph_files(record: Record, out: Path) -> list[Path]:
    """Return the files that hold a record's graphs, a layer each.

    Raises:
        UserError: one is missing.
    """
    weights, files = str(record.model["weights_hash"])[:8], []
    for name in record.extra["files"]:
        places = sorted(out.glob(f"*-{weights}/n2g/{name}"))
        if not places:
            raise UserError(f"the graphs {name} are missing below {out}: run again with --force")
        files.append(places[0])
    return files


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures; the graphs are beside the records."""
    return []


def _graphs(models: Sequence[Row], convention: str, notes: Sequence[str]) -> Table:
    """Table 2: metric by model by layer, each cell a mean or a share with its 95 % interval."""
    layers = sorted({one for row in models for one in row.records["n2g"].extra.get("layers", [])})
    suffixes = {f"Layer {layer}": f".layer{layer}" for layer in layers} | {"All layers": ""}
    shown: list[tuple[str, Direction | None]] = [(row.name, row.direction) for row in ROWS]
    shown += [("empty", None), ("unfaithful", None)] if not convention else []
    body = []
    for name, direction in shown:
        title = Heading(TITLES[name], direction).text
        label = Cell(title, "label", (), {"metric": f"{name}{convention}"}, DEFINITIONS[name])
        for row in models:
            record = row.records["n2g"]
            metrics = [record.metric(f"{name}{convention}{part}") for part in suffixes.values()]
            whole = metrics[-1]
            n = f"{whole.n:,}" if whole is not None and whole.n is not None else EMPTY
            model = Cell.label("model", row.model, weights=row.weights)
            cells = [_cell(one, key) for one, key in zip(metrics, suffixes, strict=True)]
            body.append([label, model, *cells, Cell(n)])
    return Table(
        f"n2g-graphs{convention.replace('_', '-')}",
        f"Graphs of neurons (the paper's Table 2); {CONVENTIONS[convention]}",
        (
            Heading("Metric"),
            Heading("Model"),
            *map(Heading, suffixes),
            Heading("n", definition="Neurons that the mean over all layers is of"),
        ),
        body,
        f"Means [95 % interval] over neurons: Student's t, of shares Wilson's; none of fewer than "
        f"{ENOUGH} neurons.",
        notes,
        n_labels=2,
    )


def _cell(metric: Metric | None, title: str) -> Cell:
    names = exact_values(title.lower().replace(" ", "_"), None)
    if metric is None:
        return Cell.none(*names)
    interval = interval_of(metric)
    ends = (interval.low, interval.high) if interval else (None, None)
    values = (metric.value, metric.standard_error, *ends, metric.n, metric.n_failed)
    exact = dict(zip(names, values, strict=True))
    if metric.value is None:
        return Cell(UNSCORED, "none", (), exact)
    details = (f"[{_fixed(interval.low)}, {_fixed(interval.high)}]",) if interval else ()
    return Cell(_fixed(metric.value), "value", details, exact)


def _fixed(value: float) -> str:
    """Values near 0 at fixed digits: Table 2 has many."""
    return number(value, DIGITS) if value >= 10.0**-DIGITS else f"{value:.{DIGITS}f}"


def _notes(models: Sequence[Row]) -> list[str]:
    """What was measured, on what, and what could not be measured."""
    data = Layout("", "", (Column("n2g", "density", ""),))
    notes = [*make_table(data, [row.records["n2g"] for row in models]).notes]
    for row in models:
        record = row.records["n2g"]
        metric = record.metric("density")
        counts = [f"{row.model}: {metric.n if metric and metric.n else 0:,} neurons"]
        counts += [f"{n} {reason}" for reason, n in record.extra.get("reasons", {}).items()]
        notes.append("; ".join(counts) + ".")
    used = [row.records["n2g"].config.get("thresholds") for row in models]
    for one in [one for place, one in enumerate(used) if one and one not in used[:place]]:
        notes.append(
            f"Thresholds: activation {one['activation']:g}, importance {one['importance']:g}."
        )
    sources = sorted({str(row.records["n2g"].data.get("substitutes", "?")) for row in models})
    return [*notes, f"Substitutions: {', '.join(sources)}."]


def write_neuron(neuron: dict[str, Any], directory: Path) -> list[Path]:
    """One neuron's graph as PNG, SVG, GraphML and JSON, ``<directory>/<3.117>.*``."""
    stem = neuron["unit"]
    # no .json: what ends so below the directory of the records is a record
    text = json.dumps(neuron, indent=1, ensure_ascii=False) + "\n"
    graph = {**neuron, "graph": neuron.get("graph") or {"nodes": [], "edges": []}}
    return [
        write_atomically(directory / f"{stem}.graph", text),
        write_graphml(directory / f"{stem}.graphml", graph),
        *draw.save({"": [draw_graph(graph)]}, directory, stem),
    ]


def _thresholds(records: Sequence[Record]) -> list[Figure]:
    """Each row of Table 2 (empty graphs counted 0, all layers) over the patterns' thresholds."""
    models = [
        row
        for row in rows(records, "n2g")
        if isinstance(row.records["n2g"].extra.get("sensitivity"), list)
        and row.records["n2g"].extra["sensitivity"]
        and "thresholds" in row.records["n2g"].config
    ]
    return [draw_sensitivity(models)] if models else []


FIGURES: Mapping[str, draw.Draw] = {"": _thresholds}


def draw_sensitivity(models: Sequence[Row]) -> Figure:
    """The rows of Table 2 over each threshold, the other one being the record's."""
    figure = Figure(figsize=(2.1 * len(ROWS), 4.6), layout="constrained")
    grid = figure.subplots(2, len(ROWS), squeeze=False)
    thresholds = (("importance", "activation"), ("activation", "importance"))
    for line, (moved, fixed) in zip(grid, thresholds, strict=True):
        is_first = moved == "importance"
        for axes, row in zip(line, ROWS, strict=True):
            drawn = [_curve(axes, one, row.name, moved, fixed, at) for at, one in enumerate(models)]
            title = TITLES[row.name].replace(", ", ",\n") if is_first else ""
            draw.finish(axes, f"{moved} threshold", "", title, "y")
            axes.title.set_fontsize(9)
            axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-9))
            if not any(drawn):
                draw.empty(axes, "no value: no neuron has a graph")
    draw.legend(figure, 4)
    return figure


def _curve(axes: Axes, row: Row, name: str, moved: str, fixed: str, index: int) -> bool:
    """Draw a model's values over one threshold; whether there are any."""
    record = row.records["n2g"]
    own = record.config["thresholds"][fixed]
    points = sorted(
        (one[moved], one["metrics"].get(name))
        for one in record.extra["sensitivity"]
        if one[fixed] == own and one["metrics"].get(name) is not None
    )
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        linewidth=1.2,
        markersize=4,
        label=row.label if points else f"{row.label}: no value",
        color=draw.color(index),
        marker=draw.marker(index),
    )
    return bool(points)
