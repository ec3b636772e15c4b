"""Tables over seeds with paired differences: the paper's Tables 1 and 2, neurons, ablation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from evaluations.comparison import paper_values
from evaluations.comparison.bridge import TABLE_3
from evaluations.comparison.measures import Comparison, Measure, records_of
from evaluations.comparison.notes import (
    commands,
    count_notes,
    health_notes,
    interval_notes,
    measure_notes,
    unable_note,
)
from evaluations.comparison.paper_measures import (
    LENSES,
    PAPER,
    SCORES,
    TABLE_1,
    TABLE_2,
)
from evaluations.comparison.seeds import Group, references
from evaluations.comparison.selection import Model
from evaluations.core import health
from evaluations.core.health import DAGGER
from evaluations.core.record import Record
from evaluations.tables import Cell, Heading, Table
from evaluations.tables.table import UNSCORED
from evaluations.tables.view import number

LABELS = (Heading("Model"), Heading("Gates"), Heading("k"), Heading("Seeds"))
NOT_EMPTY = (
    "Means over the neurons of a layer. Graphs without edges count 0, as in the paper, except in "
    "the rows 'not empty'; where they count, no value is bold: more empty graphs would make a "
    "model look simpler."
)
PAIRED = (
    "The value of a seed minus that of the same seed of the other model: mean and 95 % interval "
    "(Student's t, n - 1 degrees of freedom), n pairs. 'cannot tell': the interval holds 0. The "
    "intervals are not corrected for their number: 1 of 20 misses by chance."
)
Rows = list[list[Cell]]


def table_1(
    groups: Sequence[Group], with_paper: bool = False, measures: Sequence[Measure] = TABLE_1
) -> Table:
    """A row for each group, a column for each measure; the best mean of a column is bold.

    The edge count of a model that fails IOI (accuracy below 0.9) is marked with a dagger, left out
    of means, and counted. A note has the command for what was not measured.

    Args:
        with_paper: the paper's own values as further columns, where it has such a model.
        measures: those shown.
    """
    measures = _known(measures, groups)
    title = "Circuits, autoencoders, language modelling (the paper's Table 1)"
    made = _over_seeds(Comparison(groups), measures, "table1", title, "stories")
    if not with_paper:
        return made
    published = [measure for measure in measures if measure.metric in PAPER]
    columns = (*made.columns, *(Heading(f"Paper: {one.title}") for one in published))
    rows = [
        [*row, *_paper_cells(group, published)]
        for row, group in zip(made.rows, groups, strict=True)
    ]
    note = f"Paper: {paper_values.SOURCE}, Table 1: one model each, other data than here."
    return replace(made, columns=columns, rows=rows, notes=[*made.notes, note])


def _known(measures: Sequence[Measure], groups: Sequence[Group]) -> list[Measure]:
    """The paper's measures, and those of the others that some model has."""
    models = [model for group in groups for model in group.models]
    return [
        measure
        for measure in measures
        if measure.metric in PAPER or any(measure.metric_of(model) for model in models)
    ]


def neuron_scores(groups: Sequence[Group]) -> Table:
    """The means of the neurons' explanation scores (the paper's Figure 2, right), over seeds."""
    made = _over_seeds(
        Comparison(groups), SCORES, "neuron-scores", "Explanations of neurons", "neurons"
    )
    notes = [*made.notes, "The value of a model is the mean over its neurons."]
    return replace(made, notes=[*notes, *count_notes(records_of(groups, "neurons"), SCORES)])


def table_3(groups: Sequence[Group]) -> Table:
    """What of the cost of ablation by zero is spoofing, over seeds (arXiv 2409.09951)."""
    title = "Table 3: ablation by zero against optimal constants"
    compared = Comparison(groups)
    known = [model for group in groups for model in group.models]
    measures = [one for one in TABLE_3 if any(map(one.metric_of, known))]
    made = _over_seeds(compared, measures, "table3", title, "windows")
    note = "Self-ablation predicts a smaller spoof share than the baseline's."
    return replace(made, notes=[*made.notes, note])


def lenses(groups: Sequence[Group]) -> Table:
    """Areas under the curves of lenses over layers, over seeds (arXiv 2409.09951)."""
    title = "Lenses: KL of the model's prediction, mean over layers (nats)"
    made = _over_seeds(Comparison(groups), LENSES, "lenses", title, "stories")
    note = "Nothing was predicted of these before models were measured: exploratory."
    return replace(made, notes=[*made.notes, note])


def table_2(groups: Sequence[Group], with_paper: bool = False) -> Table:
    """For each metric a row a group, a column a layer; the best mean of a layer is bold.

    Args:
        with_paper: the paper's own values as further rows.
    """
    compared = Comparison(groups)
    layers = _layers(compared.records("n2g"))
    if with_paper:
        layers = list(range(max([7, *layers]) + 1))
    layers = layers or [0]
    rows: Rows = []
    for measure in TABLE_2:
        at = [replace(measure, metric=f"{measure.metric}.layer{layer}") for layer in layers]
        best = [compared.best(one) for one in at]
        for group in groups:
            labels = _layer_labels(measure, group)
            cells = [
                compared.cell(one, group, group.name in names)
                for one, names in zip(at, best, strict=True)
            ]
            rows.append([*labels, *(_of_layer(*pair) for pair in zip(cells, layers, strict=True))])
        if with_paper and measure.metric in paper_values.TABLE_2:
            rows += _paper_rows(measure, layers)
    return Table(
        "table2",
        "Graphs of neurons (N2G) by layer (the paper's Table 2)",
        (
            Heading("Metric"),
            Heading("Model"),
            Heading("Seeds"),
            *(Heading(f"L{layer}", definition=f"Layer {layer}") for layer in layers),
        ),
        rows,
        NOT_EMPTY,
        [
            *interval_notes(rows, "neurons"),
            *measure_notes(compared, TABLE_2),
            *([paper_values.TABLE_2_NOTE] if with_paper else []),
        ],
        commands(compared, TABLE_2),
        n_labels=2,
    )


def differences(groups: Sequence[Group], measures: Sequence[Measure] = TABLE_1) -> list[Table]:
    """What each group differs by from the baseline, and learned gates from their controls.

    Paired: a seed's value minus the same seed's of the other group, then the mean over seeds. With
    three seeds or more a cell says whether the interval excludes 0 on the better side, on the worse
    one, or not: ``cannot tell``.

    Returns:
        One table, of the measures and pairs with a difference over two seeds or more; none where
        there are none.
    """
    compared = Comparison(groups)
    pairs = [(group, other) for group in groups for other in references(group, groups)]

    def is_paired(measure: Measure, pair: tuple[Group, Group]) -> bool:
        mean = compared.difference(measure, *pair)
        return mean is not None and mean.n > 1

    measures = [one for one in measures if any(is_paired(one, pair) for pair in pairs)]
    pairs = [pair for pair in pairs if any(is_paired(one, pair) for one in measures)]
    if not pairs:
        return []
    rows = [
        [
            Cell.label("model", group.name),
            Cell.label("minus", other.name),
            *(compared.difference_cell(measure, group, other) for measure in measures),
        ]
        for group, other in pairs
    ]
    columns = (Heading("Model"), Heading("Minus"), *(measure.heading for measure in measures))
    notes = health_notes(compared, measures)
    name, title = {
        "neurons": ("neuron-scores-differences", "Paired differences: explanations of neurons"),
        "n2g": ("table2-differences", "Paired differences: graphs of neurons, all layers"),
        "ablate": ("table3-differences", "Paired differences: ablation by zero, optimal constants"),
        "lens": ("lenses-differences", "Paired differences: lenses"),
    }.get(
        measures[0].evaluation,
        ("table1-differences", "Paired differences: circuits, autoencoders, language modelling"),
    )
    return [Table(name, title, columns, rows, PAIRED, notes, n_labels=2)]


def models_table(groups: Sequence[Group], measures: Sequence[Measure] = TABLE_1) -> Table:
    """Table 1 before any mean: a row for each model."""
    compared, measures = Comparison(groups), _known(measures, groups)
    rows = []
    for group in groups:
        for seed, model in group.members.items():
            labels: dict[str, str | int] = {
                "group": group.name,
                "seed": seed,
                "model": model.name,
                "weights": model.weights[:8],
            }
            cells = [Cell.label(name, value) for name, value in labels.items()]
            rows.append([*cells, *(_model_cell(measure, model) for measure in measures)])
    columns = (
        Heading("Group"),
        Heading("Seed"),
        Heading("Model"),
        Heading("Weights"),
        *(measure.heading for measure in measures),
    )
    return Table(
        "table1-models",
        "Each model: circuits, autoencoders, language modelling",
        columns,
        rows,
        notes=[*health_notes(compared, measures), *unable_note(compared, measures)],
        commands=commands(compared, measures),
        n_labels=4,
    )


def _over_seeds(
    compared: Comparison, measures: Sequence[Measure], name: str, title: str, things: str
) -> Table:
    """A row of labels and means for each group."""
    best = [compared.best(measure) for measure in measures]
    rows = [
        [
            *_labels(group),
            *(
                compared.cell(measure, group, group.name in names)
                for measure, names in zip(measures, best, strict=True)
            ),
        ]
        for group in compared.groups
    ]
    notes = [*interval_notes(rows, things), *measure_notes(compared, measures)]
    return Table(
        name,
        title,
        (*LABELS, *(measure.heading for measure in measures)),
        rows,
        "",
        notes,
        commands(compared, measures),
    )


def _labels(group: Group) -> list[Cell]:
    gates = group.variant if group.gates in ("", "learned") else f"{group.variant}, {group.gates}"
    if group.kind == "matched":
        gates = "none, matched perplexity"
    values = {"model": group.name, "gates": gates, "k": group.k, "seeds": len(group.members)}
    return [Cell.label(name, value) for name, value in values.items()]


def _layer_labels(measure: Measure, group: Group) -> list[Cell]:
    n = sum("n2g" in model.records for model in group.models)
    title = Cell(measure.heading.text, "label", (), {"metric": measure.metric}, measure.definition)
    return [title, Cell.label("model", group.name), Cell.label("seeds", n)]


def _of_layer(cell: Cell, layer: int) -> Cell:
    """The cell under CSV columns of the layer, without the counts of models left out."""
    exact = {
        re.sub(rf"^\w+\.layer{layer}", f"layer_{layer}", name): value
        for name, value in cell.exact.items()
        if not name.endswith(("_missing", "_unscored", "_unable"))
    }
    return replace(cell, exact=exact)


def _paper_cells(group: Group, measures: Sequence[Measure]) -> list[Cell]:
    known = paper_values.TABLE_1.get((group.variant, group.k))
    if known is None or group.kind not in ("baseline", "learned"):
        return [Cell.none(f"paper_{measure.metric}") for measure in measures]
    values = dict(zip(PAPER, known, strict=True))
    return [
        Cell(f"{value:g}", exact={f"paper_{measure.metric}": value})
        for measure in measures
        if (value := values[measure.metric]) is not None
    ]


def _paper_rows(measure: Measure, layers: Sequence[int]) -> Rows:
    made = []
    for name, values in zip(
        ("paper: baseline", "paper: ablated"), paper_values.TABLE_2[measure.metric], strict=True
    ):
        labels = [Cell.label("metric", measure.title), Cell.label("model", name)]
        cells = [
            Cell(f"{values[layer]:g}", exact={f"layer_{layer}": values[layer]})
            if layer < len(values)
            else Cell.none(f"layer_{layer}")
            for layer in layers
        ]
        made.append([*labels, Cell.label("seeds", 1), *cells])
    return made


def _model_cell(measure: Measure, model: Model) -> Cell:
    state, (value, reason) = measure.state(model), measure.read(model)
    names = (measure.key, f"{measure.key}_note")
    if state == "missing":
        return Cell.none(*names)
    if value is None:
        cell = Cell.none(*names, text=UNSCORED)
        return replace(cell, exact={**cell.exact, names[1]: reason})
    phrases = health.phrases(model.records[measure.evaluation])
    mark = f" {DAGGER}" if state == "unable" or phrases else ""
    note = "fails IOI" if state == "unable" else "; ".join(phrases) or None
    text = number(value, measure.digits).removesuffix(".0") + mark
    return Cell(text, exact={names[0]: value, names[1]: note})


def _layers(records: Sequence[Record]) -> list[int]:
    """The layers for which the records have a measure of Table 2 with a value."""
    names = {measure.metric for measure in TABLE_2}
    parts = [
        metric.name.partition(".layer")
        for record in records
        for metric in record.metrics
        if metric.value is not None
    ]
    return sorted({int(layer) for name, _, layer in parts if name in names and layer.isdecimal()})
