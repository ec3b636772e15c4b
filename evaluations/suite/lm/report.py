"""Tables and figures of ``lm``: perplexity of both streams, sparsity of weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Metric, Record
from evaluations.tables import Column, Layout, Row, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from sat_interp._util import escape

HEADLINE = Headline("Does it predict text as well?", "perplexity", "perplexity", 3, "lower")
STREAMS = {"clean": ("", "#0072B2", "o"), "ablated": ("ablated_", "#D55E00", "s")}
SITES = {"z_hoyer": "Attention (z)", "post_hoyer": "MLP (post-activation)"}
PERPLEXITY = "exp(mean cross-entropy per token) over the whole text"
L0_OF = "Share of activations of {} larger than the threshold (0.01), mean over layers"
HOYER_OF = "Hoyer sparsity of {}: (sqrt(n) - L1 / L2) / (sqrt(n) - 1); 1 where one unit is active"
GINI_OF = "Gini coefficient of the sizes of {}; 0 where all are equal, near 1 where few are active"
Z, POST = "the attention heads' outputs (z)", "the MLP neurons"

LANGUAGE = (
    Layout(
        "language",
        "Language modelling",
        (
            Column(
                "lm",
                "perplexity",
                "Perplexity",
                2,
                interval=True,
                definition=f"{PERPLEXITY}, clean stream",
            ),
            Column(
                "lm",
                "ablated_perplexity",
                "Perplexity, ablated",
                2,
                interval=True,
                definition=f"{PERPLEXITY}, ablated stream",
            ),
            Column(
                "lm",
                "bits_per_byte",
                "Bits per byte",
                3,
                interval=True,
                definition="Cross-entropy in bits, divided by the UTF-8 bytes of the text; "
                "comparable between vocabularies",
            ),
            Column(
                "lm",
                "ablated_bits_per_byte",
                "Bits per byte, ablated",
                3,
                definition="Bits per byte of the ablated stream",
            ),
        ),
        "Each story is read on its own, from the token that begins stories; its closing "
        "end-of-text token is scored; what does not fit into the context is cut.",
    ),
    Layout(
        "sparsity",
        "Sparsity of weights and activations",
        (
            Column(
                "lm",
                "l1_exported",
                "L1 (paper)",
                4,
                definition="Mean absolute value of the parameters the paper counts",
            ),
            Column(
                "lm",
                "l1_tied",
                "L1, tied",
                4,
                definition="Mean absolute value of all parameters, tied ones counted once",
            ),
            Column("lm", "z_l0", "Attention L0", 3, definition=L0_OF.format(Z)),
            Column("lm", "z_hoyer", "Attention Hoyer", 3, definition=HOYER_OF.format(Z)),
            Column("lm", "z_gini", "Attention Gini", 3, definition=GINI_OF.format(Z)),
            Column("lm", "post_l0", "MLP L0", 3, definition=L0_OF.format(POST)),
            Column("lm", "post_hoyer", "MLP Hoyer", 3, definition=HOYER_OF.format(POST)),
            Column("lm", "post_gini", "MLP Gini", 3, definition=GINI_OF.format(POST)),
        ),
    ),
)

CONVENTIONS = {
    "sliding": "Stories are joined into one text and read by a window of the context that moves by "
    "half of it.",
    "per_story": "Mean of the stories' own perplexities; the closing end-of-text token is not "
    "scored.",
}
"""Other conventions of perplexity, where they were asked for."""


def tables(records: Sequence[Record]) -> list[Table]:
    """Language modelling, sparsity, and perplexity by other conventions where it was measured."""
    layouts = [*LANGUAGE]
    for convention, caption in CONVENTIONS.items():
        name = f"perplexity_{convention}"
        if any(record.metric(name) for record in records):
            words = convention.replace("_", " ")
            columns = (
                Column("lm", name, f"Perplexity, {words}", 2, True, definition=caption),
                Column(
                    "lm",
                    f"ablated_{name}",
                    f"Perplexity, {words}, ablated",
                    2,
                    True,
                    definition=f"{caption} Of the ablated stream.",
                ),
            )
            layouts.append(Layout(f"perplexity-{words}", f"Perplexity, {words}", columns, caption))
    return make_tables(layouts, records)


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures."""
    return []


def _language(records: Sequence[Record]) -> list[Figure]:
    """Perplexity of both streams with intervals, and sparsity of each layer."""
    models = rows(records, "lm")
    if not models:
        return []
    figure = Figure(figsize=(9.6, max(2.9, 1.2 + 0.42 * len(models))), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    _perplexities(left, models)
    for axes, (name, title) in zip(right, SITES.items(), strict=True):
        _by_layer(axes, models, name, title)
    right[1].sharey(right[0])
    draw.legend(figure, 4, like=right[0])
    return [figure]


FIGURES: Mapping[str, draw.Draw] = {"": _language}


def _perplexities(axes: Axes, models: Sequence[Row]) -> None:
    """A line for each model, both streams on it, 95 % intervals as bars."""
    labelled: set[str] = set()
    for place, row in enumerate(models):
        for stream, (prefix, color, marker) in STREAMS.items():
            metric = row.records["lm"].metric(f"{prefix}perplexity")
            if metric is None:
                continue
            if metric.value is None:
                _no_value(axes, place, stream, metric)
                continue
            axes.errorbar(
                [metric.value],
                [place],
                xerr=draw.reach(metric),
                color=color,
                marker=marker,
                markersize=6,
                markeredgecolor="white",
                capsize=3,
                linestyle="",
                label=f"{stream} stream" if stream not in labelled else None,
            )
            labelled.add(stream)
    draw.finish(axes, "perplexity (95 % interval)", "", "Language modelling", "x")
    axes.set_yticks(range(len(models)), [row.label for row in models], fontsize=9)
    axes.set_ylim(len(models) - 0.5, -0.5)
    draw.legend(axes, 2)


def _no_value(axes: Axes, place: int, stream: str, metric: Metric) -> None:
    """Say in a model's line that it has no value, and why."""
    why = ", ".join(metric.reasons) or "not measured"
    shift = 0.0 if stream == "clean" else 0.32
    axes.text(
        0.02,
        place + shift,
        escape.figure(f"{stream}: no value ({why})"),
        fontsize=7,
        color="0.4",
        va="center",
        transform=axes.get_yaxis_transform(),
    )


def _by_layer(axes: Axes, models: Sequence[Row], name: str, title: str) -> None:
    is_empty = True
    for index, row in enumerate(models):
        curve = (row.records["lm"].extra.get("activations") or {}).get(name) or {}
        if not np.isfinite(draw.numbers(curve.get("value", []))).any():
            axes.plot([], [], color="none", label=f"{row.label}: no value")
            continue
        is_empty = False
        draw.curve(axes, curve, row.label, draw.color(index), draw.marker(index))
    draw.finish(axes, "layer", "Hoyer sparsity (95 % interval)", title, "y")
    draw.by_layer(axes)
    if is_empty:
        draw.empty(axes, "activations were not measured")
