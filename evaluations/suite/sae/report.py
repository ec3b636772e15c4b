"""What ``sae`` found: a table, the L0-CE fronts, and how dense the features are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.sae.figures import paired_difference
from evaluations.suite.sae.front import (
    Front,
    coefficient,
    common_score,
    fronts,
    is_converged,
    l0_at,
)
from evaluations.tables.figures import MARKERS, PALETTE, reach, save, unframed
from evaluations.tables.tables import Column, Layout, rows, write_tables
from sat_interp._util import escape

ABREAST = 4
"""Histograms of so many models can be told apart by a legend among them."""
LAYOUTS = (
    Layout(
        "Sparse autoencoders",
        (
            Column("sae", "l0", "L0", 2, interval=True),
            Column("sae", "ce_score", "CE score", 3, interval=True),
            Column("sae", "explained_variance", "Expl. var.", 3),
            Column("sae", "dead_features", "Dead here", 3),
            Column("sae", "dead_in_training", "in training", 3),
            Column("sae", "loss_fall", "Loss still falling, %", 2),
        ),
    ),
)
DEAD = (
    "Dead here: share of features active on no token of the text measured; in training: on none of "
    "the last tenth of training."
)
DETAILS = Layout(
    "Losses with the activation as it is, reconstructed, and zero",
    (
        Column("sae", "loss_clean", "CE clean", 4),
        Column("sae", "loss_sae", "CE SAE", 4),
        Column("sae", "loss_zero", "CE zero", 4),
        Column("sae", "ce_gap", "Zero minus clean", 4, interval=True),
        Column("sae", "mse", "MSE", 4),
        Column("sae", "median_density", "Median density", 4),
    ),
)


def write_report(records: Sequence[Record], out: Path) -> list[Path]:
    """`write_text`, then `draw`."""
    found = [record for record in records if record.evaluation == "sae"]
    return [*write_text(found, out), *(draw(found, out / "sae") if found else [])]


def write_text(records: Sequence[Record], out: Path) -> list[Path]:
    """``sae.md``, ``.csv``; ``sae-front.md``, ``.csv`` where there is a sweep.

    Raises:
        OSError: they cannot be written.
    """
    found = [record for record in records if record.evaluation == "sae"]
    if not found:
        return []
    named = labelled(found)
    written = [*write_tables((*layouts(named), DETAILS), named, out, "sae")]
    score, points = front_records(found)
    if points:
        written += write_tables((front_layout(score),), points, out, "sae-front")
    return written


def layouts(records: Sequence[Record]) -> tuple[Layout, ...]:
    """The tables to print, with what is to be read beside these records' figures.

    Args:
        records: as ``labelled`` names them.
    """
    note = " ".join(filter(None, [DEAD, read_again(records), not_told_apart(records)]))
    return tuple(dataclasses.replace(layout, note=note) for layout in LAYOUTS)


def read_again(records: Sequence[Record]) -> str:
    """Return which trainings read their text more than once, as a sentence; "" for none."""
    told = []
    for record in records:
        budget = record.extra.get("budget")
        if not isinstance(budget, dict):  # of older records, or not trained here
            continue
        passes, tokens = budget.get("passes"), budget.get("tokens")
        if isinstance(passes, int | float) and isinstance(tokens, int) and passes > 1:
            told.append(f"{record.model['name']} ({tokens:,} tokens, {passes:.1f} passes)")
    return f"Trained on a text read more than once: {'; '.join(told)}." if told else ""


def not_told_apart(records: Sequence[Record]) -> str:
    """Which neighbours by CE score may be in the other order, as a sentence; "" for none.

    Neighbours were measured on the same stories. They cannot be told apart where the 95 % interval
    of the difference of their scores over the same resamples of stories holds 0.
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
        drawn = (record.extra.get("replicates", {}).get("ce_score", []) for record in (one, other))
        ends = paired_difference(*drawn)
        if ends is not None and ends[0] <= 0 <= ends[1]:
            pairs.append(f"{one.model['name']} and {other.model['name']}")
    if not pairs:
        return ""
    return f"CE scores not told apart by these stories (paired, 95 %): {'; '.join(pairs)}."


def labelled(records: Sequence[Record]) -> list[Record]:
    """The records under names that tell them apart: with what varies among them."""
    hooks = {_told(record)["hook"] for record in records}
    labels = {_label(record, records) for record in records}
    named = []
    for record in records:
        parts = [str(record.model["name"])]
        parts += [_told(record)["hook"]] if len(hooks) > 1 else []
        parts += [_label(record, records)] if len(labels) > 1 else []
        model = {**record.model, "name": ", ".join(parts)}
        named.append(dataclasses.replace(record, model=model))
    return named


def _label(record: Record, records: Sequence[Record]) -> str:
    """``L1  2`` beside ``L1 10``: numbers of one width, so that their order is that of the text."""
    if record.config.get("given") is not None:
        return str(_told(record)["label"])
    values = [coefficient(one) for one in records]
    digits = max(len(f"{value:g}".partition(".")[2]) for value in values)
    width = max(len(f"{value:.{digits}f}") for value in values)
    words, _, note = str(_told(record)["label"]).partition(" (")
    named = f"{words.rpartition(' ')[0]} {coefficient(record):>{width}.{digits}f}"
    return f"{named} ({note}" if note else named


def _told(record: Record) -> dict[str, str]:
    """The autoencoder's hook point and label; of a record that does not say, question marks."""
    return record.extra.get("sae") or {"hook": "?", "label": "?"}


def front_records(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """The score the fronts are compared at, and a record for each front with its L0 there."""
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


def front_layout(score: float) -> Layout:
    """The table of what each front pays at one score."""
    column = Column("sae", "l0_at_score", f"L0 at CE score {score:.3f}", 2, interval=True)
    return Layout("L0 at equal CE loss score", (column,))


def draw(records: Sequence[Record], stem: Path) -> list[Path]:
    """The fronts of all models (points where there is no sweep), and the features' densities.

    Args:
        records: of the evaluation ``sae``.
        stem: the figure's path without its ending.

    Raises:
        OSError: the figure cannot be written.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = _groups(records)
    for index, (name, group) in enumerate(groups.items()):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        _front(left, group, name, color, marker)
        _density(right, group, color, index)
    _mark_common_score(left, fronts(records))
    _finish(left, "L0, features of a token (95 % interval)", "CE loss score", "L0-CE front")
    _finish(right, "log10 density (share of tokens)", "features", "Feature density")
    if len(groups) <= ABREAST:  # of more, only the tables say how many features are dead
        right.legend(frameon=False, fontsize=7, loc="upper left")
    if not all(map(is_converged, records)):
        left.plot([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="",
                  label="not converged")  # fmt: skip
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, stem)


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one model and hook point, by rising coefficient; models as in the tables."""
    several = len({_told(record)["hook"] for record in records}) > 1
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=coefficient):
        name = str(record.model["name"])
        groups.setdefault(f"{name}, {_told(record)['hook']}" if several else name, [])
        groups[f"{name}, {_told(record)['hook']}" if several else name].append(record)
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
            [l0.value], [score.value], xerr=reach(l0), yerr=reach(score), color=color,
            capsize=2, marker=marker, markersize=5, markerfacecolor=face, linewidth=1,
        )  # fmt: skip
        if len(group) > 1:
            axes.annotate(
                f"{coefficient(record):g}", line[-1], fontsize=7, color=color,
                xytext=(4, -8), textcoords="offset points",
            )  # fmt: skip
    if line:
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=color, linewidth=1.2, marker=marker, markersize=0)
        axes.plot([], [], color=color, linewidth=1.2, marker=marker, markersize=5,
                  label=escape.figure(name))  # fmt: skip


def _mark_common_score(axes: Axes, found: Sequence[Front]) -> None:
    score = common_score(found)
    if score is not None:
        axes.axhline(score, color="0.6", linewidth=0.8, linestyle=":")


def _density(axes: Axes, group: Sequence[Record], color: str, index: int) -> None:
    """The histogram of one autoencoder of the group, that of the coefficient in the middle."""
    group = [record for record in group if "density" in record.extra]
    if not group:
        return
    chosen = group[len(group) // 2]
    told = chosen.extra["density"]
    edges = np.asarray(told["log10_edges"], dtype=np.float64)
    style = ("-", "--", ":", "-.")[index % 4]
    label = f"{escape.figure(_told(chosen)['label'])}: {told['dead']} dead"
    axes.stairs(told["features"], edges, color=color, linewidth=1.3, linestyle=style, label=label)


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    unframed(axes, "both")
