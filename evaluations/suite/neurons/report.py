"""What ``neurons`` found: tables of scores, differences between models, and distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluations.core.record import Metric, Record
from evaluations.suite.neurons.compare import Difference, difference
from evaluations.tables.figures import PALETTE, save, unframed
from evaluations.tables.health import phrases
from evaluations.tables.tables import Column, Layout, Row, number, rows, write_tables

LAYOUTS = (
    Layout(
        "Neuron explanations",
        (
            Column("neurons", "simulation", "Simulation", 3, interval=True),
            Column("neurons", "control", "of another neuron", 3, interval=True),
            Column("neurons", "detection", "Detection", 3, interval=True),
            Column("neurons", "detection", "scored on", 3, shows="scored"),
            Column("neurons", "fuzzing", "Fuzzing", 3, interval=True),
            Column("neurons", "fuzzing", "scored on", 3, shows="scored"),
        ),
    ),
    Layout(
        "Neurons without a simulation score",
        (
            Column("neurons", "unscored", "Unscored", 0),
            Column("neurons", "dead", "of them dead", 0),
        ),
    ),
)
COMPARED = {"simulation": "Simulation", "detection": "Detection", "fuzzing": "Fuzzing"}
DIFFERENCES = Layout(
    "Difference of mean scores between single models, not over seeds",
    tuple(
        Column("neurons", f"{name}_difference", title, 4, interval=True, n=True)
        for name, title in COMPARED.items()
    ),
)
NOT_OVER_SEEDS = "not over seeds: models that differ in the seed alone differ, too"
EDGES = np.linspace(-1, 1, 41)
STYLES = ("-", "--", ":", "-.")


def write_report(records: Sequence[Record], out: Path, resamples: int = 2000) -> list[Path]:
    """`write_text`, then `draw`."""
    found = [record for record in records if record.evaluation == "neurons"]
    drawn = draw(found, out / "neurons") if found else []
    return [*write_text(found, out, resamples), *drawn]


def write_text(records: Sequence[Record], out: Path, resamples: int = 2000) -> list[Path]:
    """``neurons.md``, ``.csv``, and ``neurons-differences.md``, ``.csv``.

    Args:
        resamples: of the intervals of differences.

    Raises:
        OSError: they cannot be written.
    """
    found = rows([record for record in records if record.evaluation == "neurons"])
    if not found:
        return []
    own = [row.records["neurons"] for row in found]
    layers = sorted({layer for record in own for layer in _units(record).get("layer", [])})
    by_layer = Layout(
        "Mean simulation score by layer",
        tuple(
            Column("neurons", f"simulation_layer_{layer}", f"layer {layer}", 3) for layer in layers
        ),
    )
    written = [*write_tables((*LAYOUTS, by_layer), own, out, "neurons")]
    written += write_tables(
        (DIFFERENCES,), difference_records(own, resamples), out, "neurons-differences"
    )
    return written


def scores_of(record: Record, layer: int | None = None) -> Float[np.ndarray, " units"]:
    """The simulation scores of all units that have one, or of those of a layer."""
    found = _by_unit(record, "simulation")
    return np.array([score for (at, _), score in found.items() if layer in (None, at)], float)


def _units(record: Record) -> dict[str, Any]:
    """The record's columns of units; empty where it has none."""
    found: dict[str, Any] = record.extra.get("units") or {}
    return found


def _by_unit(record: Record, name: str) -> dict[tuple[int, int], float]:
    """A score of each unit that has it, by layer and number."""
    units = _units(record)
    layers, scores = units.get("layer", []), units.get(name) or []
    numbers = units.get("index") or range(len(layers))
    return {
        (layer, number): score
        for layer, number, score in zip(layers, numbers, scores, strict=False)
        if score is not None
    }


def differences(
    records: Sequence[Record], resamples: int
) -> list[tuple[Row, Row, dict[str, Difference]]]:
    """Each model against the first, the baseline where there is one, by score.

    Models are compared on the units (layer and number) that have the score in both: which units
    can be scored differs between models, and those that cannot are not the average ones.
    """
    found = rows([record for record in records if record.evaluation == "neurons"])
    told = []
    for row in found[1:]:
        record, first = row.records["neurons"], found[0].records["neurons"]
        if not _same_units(record, first):
            continue
        by_score: dict[str, Difference] = {}
        for name in COMPARED:
            one, other = _by_unit(record, name), _by_unit(first, name)
            common = [unit for unit in one if unit in other]
            made = difference(
                np.array([one[unit] for unit in common]),
                np.array([other[unit] for unit in common]),
                record.seed, resamples,
            )  # fmt: skip
            by_score |= {} if made is None else {name: made}
        if by_score:
            told.append((row, found[0], by_score))
    return told


def _same_units(one: Record, other: Record) -> bool:
    """Whether the same units were asked about: of one architecture, and one sample of them."""
    return all(_units(one).get(name) == _units(other).get(name) for name in ("layer", "index"))


def difference_records(records: Sequence[Record], resamples: int) -> list[Record]:
    """The differences as records, for tables."""
    made = []
    for row, first, found in differences(records, resamples):
        record = row.records["neurons"]
        metrics = [
            Metric(
                f"{name}_difference", f"Difference of mean {name} scores", one.value, "", None,
                one.standard_error, one.interval, one.n,
                description="n: units that have the score in both models; not over seeds",
            )
            for name, one in found.items()
        ]  # fmt: skip
        name = f"{row.model} minus {first.model}"
        extra = {"health": [*phrases(record), *phrases(first.records["neurons"])]}
        made.append(
            dataclasses.replace(
                record, model={**record.model, "name": name}, metrics=metrics, extra=extra
            )
        )
    return made


def told_differences(records: Sequence[Record], resamples: int) -> list[str]:
    """The differences of the simulation scores in words."""
    lines = []
    for row, first, scores in differences(records, resamples):
        if (found := scores.get("simulation")) is None:
            continue
        text = f"{row.model} minus {first.model}: {number(found.value, 4)}"
        if found.interval:
            low, high = number(found.interval.low, 4), number(found.interval.high, 4)
            text += f" [{low}, {high}]"
        lines.append(f"{text}, {found.n:,} neurons of both; {NOT_OVER_SEEDS}")
    return lines


def draw(records: Sequence[Record], stem: Path) -> list[Path]:
    """All models' scores in one histogram (as the paper's Figure 2), and their spread by layer.

    Args:
        records: of the evaluation ``neurons``.
        stem: the figure's path without its ending.

    Raises:
        OSError: the figure cannot be written.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    found = rows(records)
    _histogram(left, found)
    _by_layer(right, found)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, stem)


def _histogram(axes: Axes, found: Sequence[Row]) -> None:
    """Shares of neurons, so that models of different sizes compare; means as vertical lines."""
    for index, row in enumerate(found):
        scores = scores_of(row.records["neurons"])
        if not len(scores):
            continue
        color, style = PALETTE[index % len(PALETTE)], STYLES[index % len(STYLES)]
        # rounding may put a correlation beyond 1
        shares = np.histogram(np.clip(scores, -1, 1), EDGES)[0] / len(scores)
        label = f"{row.label}: mean {scores.mean():.3f}, SD {scores.std():.3f}, n {len(scores):,}"
        axes.stairs(shares, EDGES, color=color, linestyle=style, linewidth=1.4, label=label)
        axes.axvline(scores.mean(), color=color, linestyle=style, linewidth=0.9)
    lowest = min((scores_of(row.records["neurons"]).min(initial=0) for row in found), default=0)
    first = max(0, int(np.searchsorted(EDGES, lowest, side="right")) - 1)
    axes.set_xlim(EDGES[first], 1)
    axes.set_xlabel("simulation score (correlation)", fontsize=9)
    axes.set_ylabel("share of neurons", fontsize=9)
    axes.set_title("Explanation scores; lines: means", fontsize=10, loc="left")
    unframed(axes, "y")


def _by_layer(axes: Axes, found: Sequence[Row]) -> None:
    """Quartiles, and the range from the 5th to the 95th percentile, of each layer."""
    width = 0.8 / max(1, len(found))
    for index, row in enumerate(found):
        record = row.records["neurons"]
        color = PALETTE[index % len(PALETTE)]
        for layer in sorted(set(_units(record).get("layer", []))):
            scores = scores_of(record, layer)
            if not len(scores):
                continue
            place = layer + (index - (len(found) - 1) / 2) * width
            axes.boxplot(
                [scores], positions=[place], widths=0.8 * width, whis=(5, 95), showfliers=False,
                manage_ticks=False, showmeans=True, boxprops={"color": color},
                whiskerprops={"color": color}, capprops={"color": color},
                medianprops={"color": color, "linewidth": 1.6},
                meanprops={"marker": "o", "markerfacecolor": color, "markeredgecolor": color,
                           "markersize": 3.5},
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("simulation score", fontsize=9)
    axes.set_title(
        "By layer: quartiles, 5th to 95th percentile; dots: means", fontsize=10, loc="left"
    )
    unframed(axes, "y")
