"""Tables and figures of ``neurons``: scores, differences between models, distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.health import phrases
from evaluations.core.options import Request
from evaluations.core.record import Metric, Record
from evaluations.suite.neurons.compare import Difference, difference
from evaluations.suite.neurons.reading import read_details
from evaluations.tables import Column, Layout, Row, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from evaluations.tables.view import with_interval
from sat_interp._util.errors import UserError

HEADLINE = Headline(
    "Are its neurons better explained?", "simulation", "mean simulation score", 3, "higher"
)
DRAWN_FROM = "units"
"""Entry of ``record.extra`` that figures are drawn from."""
BROWSED = 3
"""Models on the page of a report: several megabytes each."""
DEFINITIONS = {
    "simulation": "Correlation between a neuron's activations and those predicted from its "
    "explanation, on held-out excerpts; mean over neurons",
    "control": "The simulation score of a neuron with the explanation of another neuron",
    "detection": "How well the explanation separates excerpts that activate the neuron from random "
    "ones; mean over neurons",
    "fuzzing": "How well the explanation separates marked tokens that activate the neuron from "
    "marked ones that do not; mean over neurons",
}


def _scored(metric: str) -> Column:
    heading = f"{metric.capitalize()}: share scored"
    about = f"Share of neurons that have a {metric} score"
    return Column("neurons", metric, heading, shows="scored", definition=about)


def _score(metric: str, heading: str) -> Column:
    return Column("neurons", metric, heading, interval=True, definition=DEFINITIONS[metric])


LAYOUTS = (
    Layout(
        "neurons",
        "Neuron explanations",
        (
            _score("simulation", "Simulation"),
            _score("control", "Control: shuffled explanation"),
            _score("detection", "Detection"),
            _scored("detection"),
            _score("fuzzing", "Fuzzing"),
            _scored("fuzzing"),
        ),
    ),
    Layout(
        "neurons-unscored",
        "Neurons without a simulation score",
        (
            Column(
                "neurons",
                "unscored",
                "Not scored",
                0,
                definition="Neurons without a simulation score",
            ),
            Column("neurons", "dead", "Dead", 0, definition="Of these, those that never activate"),
        ),
    ),
)
COMPARED = {"simulation": "Simulation", "detection": "Detection", "fuzzing": "Fuzzing"}
NOT_OVER_SEEDS = "not over seeds: models that differ only in their seed differ, too"
DIFFERENCES = Layout(
    "differences",
    "Difference of mean scores between single models",
    tuple(
        Column(
            "neurons",
            f"{name}_difference",
            f"{title}: difference",
            4,
            interval=True,
            n=True,
            definition=f"Mean {name} score of the first model minus that of the second, over n "
            "neurons that have the score in both",
        )
        for name, title in COMPARED.items()
    ),
    f"Intervals are over neurons, {NOT_OVER_SEEDS}.",
)
RESAMPLES = 2000
"""Of the intervals of differences, in records that do not say."""
EDGES = np.linspace(-1, 1, 41)


def tables(records: Sequence[Record]) -> list[Table]:
    """Scores of the models, by layer, and their differences to the first one."""
    own = [row.records["neurons"] for row in rows(records, "neurons")]
    layers = sorted({layer for record in own for layer in _units(record).get("layer", [])})
    by_layer = Layout(
        "neurons-by-layer",
        "Mean simulation score by layer",
        tuple(Column("neurons", f"simulation_layer_{layer}", f"Layer {layer}") for layer in layers),
    )
    layouts = [*LAYOUTS, by_layer] if layers else LAYOUTS
    return [*make_tables(layouts, own), *make_tables([DIFFERENCES], difference_records(own))]


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures; the explanations are beside the records."""
    return []


def pages(records: Sequence[Record], request: Request) -> list[Path]:
    """Write a page that shows every neuron of the models, where it is asked for.

    Raises:
        UserError: the explanations of a record are missing.
    """
    if not request.options.html:
        return []
    from evaluations.suite.neurons.page import write_page

    path, models = request.out / "neurons.html", rows(records, "neurons")
    return [write_page(_shown(models, request.out), path, difference_lines(records))]


def browse(records: Sequence[Record], out: Path, path: Path) -> list[Path]:
    """Write a page that shows every neuron of the first models whose explanations are kept.

    Args:
        out: directory of the records.
        path: of the page.

    Returns:
        The page; none where no explanations are kept.
    """
    from evaluations.suite.neurons.page import write_page

    kept = (
        row
        for row in rows(records, "neurons")
        if row.records["neurons"].extra.get("details")
        and details_file(row.records["neurons"], out).is_file()
    )
    models = list(islice(kept, BROWSED))
    if not models:
        return []
    notes = difference_lines([row.records["neurons"] for row in models])
    return [write_page(_shown(models, out), path, notes)]


def _shown(models: Sequence[Row], out: Path) -> Iterator[Mapping[str, Any]]:
    """The explanations and excerpts of models, with the graphs of their neurons."""
    from evaluations.suite.neurons.page import with_graphs

    for row in models:
        path = details_file(row.records["neurons"], out)
        yield with_graphs({**read_details(path), "model": row.model}, path.parents[1])


def details(record: Record, out: Path) -> pd.DataFrame:
    """Return a row for each neuron: layer, index, its scores, and its explanation where kept.

    Args:
        out: directory of the records.
    """
    frame = pd.DataFrame(_units(record))
    frame.insert(0, "model", record.model.get("name"))
    try:
        kept = read_details(details_file(record, out))["units"]
    except UserError:
        return frame
    texts = {(unit["layer"], unit["index"]): unit.get("explanation") for unit in kept}
    frame["explanation"] = [
        texts.get(key) for key in zip(frame["layer"], frame["index"], strict=True)
    ]
    return frame


def details_file(record: Record, out: Path) -> Path:
    """Return the file that holds a record's explanations and excerpts."""
    name, weights = str(record.extra["details"]), str(record.model["weights_hash"])[:8]
    files = sorted(out.rglob(f"*-{weights}/neurons/{name}"))
    return files[0] if files else out / f"{record.model.get('name')}-{weights}" / "neurons" / name


def scores_of(record: Record, layer: int | None = None) -> Float[np.ndarray, " units"]:
    """The simulation scores of all units that have one, or of those of a layer."""
    found = _by_unit(record, "simulation")
    return np.array([score for (at, _), score in found.items() if layer in (None, at)], float)


def _units(record: Record) -> dict[str, Any]:
    """The record's columns of units; empty where it has none."""
    units = record.extra.get("units")
    return units if isinstance(units, dict) else {}


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
    records: Sequence[Record], scores: Iterable[str] = COMPARED
) -> list[tuple[Row, Row, dict[str, Difference]]]:
    """Each model against the first, the baseline where there is one, by score.

    Models are compared on the units (layer and number) that have the score in both: which units
    can be scored differs between models, and those that cannot are not the average ones.
    """
    models = rows(records, "neurons")
    found = []
    for row in models[1:]:
        record, first = row.records["neurons"], models[0].records["neurons"]
        if not _same_units(record, first):
            continue
        by_score: dict[str, Difference] = {}
        for name in scores:
            one, other = _by_unit(record, name), _by_unit(first, name)
            common = [unit for unit in one if unit in other]
            made = difference(
                np.array([one[unit] for unit in common]),
                np.array([other[unit] for unit in common]),
                record.seed,
                int(record.config.get("resamples", RESAMPLES)),
            )
            by_score |= {} if made is None else {name: made}
        if by_score:
            found.append((row, models[0], by_score))
    return found


def _same_units(one: Record, other: Record) -> bool:
    """Whether the same units were explained: of one architecture, and one sample of them."""
    return all(_units(one).get(name) == _units(other).get(name) for name in ("layer", "index"))


def difference_records(records: Sequence[Record]) -> list[Record]:
    """The differences as records, for tables."""
    made = []
    for row, first, found in differences(records):
        record = row.records["neurons"]
        metrics = [
            Metric(
                f"{name}_difference",
                f"Difference of mean {name} scores",
                one.value,
                "",
                None,
                one.standard_error,
                one.interval,
                one.n,
                description="n: units that have the score in both models; not over seeds",
            )
            for name, one in found.items()
        ]
        name = f"{row.model} minus {first.model}"
        extra = {"health": [*phrases(record), *phrases(first.records["neurons"])]}
        made.append(
            dataclasses.replace(
                record, model={**record.model, "name": name}, metrics=metrics, extra=extra
            )
        )
    return made


def difference_lines(records: Sequence[Record]) -> list[str]:
    """The differences of the simulation scores, a line each."""
    lines = []
    for row, first, scores in differences(records, ["simulation"]):
        found = scores["simulation"]
        text = f"{row.model} minus {first.model}: {with_interval(found.value, found.interval, 4)}"
        lines.append(f"{text}, {found.n:,} neurons of both; {NOT_OVER_SEEDS}")
    return lines


def _figure(records: Sequence[Record]) -> list[Figure]:
    """All models' scores in one histogram (as the paper's Figure 2), and their spread by layer."""
    models = rows(records, "neurons")
    if not models:
        return []
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _histogram(left, models)
    _by_layer(right, models)
    draw.legend(figure, 3, like=left)
    return [figure]


FIGURES: Mapping[str, draw.Draw] = {"": _figure}


def _histogram(axes: Axes, models: Sequence[Row]) -> None:
    """Shares of neurons, so that models of different sizes compare; means as vertical lines."""
    by_model = [scores_of(row.records["neurons"]) for row in models]
    for index, (row, scores) in enumerate(zip(models, by_model, strict=True)):
        color = draw.color(index)
        style = draw.line_style(index)
        if not len(scores):
            axes.plot([], [], color="none", label=f"{row.label}: no score")
            continue
        # rounding may put a correlation beyond 1
        shares = np.histogram(np.clip(scores, -1, 1), EDGES)[0] / len(scores)
        label = f"{row.label}: mean {scores.mean():.3f}, SD {scores.std():.3f}, n {len(scores):,}"
        axes.stairs(shares, EDGES, color=color, linestyle=style, linewidth=1.4, label=label)
        axes.axvline(scores.mean(), color=color, linestyle=style, linewidth=0.9)
    lowest = min(scores.min(initial=0) for scores in by_model)
    first = max(0, int(np.searchsorted(EDGES, lowest, side="right")) - 1)
    axes.set_xlim(EDGES[first], 1)
    draw.finish(
        axes,
        "simulation score (correlation)",
        "share of neurons",
        "Explanation scores; vertical lines: means",
        "y",
    )
    if not axes.patches:
        draw.empty(axes, "no neuron has a simulation score")


def _by_layer(axes: Axes, models: Sequence[Row]) -> None:
    """Quartiles, and the range from the 5th to the 95th percentile, of each layer."""
    width = 0.8 / max(1, len(models))
    for index, row in enumerate(models):
        record = row.records["neurons"]
        color = draw.color(index)
        for layer in sorted(set(_units(record).get("layer", []))):
            scores = scores_of(record, layer)
            if not len(scores):
                continue
            place = layer + (index - (len(models) - 1) / 2) * width
            axes.boxplot(
                [scores],
                positions=[place],
                widths=0.8 * width,
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                showmeans=True,
                boxprops={"color": color},
                whiskerprops={"color": color},
                capprops={"color": color},
                medianprops={"color": color, "linewidth": 1.6},
                meanprops={
                    "marker": "o",
                    "markerfacecolor": color,
                    "markeredgecolor": color,
                    "markersize": 3.5,
                },
            )
    draw.finish(
        axes,
        "layer",
        "simulation score",
        "By layer: quartiles, 5th to 95th percentile; dots: means",
        "y",
    )
    draw.by_layer(axes)
    if not axes.lines:
        draw.empty(axes, "no neuron has a simulation score")
