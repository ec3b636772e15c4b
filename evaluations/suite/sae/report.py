"""Tables and figures of ``sae``: quality and losses, the L0-CE fronts, densities of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.sae.front import coefficient, common_score, fronts, is_converged, l0_at
from evaluations.suite.sae.metrics import paired_difference
from evaluations.tables import Column, Layout, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from sat_interp._util import escape

HEADLINE = Headline(
    "Are its features more concentrated?",
    "l0",
    "active features of a token at the same L1 coefficient",
    2,
    "lower",
)
DRAWN_FROM = "density"
"""Entry of ``record.extra`` that figures are drawn from."""
EVERY_RECORD = True
"""Records of several coefficients make a front."""
QUALITY = Layout(
    "sae",
    "Sparse autoencoders",
    (
        Column(
            "sae",
            "l0",
            "L0",
            2,
            interval=True,
            definition="Active features of a token, mean over tokens",
        ),
        Column(
            "sae",
            "ce_score",
            "CE score",
            3,
            interval=True,
            definition="Share of the loss that zeroing the activation costs and the "
            "reconstruction recovers: (CE zero - CE SAE) / (CE zero - CE clean)",
        ),
        Column(
            "sae",
            "explained_variance",
            "Explained variance",
            3,
            definition="1 - squared error of the reconstruction / variance of the activation",
        ),
        Column(
            "sae",
            "dead_features",
            "Dead",
            3,
            definition="Share of features active on no token of the text measured",
        ),
        Column(
            "sae",
            "dead_in_training",
            "Dead in training",
            3,
            definition="Share of features active on no token of the last tenth of training",
        ),
        Column(
            "sae",
            "loss_fall",
            "Loss change over the last 10 % of training",
            2,
            definition="Fall of the training loss over its last tenth, in per cent: far from 0 "
            "the autoencoder is still learning",
        ),
    ),
)
LOSSES = Layout(
    "sae-losses",
    "Losses with the activation as it is, reconstructed, and zero",
    (
        Column(
            "sae",
            "loss_clean",
            "CE clean",
            4,
            definition="Cross-entropy with the activation as it is, nats per token",
        ),
        Column(
            "sae",
            "loss_sae",
            "CE SAE",
            4,
            definition="Cross-entropy with the activation reconstructed, nats per token",
        ),
        Column(
            "sae",
            "loss_zero",
            "CE zero",
            4,
            definition="Cross-entropy with the activation set to zero, nats per token",
        ),
        Column(
            "sae",
            "ce_gap",
            "CE zero - CE clean",
            4,
            interval=True,
            definition="The denominator of the CE score, nats per token",
        ),
        Column(
            "sae",
            "mse",
            "Squared error",
            4,
            definition="Squared error of the reconstruction, summed over dimensions, mean over "
            "tokens",
        ),
        Column(
            "sae",
            "median_density",
            "Median density",
            4,
            definition="Median over features of the share of tokens on which one is active",
        ),
    ),
)


DISTINCT = 8
"""Histograms that their lines distinguish; of more, colours are those of the other panel."""


def tables(records: Sequence[Record]) -> list[Table]:
    """Quality and losses of each autoencoder, and what the models' fronts cost at one score."""
    own = [record for record in records if record.evaluation == "sae"]
    named = labelled(own)
    notes = [note for note in (read_again(named), not_distinguished(named)) if note]
    made = make_tables([QUALITY, LOSSES], named)
    made[:1] = [dataclasses.replace(one, notes=[*one.notes, *notes]) for one in made[:1]]
    score, points = front_records(own)
    return [*made, *make_tables([_front_layout(score)], points)]


def warnings(records: Sequence[Record]) -> list[str]:
    """A line for each autoencoder that explains less than half of the variance."""
    return [
        f"{record.model['name']}: its autoencoder explains less than half of the variance"
        for record in records
        if not is_converged(record)
    ]


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures; the autoencoders are beside the records."""
    return []


def read_again(records: Sequence[Record]) -> str:
    """Which trainings read their text more than once, as a sentence; "" for none."""
    names = []
    for record in records:
        budget = record.extra.get("budget")
        if not isinstance(budget, dict):  # of older records, or not trained here
            continue
        passes, tokens = budget.get("passes"), budget.get("tokens")
        if isinstance(passes, int | float) and isinstance(tokens, int) and passes > 1:
            names.append(f"{record.model['name']} ({tokens:,} tokens, {passes:.1f} passes)")
    return f"Trained on a text read more than once: {'; '.join(names)}." if names else ""


def not_distinguished(records: Sequence[Record]) -> str:
    """Which neighbours by CE score may be in the other order, as a sentence; "" for none.

    Neighbours were measured on the same stories. They cannot be distinguished where the 95 %
    interval of the difference of their scores over the same resamples of stories holds 0.
    """
    scored = [
        (metric.value, record)
        for record in records
        if (metric := record.metric("ce_score")) and metric.value is not None
    ]
    ordered = [record for _, record in sorted(scored, key=lambda one: -one[0])]
    pairs = []
    for one, other in pairwise(ordered):
        if (one.data.get("content"), one.seed) != (other.data.get("content"), other.seed):
            continue
        ends = paired_difference(_replicates(one), _replicates(other))
        if ends is not None and ends[0] <= 0 <= ends[1]:
            pairs.append(f"{one.model['name']} and {other.model['name']}")
    if not pairs:
        return ""
    return f"CE scores that these stories do not distinguish (paired, 95 %): {'; '.join(pairs)}."


def _replicates(record: Record) -> list[float]:
    """Bootstrap replicates of the CE score; none in records read without them."""
    found = record.extra.get("replicates")
    return found.get("ce_score", []) if isinstance(found, dict) else []


def labelled(records: Sequence[Record]) -> list[Record]:
    """The records under names that distinguish them: with what varies among them."""
    hooks = {_identity(record)["hook"] for record in records}
    labels = {_label(record, records) for record in records}
    named = []
    for record in records:
        parts = [str(record.model["name"])]
        parts += [_identity(record)["hook"]] if len(hooks) > 1 else []
        parts += [_label(record, records)] if len(labels) > 1 else []
        model = {**record.model, "name": ", ".join(parts)}
        named.append(dataclasses.replace(record, model=model))
    return named


def _label(record: Record, records: Sequence[Record]) -> str:
    """``L1  2`` beside ``L1 10``: numbers of one width, so that they sort as text."""
    if record.config.get("given") is not None:
        return str(_identity(record)["label"])
    values = [coefficient(one) for one in records]
    digits = max(len(f"{value:g}".partition(".")[2]) for value in values)
    width = max(len(f"{value:.{digits}f}") for value in values)
    words, _, note = str(_identity(record)["label"]).partition(" (")
    named = f"{words.rpartition(' ')[0]} {coefficient(record):>{width}.{digits}f}"
    return f"{named} ({note}" if note else named


def _identity(record: Record) -> dict[str, str]:
    """The autoencoder's hook point and label; question marks in a record without them."""
    return record.extra.get("sae") or {"hook": "?", "label": "?"}


def front_records(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """The CE score at which the fronts are compared, and a record of each front's L0 there."""
    found = fronts(records)
    score = common_score(found)
    if score is None:
        return 0.0, []
    several = len({front.hook for front in found}) > 1
    made = []
    for front in found:
        first = front.records[0]
        name = f"{front.model}, {front.hook}" if several else front.model
        made.append(
            dataclasses.replace(
                first, model={**first.model, "name": name}, metrics=[l0_at(front, score)]
            )
        )
    return score, made


def _front_layout(score: float) -> Layout:
    """The table of each front's L0 at one score."""
    column = Column(
        "sae",
        "l0_at_score",
        "L0 at equal CE score",
        2,
        interval=True,
        definition="L0 of the model's front where its CE score is that of the caption",
    )
    return Layout("front", "L0 at equal CE score", (column,), f"At CE score {score:.3f}.")


def _figure(records: Sequence[Record]) -> list[Figure]:
    """The fronts of all models (points where there is no sweep), and the features' densities."""
    own = [record for record in records if record.evaluation == "sae"]
    if not own:
        return []
    groups = _groups(own)
    lines = 0.1 * (len(groups) + 2)  # of the legend, in inches
    figure = Figure(figsize=(9.6, 3.7 + lines), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = []
    for index, (name, group) in enumerate(groups.items()):
        color = draw.color(index)
        _front(left, group, name, color, draw.marker(index))
        drawn.append(_density(right, group, name, color, draw.line_style(index)))
    score = common_score(fronts(own))
    if score is not None:
        left.axhline(score, color="0.6", linewidth=0.8, linestyle=":", label="equal CE score")
    if not all(map(is_converged, own)):
        left.plot(
            [],
            [],
            color="0.4",
            marker="o",
            markerfacecolor="white",
            linestyle="",
            label="not converged",
        )
    draw.finish(
        left,
        "L0: active features of a token (95 % interval)",
        "CE score (95 % interval)",
        "L0 and cross-entropy (CE) score",
    )
    title = "Density of features"
    title += "" if len(groups) <= DISTINCT else " (colours as on the left)"
    draw.finish(right, "log10 of density (share of tokens)", "number of features", title)
    if not any(drawn):
        draw.empty(right, "densities are not in the records")
    draw.legend(left, 2)
    if len(groups) <= DISTINCT:
        draw.legend(right, 2)
    return [figure]


FIGURES: Mapping[str, draw.Draw] = {"": _figure}


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one model and hook point, by rising coefficient; models as in the tables."""
    several = len({_identity(record)["hook"] for record in records}) > 1
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=coefficient):
        name = str(record.model["name"])
        key = f"{name}, {_identity(record)['hook']}" if several else name
        groups.setdefault(key, []).append(record)
    # the tables' order, so that a model has one colour in all figures
    order = {row.model: place for place, row in enumerate(rows(records))}

    def place(item: tuple[str, list[Record]]) -> tuple[int, str]:
        return order.get(str(item[1][0].model["name"]), len(order)), item[0]

    return dict(sorted(groups.items(), key=place))


def _front(axes: Axes, group: Sequence[Record], name: str, color: str, marker: str) -> None:
    line: list[tuple[float, float]] = []
    for record in group:
        l0, score = record.metric("l0"), record.metric("ce_score")
        if l0 is None or score is None or l0.value is None or score.value is None:
            continue
        line.append((l0.value, score.value))
        face = color if is_converged(record) else "white"
        axes.errorbar(
            [l0.value],
            [score.value],
            xerr=draw.reach(l0),
            yerr=draw.reach(score),
            color=color,
            capsize=2,
            marker=marker,
            markersize=5,
            markerfacecolor=face,
            linewidth=1,
        )
        if len(group) > 1:
            axes.annotate(
                f"{coefficient(record):g}",
                line[-1],
                fontsize=7,
                color=color,
                xytext=(4, -8),
                textcoords="offset points",
            )
    if line:
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=color, linewidth=1.2, marker=marker, markersize=0)
        axes.plot(
            [],
            [],
            color=color,
            linewidth=1.2,
            marker=marker,
            markersize=5,
            label=escape.figure(name),
        )


def _density(axes: Axes, group: Sequence[Record], name: str, color: str, style: str) -> bool:
    """The histogram of one autoencoder of the group, the one with the middle coefficient."""
    known = [record for record in group if isinstance(record.extra.get("density"), dict)]
    if not known:
        return False
    chosen = known[len(known) // 2]
    density = chosen.extra["density"]
    edges = np.asarray(density["log10_edges"], dtype=np.float64)
    label = f"{name}, {_identity(chosen)['label']}: {density['dead']:,} dead"
    axes.stairs(
        density["features"],
        edges,
        color=color,
        linewidth=1.3,
        linestyle=style,
        label=escape.figure(label),
    )
    return True
