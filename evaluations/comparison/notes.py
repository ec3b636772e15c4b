"""Notes below the tables of several seeds: intervals, health, settings, what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluations.comparison.measures import ABLE, Comparison, Measure, fails_task
from evaluations.comparison.selection import is_comparable
from evaluations.core import health
from evaluations.core.health import DAGGER
from evaluations.core.record import Record
from evaluations.tables import Cell, view
from evaluations.tables.comparable import differing, mixture
from evaluations.tables.table import EMPTY, UNSCORED
from evaluations.tables.view import scored_text

OVER_SEEDS = (
    "In brackets: 95 % interval over training seeds (Student's t, n - 1 degrees of freedom), from "
    "three seeds on."
)
BOLD = (
    "Bold: the paired interval of the difference to every other row excludes 0; where no row is "
    "bold, the best cannot be distinguished from another, or is of a single seed."
)
OF_ONE = (
    "In parentheses, of a single model: 95 % interval over its {things}, not over seeds; another "
    "seed's model may lie outside it. No single model is bold."
)


def interval_notes(rows: Sequence[Sequence[Cell]], things: str) -> list[str]:
    """What brackets, bold and parentheses mean, where there are any."""
    names = [
        name
        for row in rows
        for cell in row
        for name, value in cell.exact.items()
        if value is not None
    ]
    is_over_seeds = any(n.endswith("_low") and not n.endswith("_within_low") for n in names)
    notes = [f"{OVER_SEEDS} {BOLD}"] * is_over_seeds
    is_alone = any(name.endswith("_within_low") for name in names)
    return notes + [OF_ONE.format(things=things)] * is_alone


def measure_notes(compared: Comparison, measures: Sequence[Measure]) -> list[str]:
    """Health marks, models that fail the task, why values are missing, settings."""
    notes = [*health_notes(compared, measures), *unable_note(compared, measures)]
    notes += _unscored_note(compared, measures)
    for evaluation in dict.fromkeys(measure.evaluation for measure in measures):
        records = compared.records(evaluation)
        notes += _settings(records, evaluation)
        notes += [f"{evaluation}: {line}." for line in mixture(records)]
    return notes


def commands(compared: Comparison, measures: Sequence[Measure]) -> list[str]:
    """What measures the models that have no record of an evaluation."""
    evaluations = dict.fromkeys(measure.evaluation for measure in measures)
    return view.commands(evaluations, [(one.spec, one.records) for one in compared.models])


def health_notes(compared: Comparison, measures: Sequence[Measure]) -> list[str]:
    """What daggers mean."""
    return health.explained(
        (model.name, model.records[evaluation])
        for evaluation in dict.fromkeys(measure.evaluation for measure in measures)
        for model in compared.models
        if evaluation in model.records
    )


def unable_note(compared: Comparison, measures: Sequence[Measure]) -> list[str]:
    """The models whose edge counts are not meaningful."""
    measured = compared.records("acdc")
    unable = [one for one in compared.models if "acdc" in one.records and fails_task(one)]
    if not unable or all(measure.evaluation != "acdc" for measure in measures):
        return []
    return [
        f"{DAGGER} IOI accuracy below {ABLE:g}: edge count not meaningful, and in no mean "
        f"({len(unable)} of {len(measured)} models)."
    ]


def _unscored_note(compared: Comparison, measures: Sequence[Measure]) -> list[str]:
    """Why groups have no value of a measure."""
    reasons: dict[str, list[str]] = {}
    for measure in measures:
        for group in compared.groups:
            unscored = [one for one in group.models if measure.state(one) == "unscored"]
            if unscored and not compared.mean(measure, group) and measure.evaluation != "n2g":
                reason = measure.read(unscored[0])[1] or "no value"
                reasons.setdefault(reason, []).append(f"{measure.title} of {group.name}")
    each = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return [f"{UNSCORED}: {each}."] if reasons else []


def count_notes(records: Sequence[Record], measures: Sequence[Measure]) -> list[str]:
    """The number of neurons with each score, and the most frequent reason why others have none."""
    notes = []
    for measure in measures:
        metrics = [one for record in records if (one := record.metric(measure.metric))]
        sizes = sorted(one.n for one in metrics if one.n is not None)
        if measure.shows != "value" or not sizes:
            continue
        n = f"{sizes[0]:,} to {sizes[-1]:,}" if sizes[0] < sizes[-1] else f"{sizes[0]:,}"
        text = f"{measure.title}: n {n} neurons a model"
        reasons = sum((Counter(one.reasons) for one in metrics), Counter[str]())
        if reasons:
            reason, count = reasons.most_common(1)[0]
            text += f"; {reasons.total():,} in all not scored, mostly: {reason} ({count:,})"
        notes.append(f"{text}.")
    return notes


def _settings(records: Sequence[Record], evaluation: str) -> list[str]:
    """The settings of an evaluation's values; a warning where they differ."""
    if not records:
        return []
    if not is_comparable(records):
        return [
            f"{evaluation}: models were measured with different settings or on different text "
            f"({', '.join(differing(records))}); no value of it is bold."
        ]
    config, data = records[0].config, records[0].data
    text = f"{scored_text(data)}, {data.get('n_stories', data.get('n', EMPTY))}"
    return {
        "acdc": [f"acdc: tau {records[0].extra.get('tau')}, {text} prompts."],
        "circuits": [
            f"circuits: E(.2) by {', '.join(config.get('methods', ['?']))}, ablation "
            f"{next(iter(config.get('ablations', [])), '?')}, {text} prompts."
        ],
        "sae": [
            f"sae: L1 coefficient {config.get('sparsity')}, {config.get('tokens', 0):,} tokens,"
            f" measured on {text} stories."
        ],
        "lm": [f"lm: {text} stories."],
        "neurons": [
            f"neurons: explained by {config.get('examiner', {}).get('name', '?')}, {text} stories."
        ],
        "n2g": [
            f"n2g: {config.get('neurons_per_layer') or 'all'} neurons a layer, {text} stories."
        ],
    }.get(evaluation, [])
