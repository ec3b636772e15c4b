"""The paper's Table 1 from records, over seeds, with the differences that the paper lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluations.comparison import paper_values
from evaluations.comparison.seeds import Group, difference, references
from evaluations.comparison.selection import Model, is_comparable
from evaluations.tables import health
from evaluations.tables.cells import (
    ABLE,
    Figure,
    best_of,
    command_for,
    exact,
    fails_task,
    judged,
    records_of,
    seeds_cell,
    shown,
)
from evaluations.tables.comparable import differing, mixture
from evaluations.tables.grid import EMPTY, Cell, Grid, Heading
from evaluations.tables.health import DAGGER
from evaluations.tables.tables import number, scored_text

TABLE_1 = (
    Figure("acdc", "edges", "IOI edges", 1, "lower"),
    Figure("sae", "l0", "SAE L0", 2, "lower"),
    Figure("sae", "ce_score", "CE score", 3, "higher"),
    Figure("lm", "perplexity", "Perplexity", 3, "lower"),
    Figure("lm", "l1_exported", "L1", 4, None),
)
SCORES = (
    Figure("neurons", "simulation", "Simulation score", 3, "higher"),
    Figure("neurons", "control", "of another neuron", 3, None),
    Figure("neurons", "detection", "Detection", 3, "higher"),
    Figure("neurons", "detection", "Detection: share scored", 3, None, "scored"),
    Figure("neurons", "fuzzing", "Fuzzing", 3, "higher"),
)
LABELS = (Heading("Model", "model"), Heading("Gates", "gates"), Heading("k", "k"),
          Heading("Seeds", "seeds"))  # fmt: skip
OVER_SEEDS = (
    "In brackets: 95 % interval over training seeds (Student's t, n - 1 degrees of freedom), from "
    "three seeds on. Bold: the paired interval of its difference to every other row leaves 0 out; "
    "where no row is bold, the best cannot be told apart from another, or is of a single seed."
)
OF_ONE = (
    "In parentheses, of a single model: 95 % interval over its {things}, not over seeds; another "
    "seed's model may lie outside it. No single model is bold."
)


def table_1(groups: Sequence[Group], with_paper: bool = False) -> Grid:
    """A row for each group, a column for each figure; the best mean of a column is bold.

    The edge count of a model that fails IOI (accuracy below 0.9) is marked with a dagger, left out
    of means, and counted. A cell without any record says what command fills it.

    Args:
        with_paper: the paper's own values as further columns, where it has such a model.
    """
    headings, rows = _over_seeds(TABLE_1, groups)
    if with_paper:
        headings += [Heading(f"paper {one.title}", f"paper_{one.metric}") for one in TABLE_1]
        rows = [[*row, *_paper_cells(group)] for row, group in zip(rows, groups, strict=True)]
    notes = [*_over_seeds_told(rows), *_notes(TABLE_1, groups)]
    if with_paper:
        notes.append(f"paper: {paper_values.SOURCE}, Table 1: one model each, other data than here")
    title = "Table 1: circuits, autoencoders, language modelling"
    own = _own_told(rows, "stories")
    return Grid("table1", title, (*LABELS, *headings), rows, notes, len(LABELS), own)


def neuron_scores(groups: Sequence[Group]) -> Grid:
    """The means of the neurons' explanation scores (the paper's Figure 2, right), over seeds."""
    headings, rows = _over_seeds(SCORES, groups)
    notes = [*_over_seeds_told(rows), *_notes(SCORES, groups)]
    notes.append("A model's figure is the mean over its neurons.")
    notes += _unscored_told(groups)
    title = "Explanations of neurons"
    own = _own_told(rows, "neurons")
    return Grid("neuron-scores", title, (*LABELS, *headings), rows, notes, len(LABELS), own)


def neuron_differences(groups: Sequence[Group]) -> Grid:
    """As :func:`differences`, of the neurons' scores."""
    title = "Explanations of neurons: paired differences"
    return differences(groups, SCORES, "neuron-scores-differences", title)


def differences(
    groups: Sequence[Group],
    figures: Sequence[Figure] = TABLE_1,
    name: str = "table1-differences",
    title: str = "Table 1: paired differences",
) -> Grid:
    """What each group differs by from the baseline, and learned gates from their controls.

    Paired: a seed's value minus the same seed's of the other group, then the mean over seeds. With
    two seeds or more a cell says whether the interval leaves 0 out on the better side, on the
    worse one, or not: ``cannot tell``.
    """
    rows = []
    for group in groups:
        for other in references(group, groups):
            names = [Cell(name, exact={"": name}) for name in (group.name, other.name)]
            rows.append([*names, *(_difference_cell(figure, group, other) for figure in figures)])
    headings = (
        Heading("Model", "model"), Heading("minus", "minus"),
        *(Heading(figure.title, figure.key, figure.direction) for figure in figures),
    )  # fmt: skip
    notes = [
        "A seed's value minus the same seed's of the other model; mean and 95 % interval (Student's"
        " t, n - 1 degrees of freedom), n pairs. 'cannot tell': the interval holds 0. Many "
        "intervals stand here, none is corrected for that: 1 of 20 misses by chance."
    ]
    notes += _health_told(figures, groups)
    return Grid(name, title, headings, rows, notes, 2)


def models_table(groups: Sequence[Group]) -> Grid:
    """Table 1 before any mean: a row for each model."""
    rows = []
    for group in groups:
        for seed, model in group.members.items():
            labels = (group.name, seed, model.name, model.weights[:8])
            cells = [Cell(str(label), exact={"": label}) for label in labels]
            rows.append([*cells, *(_model_cell(figure, model) for figure in TABLE_1)])
    headings = (
        Heading("Group", "group"), Heading("Seed", "seed"), Heading("Model", "model"),
        Heading("Weights", "weights"),
        *(Heading(figure.title, figure.key, figure.direction) for figure in TABLE_1),
    )  # fmt: skip
    notes = _health_told(TABLE_1, groups)
    return Grid("table1-models", "Table 1: each model", headings, rows, notes, 4)


def _over_seeds(
    figures: Sequence[Figure], groups: Sequence[Group]
) -> tuple[list[Heading], list[list[Cell]]]:
    """Headings of the figures, and a row of labels and cells for each group."""
    headings = [Heading(figure.title, figure.key, figure.direction) for figure in figures]
    best = [_best(figure, groups) for figure in figures]
    rows = [
        [
            *_labels(group),
            *(
                seeds_cell(figure, group, group.name in names)
                for figure, names in zip(figures, best, strict=True)
            ),
        ]
        for group in groups
    ]
    return headings, rows


def _best(figure: Figure, groups: Sequence[Group]) -> set[str]:
    """None, too, where the figures are of different settings or text."""
    if not is_comparable(records_of(groups, figure.evaluation)):
        return set()
    sound = [group for group in groups if figure.is_sound(group)]
    return best_of(sound, figure.of, figure.direction)


def _labels(group: Group) -> list[Cell]:
    gates = group.variant if group.gates in ("", "learned") else f"{group.variant}, {group.gates}"
    if group.kind == "matched":
        gates = "none, matched perplexity"
    k, n = ("–" if group.k is None else str(group.k)), len(group.members)
    return [
        Cell(group.name, exact={"": group.name}),
        Cell(gates, exact={"": gates}),
        Cell(k, exact={"": group.k}),
        Cell(str(n), exact={"": n}),
    ]


def _paper_cells(group: Group) -> list[Cell]:
    known = paper_values.TABLE_1.get((group.variant, group.k))
    if known is None or group.kind not in ("baseline", "learned"):
        return [Cell(EMPTY) for _ in TABLE_1]
    return [Cell(f"{value:g}", exact={"": value}) for value in known]


def _difference_cell(figure: Figure, group: Group, other: Group) -> Cell:
    if not is_comparable(records_of([group, other], figure.evaluation)):
        return Cell("other settings")
    found = difference(group, other, figure.of)
    if found is None:
        return Cell(EMPTY)
    verdict = judged(found, figure.direction)
    text = f"{shown(found, figure.digits, sign=True)}, n={found.n}"
    sound = figure.is_sound(group) and figure.is_sound(other)
    text = (f"{text}: {verdict}" if verdict else text) + ("" if sound else f" {DAGGER}")
    return Cell(text, verdict == "better" and sound, {**exact(found), "_verdict": verdict})


def _model_cell(figure: Figure, model: Model) -> Cell:
    state, (value, reason) = figure.state(model), figure.read(model)
    if state == "missing":
        return Cell(f"run: sat-eval {figure.evaluation}", exact={"": None})
    if value is None:
        return Cell(f"n/a: {reason}", exact={"": None, "_note": reason})
    phrases = health.phrases(model.records[figure.evaluation])
    mark = f" {DAGGER}" if state == "unable" or phrases else ""
    note = "fails IOI" if state == "unable" else "; ".join(phrases) or None
    return Cell(number(value, figure.digits).removesuffix(".0") + mark,
                exact={"": value, "_note": note})  # fmt: skip


def _over_seeds_told(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """What brackets say, where there are any."""
    shown = any(cell.exact.get("_low") is not None for row in rows for cell in row)
    return [OVER_SEEDS] * shown


def _own_told(rows: Sequence[Sequence[Cell]], things: str) -> str:
    """What parentheses say, where there are any."""
    shown = any(cell.within for row in rows for cell in row)
    return OF_ONE.format(things=things) if shown else ""


def _notes(figures: Sequence[Figure], groups: Sequence[Group]) -> list[str]:
    notes = []
    everyone = [model for group in groups for model in group.models]
    unable = [model.name for model in everyone if "acdc" in model.records and fails_task(model)]
    evaluations = dict.fromkeys(figure.evaluation for figure in figures)
    notes += _health_told(figures, groups)
    if unable and "acdc" in evaluations:
        notes.append(
            f"{DAGGER} {len(unable)} of {len(records_of(groups, 'acdc'))} models are right on fewer"
            f" than {ABLE:.0%} of the IOI prompts: their edge counts are low for the wrong reason "
            "and in no mean."
        )
    for evaluation in evaluations:
        if missing := [model for model in everyone if evaluation not in model.records]:
            notes.append(f"missing, run: {command_for(evaluation, missing)}")
        notes += _settings_told(groups, evaluation)
        notes += [f"{evaluation}: {line}" for line in mixture(records_of(groups, evaluation))]
    return notes


def _health_told(figures: Sequence[Figure], groups: Sequence[Group]) -> list[str]:
    """What daggers mean."""
    return health.explained(
        (model.name, model.records[evaluation])
        for evaluation in dict.fromkeys(figure.evaluation for figure in figures)
        for group in groups
        for model in group.models
        if evaluation in model.records
    )


def _unscored_told(groups: Sequence[Group]) -> list[str]:
    """Of how many neurons the scores are, and why not of all: the most frequent reason."""
    notes = []
    records = records_of(groups, "neurons")
    for figure in SCORES:
        metrics = [one for record in records if (one := record.metric(figure.metric))]
        sizes = sorted(one.n for one in metrics if one.n is not None)
        if figure.shows != "value" or not sizes:
            continue
        text = f"{figure.title}: n {sizes[0]:,}"
        text += f" to {sizes[-1]:,} neurons a model" if sizes[0] < sizes[-1] else " neurons a model"
        reasons = sum((Counter(one.reasons) for one in metrics), Counter[str]())
        if reasons:
            reason, count = reasons.most_common(1)[0]
            text += f"; {reasons.total():,} in all not scored, mostly: {reason} ({count:,})"
        notes.append(text)
    return notes


def _settings_told(groups: Sequence[Group], evaluation: str) -> list[str]:
    """What the figures of one evaluation were measured with; a warning where that differs."""
    records = records_of(groups, evaluation)
    if not records:
        return []
    if not is_comparable(records):
        return [f"{evaluation}: models were measured with different settings or on different text "
                f"({', '.join(differing(records))}); no value of it is bold"]  # fmt: skip
    config, data = records[0].config, records[0].data
    text = f"{scored_text(data)}, {data.get('n_stories', data.get('n', '?'))}"
    return {
        "acdc": [f"acdc: tau {records[0].extra.get('tau')}, {text} prompts"],
        "sae": [f"sae: L1 coefficient {config.get('sparsity')}, {config.get('tokens', 0):,} tokens,"
                f" measured on {text} stories"],
        "lm": [f"lm: {text} stories"],
        "neurons": [f"neurons: explained by {config.get('examiner', {}).get('name', '?')}, {text} "
                    "stories"],
    }.get(evaluation, [])  # fmt: skip
