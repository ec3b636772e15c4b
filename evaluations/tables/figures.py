"""Figures made from records: PNG and SVG side by side, readable in print and in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluations.core.record import Metric, Record
from evaluations.tables.tables import Row, rows
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

# Okabe and Ito's colours, told apart by colour-blind readers too, then three more for studies;
# markers tell them apart in grey.
STREAMS = {"clean": ("", "#0072B2", "o"), "ablated": ("ablated_", "#D55E00", "s")}
PALETTE = (
    "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#7F7F7F",
    "#882255", "#8C6D31",
)  # fmt: skip
MARKERS = "os^Dv<>PX*"
SITES = {"z_hoyer": "attention (z)", "post_hoyer": "MLP (post-activation)"}


def draw_language(records: Sequence[Record], stem: Path) -> list[Path]:
    """What ``lm`` found: perplexity of both streams with intervals, sparsity of each layer.

    Args:
        records: of the evaluation ``lm``; others are passed over.
        stem: the figure's path without its ending.

    Returns:
        The files written, PNG then SVG; none where no record is of ``lm``.

    Raises:
        OSError: they cannot be written.
    """
    found = rows([record for record in records if record.evaluation == "lm"])
    if not found:
        return []
    height = max(2.6, 0.9 + 0.42 * len(found))
    figure = Figure(figsize=(9.6, height), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    _perplexities(left, found)
    for axes, (name, title) in zip(right, SITES.items(), strict=True):
        _by_layer(axes, found, name, title)
    right[1].sharey(right[0])
    handles, labels = right[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower right", ncols=min(4, len(labels)), frameon=False,
            fontsize=8,
        )  # fmt: skip
    return save(figure, stem)


def save(figure: Figure, stem: Path) -> list[Path]:
    """The figure as PNG (200 dpi) and SVG, each written whole."""
    written = []
    for ending, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        content = io.BytesIO()
        figure.savefig(content, format=ending, **options)
        written.append(
            write_atomically(stem.with_name(f"{stem.name}.{ending}"), content.getvalue())
        )
    return written


def _perplexities(axes: Axes, found: Sequence[Row]) -> None:
    """One line a model, both streams on it, 95 % intervals as bars."""
    labelled: set[str] = set()
    for place, row in enumerate(found):
        for stream, (prefix, color, marker) in STREAMS.items():
            metric = row.records["lm"].metric(f"{prefix}perplexity")
            if metric is None:
                continue
            if metric.value is None:
                _left_out(axes, place, stream, metric)
                continue
            axes.errorbar(
                [metric.value], [place], xerr=reach(metric), color=color, marker=marker,
                markersize=6, markeredgecolor="white", capsize=3, linestyle="",
                label=stream if stream not in labelled else None,
            )  # fmt: skip
            labelled.add(stream)
    axes.set_yticks(range(len(found)), [row.label for row in found], fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("perplexity (95 % interval)", fontsize=9)
    axes.set_title("Language modelling", fontsize=10, loc="left")
    unframed(axes, "x")
    if labelled:
        axes.legend(frameon=False, fontsize=8, loc="best")


def _left_out(axes: Axes, place: int, stream: str, metric: Metric) -> None:
    """Say in a model's line that it has no value, and why."""
    why = ", ".join(metric.reasons) or "not measured"
    shift = 0.0 if stream == "clean" else 0.32
    axes.text(
        0.02, place + shift, escape.figure(f"{stream}: no value ({why})"), fontsize=7,
        color="0.4", va="center", transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """Values of a record as an array: what does not exist is nan, which is not drawn."""
    return np.array(values, dtype=np.float64)


def reach(metric: Metric) -> Any:
    if metric.interval is None or metric.value is None:
        return None
    low, high = metric.interval.low, metric.interval.high
    # Rounding may put a percentile beyond the value itself; a bar has no negative length.
    return [[max(0.0, metric.value - low)], [max(0.0, high - metric.value)]]


def _by_layer(axes: Axes, found: Sequence[Row], name: str, title: str) -> None:
    for index, row in enumerate(found):
        curve = (row.records["lm"].extra.get("activations") or {}).get(name)
        if not curve:
            continue
        value = numbers(curve["value"])
        if np.isnan(value).all():
            axes.plot([], [], color="none", label=f"{row.label}: no value")
            continue
        error = 1.96 * np.nan_to_num(numbers(curve["standard_error"]))
        axes.errorbar(
            range(len(value)), value, yerr=error, label=row.label, capsize=2, linewidth=1.2,
            color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)], markersize=4,
        )  # fmt: skip
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("Hoyer sparsity", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    unframed(axes, "y")


def unframed(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
