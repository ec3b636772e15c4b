"""The paper's Table 2 from ``n2g`` records: metric by model by layer, over seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evaluations.comparison import paper_values
from evaluations.comparison.seeds import Group, difference, estimate, references
from evaluations.comparison.selection import Model, is_comparable
from evaluations.core.record import Direction, Metric, Record
from evaluations.tables import health
from evaluations.tables.cells import (
    best_of,
    command_for,
    exact,
    is_sound,
    judged,
    own_exact,
    own_interval,
    records_of,
    shown,
)
from evaluations.tables.comparable import differing, mixture
from evaluations.tables.grid import EMPTY, Cell, Grid, Heading
from evaluations.tables.health import DAGGER
from evaluations.tables.tables import ARROWS

EVALUATION = "n2g"
OVER_SEEDS = (
    "In brackets: 95 % interval over training seeds (Student's t, n - 1 degrees of freedom), from "
    "three seeds on."
)
OF_ONE = (
    "In parentheses, of a single model: 95 % interval over its n neurons (Student's t; of a share "
    "Wilson's), not over seeds; of fewer than 5 neurons there is none."
)


@dataclass(frozen=True)
class LayerFigure:
    """A row of Table 2, one value a layer."""

    metric: str
    title: str
    digits: int
    direction: Direction | None

    def values(self, record: Record) -> dict[int, float]:
        """By layer: the record's metrics ``<metric>.layer<layer>`` that have a value."""
        pattern = re.compile(rf"{re.escape(self.metric)}\.layer(\d+)")
        return {
            int(found[1]): metric.value
            for metric in record.metrics
            if (found := pattern.fullmatch(metric.name)) and metric.value is not None
        }

    def at(self, model: Model, layer: int) -> float | None:
        metric = self.metric_at(model, layer)
        return metric.value if metric else None

    def metric_at(self, model: Model, layer: int) -> Metric | None:
        record = model.records.get(EVALUATION)
        return record.metric(f"{self.metric}.layer{layer}") if record else None

    def overall(self, model: Model) -> float | None:
        """The mean over the neurons of all layers."""
        record = model.records.get(EVALUATION)
        metric = record.metric(self.metric) if record else None
        return metric.value if metric else None


_SHAPE = (
    ("density", "Graph density, E/(N(N-1))", 3),
    ("density_undirected", "Graph density, 2E/(N(N-1))", 3),
    ("transitivity", "Transitivity", 3),
    ("edges_to_activation", "Edges to activation", 2),
    ("out_degree", "Out-degree", 2),
)
# Where empty graphs count 0 as in the paper, a model with more of them looks simpler: no value is
# best there, and differences are those of graphs with edges.
_PAPER = tuple(LayerFigure(*shape, None) for shape in _SHAPE)
_NONEMPTY = tuple(
    LayerFigure(f"{name}_nonempty", f"{title}, not empty", digits,
                None if name == "out_degree" else "lower")
    for name, title, digits in _SHAPE
)  # fmt: skip
_OTHERS = (
    LayerFigure("entropy", "Neuron entropy, bits", 2, "lower"),
    LayerFigure("diversity", "Token diversity", 2, "lower"),
    LayerFigure("empty", "Share of empty graphs", 3, None),
)
TABLE_2 = (*_PAPER, *_NONEMPTY, *_OTHERS)
DIFFERENCES = (*_NONEMPTY, *_OTHERS)


def table_2(groups: Sequence[Group], with_paper: bool = False) -> Grid:
    """For each metric a row a group, a column a layer; the best mean of a layer is bold.

    Args:
        with_paper: the paper's own values as further rows.
    """
    records = records_of(groups, EVALUATION)
    layers = sorted(
        {layer for one in records for figure in TABLE_2 for layer in figure.values(one)}
    )
    if with_paper:
        layers = list(range(max([7, *layers]) + 1))
    layers = layers or [0]
    comparable = is_comparable(records)
    rows = []
    for figure in TABLE_2:
        best = {
            layer: _best(figure, layer, groups) if comparable else set[str]() for layer in layers
        }
        for group in groups:
            rows.append(_row(figure, group, layers, best))
        if with_paper and figure.metric in paper_values.TABLE_2:
            rows += _paper_rows(figure, layers)
    headings = (
        Heading("Metric", "metric"), Heading("Model", "model"), Heading("Seeds", "seeds"),
        *(Heading(f"L{layer}", f"layer_{layer}") for layer in layers),
    )  # fmt: skip
    title = "Table 2: graphs of neurons (N2G), means over the neurons of a layer"
    cells = [cell for row in rows for cell in row]
    notes = [OVER_SEEDS] * any(cell.exact.get("_low") is not None for cell in cells)
    notes += _notes(groups, comparable, with_paper)
    own = OF_ONE if any(cell.within for cell in cells) else ""
    return Grid("table2", title, headings, rows, notes, 3, own)


def layer_differences(groups: Sequence[Group]) -> Grid:
    """Table 2's metrics over all layers: paired differences, as those of Table 1."""
    rows = []
    for group in groups:
        for other in references(group, groups):
            names = [Cell(_marked(one), exact={"": one.name}) for one in (group, other)]
            rows.append([*names, *(_difference(figure, group, other) for figure in DIFFERENCES)])
    headings = (
        Heading("Model", "model"), Heading("minus", "minus"),
        *(Heading(figure.title, figure.metric, figure.direction) for figure in DIFFERENCES),
    )  # fmt: skip
    note = "Means over the neurons of all layers; else as the paired differences of Table 1."
    return Grid("table2-differences", "Table 2: paired differences", headings, rows, [note], 2)


def _marked(group: Group) -> str:
    """The group's name, with a dagger where one of its records is unsound."""
    return group.name if is_sound(EVALUATION, group.models) else f"{group.name} {DAGGER}"


def _best(figure: LayerFigure, layer: int, groups: Sequence[Group]) -> set[str]:
    sound = [group for group in groups if is_sound(EVALUATION, group.models)]
    return best_of(sound, lambda model: figure.at(model, layer), figure.direction)


def _row(
    figure: LayerFigure, group: Group, layers: Sequence[int], best: dict[int, set[str]]
) -> list[Cell]:
    title = f"{figure.title} {ARROWS[figure.direction]}".strip()
    measured = [model for model in group.models if EVALUATION in model.records]
    labels = [
        Cell(title, exact={"": figure.metric}),
        Cell(_marked(group), exact={"": group.name}),
        Cell(str(len(measured)), exact={"": len(measured)}),
    ]
    if not measured:
        command = f"run: sat-eval {EVALUATION if group.models else 'all'}"
        return [*labels, Cell(command), *(Cell(EMPTY) for _ in layers[1:])]
    return [
        *labels,
        *(_cell(figure, measured, layer, group.name in best[layer]) for layer in layers),
    ]


def _cell(figure: LayerFigure, models: Sequence[Model], layer: int, is_best: bool) -> Cell:
    scored = [model for model in models if figure.at(model, layer) is not None]
    values = [value for model in scored if (value := figure.at(model, layer)) is not None]
    if not values:
        return Cell(EMPTY)
    found = estimate(values)
    text = _fixed(found.mean, figure.digits)
    if found.low is not None and found.high is not None:
        ends = f"{_fixed(found.low, figure.digits)}, {_fixed(found.high, figure.digits)}"
        return Cell(f"{text} [{ends}]", is_best, {**exact(found), **own_exact(None)})
    metric = figure.metric_at(scored[0], layer)
    alone = metric if found.n == 1 else None
    own = own_interval(alone)
    return Cell(text, is_best, {**exact(found), **own_exact(own)},
                _within(own, alone.n if alone else None, figure.digits))  # fmt: skip


def _within(ends: tuple[float, float] | None, n: int | None, digits: int) -> str:
    """``(0.20–0.31, n=14)``: a single model's interval over its neurons, and how many they are."""
    parts = [f"{_fixed(ends[0], digits)}–{_fixed(ends[1], digits)}"] if ends else []
    parts += [f"n={n}"] if n is not None else []
    return f"({', '.join(parts)})" if parts else ""


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace(
        "-", "−"
    )  # many are 0 to three digits: no 2e-05 among them


def _paper_rows(figure: LayerFigure, layers: Sequence[int]) -> list[list[Cell]]:
    made = []
    for name, values in zip(
        ("paper: baseline", "paper: ablated"), paper_values.TABLE_2[figure.metric], strict=True
    ):
        cells = [
            Cell(f"{values[layer]:g}", exact={"": values[layer]})
            if layer < len(values)
            else Cell(EMPTY)
            for layer in layers
        ]
        labels = [Cell(figure.title, exact={"": figure.metric}), Cell(name, exact={"": name})]
        made.append([*labels, Cell("1", exact={"": 1}), *cells])
    return made


def _difference(figure: LayerFigure, group: Group, other: Group) -> Cell:
    if not is_comparable(records_of([group, other], EVALUATION)):
        return Cell("other settings")
    found = difference(group, other, figure.overall)
    if found is None:
        return Cell(EMPTY)
    verdict = judged(found, figure.direction)
    text = f"{shown(found, figure.digits, sign=True)}, n={found.n}"
    is_best = verdict == "better" and is_sound(EVALUATION, [*group.models, *other.models])
    return Cell(f"{text}: {verdict}" if verdict else text, is_best,
                {**exact(found), "_verdict": verdict})  # fmt: skip


def _notes(groups: Sequence[Group], comparable: bool, with_paper: bool) -> list[str]:
    notes = [
        "Graphs without edges count 0, as in the paper, but in the rows 'not empty'; where they "
        "count, no value is bold: more empty graphs would make a model look simpler."
    ]
    notes += health.explained(
        (model.name, model.records[EVALUATION])
        for group in groups
        for model in group.models
        if EVALUATION in model.records
    )
    missing = [
        model for group in groups for model in group.models if EVALUATION not in model.records
    ]
    if missing:
        notes.append(f"missing, run: {command_for(EVALUATION, missing)}")
    if comparable and (records := records_of(groups, EVALUATION)):
        config, data = records[0].config, records[0].data
        notes.append(
            f"n2g: {config.get('neurons_per_layer') or 'all'} neurons a layer, "
            f"{data.get('spec', '?')}, {data.get('n_stories', '?')} stories"
        )
    if not comparable:
        told = ", ".join(differing(records_of(groups, EVALUATION)))
        notes.append("n2g: models were measured with different settings or on different text "
                     f"({told}); no value is bold")  # fmt: skip
    notes += [f"n2g: {line}" for line in mixture(records_of(groups, EVALUATION))]
    if with_paper:
        notes.append(
            f"paper: {paper_values.SOURCE}, Table 2: other data and tokens than here, and the "
            "thresholds and streams of its two models differed; entropy and diversity may be of a "
            "layer's tokens together, not means over neurons"
        )
    return notes
