"""What ``gates`` found, as tables and figures: use of the masks, their leak, a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluations.core.record import Record
from evaluations.tables.figures import MARKERS, PALETTE, numbers, save, unframed
from evaluations.tables.tables import Column, Layout, Row, rows
from sat_interp._util import escape
from sat_interp._util.files import file_name

SITES = {"attention": "attention units", "neuron": "neurons"}
# One colour, marker and line for each thing a probe reads.
PROBES = {
    "residual": ("clean stream at block's input", "#0072B2", "s", "-"),
    "token+mask": ("current token + masks", "#CC79A7", "D", "-"),
    "token+exchanged": ("current token + exchanged masks", "#009E73", "x", ":"),
    "mask": ("masks", "#D55E00", "o", "-"),
    "shuffled": ("shuffled masks", "#999999", "v", ":"),
}
FLAT_PROBES = {"final": ("final clean state", "#56B4E9", "-."),
               "token": ("current token", "#000000", "--")}  # fmt: skip
LOSSES = {
    "clean": "clean stream", "own": "own masks", "shuffled": "shuffled positions",
    "other_story": "another story's", "random": "random k",
}  # fmt: skip


GATES = (
    *(
        Layout(
            f"Use of the masks: {title} (means over layers)",
            (
                Column("gates", f"{site}_dead", "Dead", 3),
                Column("gates", f"{site}_entropy", "Entropy, bits", 2),
                Column("gates", f"{site}_entropy_share", "of log2 n", 3, interval=True),
                Column("gates", f"{site}_overlap", "Shared with next token", 3, interval=True),
                Column("gates", f"{site}_overlap_chance", "by chance", 3),
                Column("gates", f"{site}_similarity", "Layers alike (r)", 3, interval=True),
            ),
        )
        for site, title in SITES.items()
    ),
    Layout(
        "Next token read by a linear probe: bits per token over unigrams (means over layers)",
        (
            Column("gates", "leak_mask", "Masks", 2, interval=True),
            Column("gates", "leak_shuffled", "shuffled", 2, interval=True),
            Column("gates", "leak_token", "Token", 2, interval=True),
            Column("gates", "leak_mask_adds", "masks add", 2, interval=True),
            Column("gates", "leak_exchanged_adds", "exchanged ones add", 2, interval=True),
            Column("gates", "leak_mask_excess", "Beyond the token", 3, interval=True),
            Column("gates", "leak_residual", "Block input", 2),
            Column("gates", "leak_final", "Final state", 2),
        ),
    ),
    Layout(
        "Ablated loss under other masks (nats per token)",
        (
            Column("gates", "masks_clean_loss", "Clean", 3),
            Column("gates", "masks_own_loss", "Own masks", 3),
            Column("gates", "masks_shuffled_cost", "shuffled +", 3, interval=True),
            Column("gates", "masks_other_story_cost", "other story +", 3, interval=True),
            Column("gates", "masks_random_cost", "random k +", 3, interval=True),
        ),
    ),
)


def draw_gates(records: Sequence[Record], stem: Path) -> list[Path]:
    """Use of the masks, their leak, and for each model a picture of masks over a story.

    Args:
        records: of the evaluation ``gates``; others are passed over.
        stem: ``<stem>-usage``, ``<stem>-leak`` and ``<stem>-masks-<model>`` are written.

    Returns:
        The files written, PNG then SVG of each; none where no record is of ``gates``.

    Raises:
        OSError: they cannot be written.
    """
    found = rows([record for record in records if record.evaluation == "gates"])
    used = [row for row in found if "usage" in _extra(row)]
    written = save(_usage(used), stem.with_name(f"{stem.name}-usage")) if used else []
    asked = [row for row in found if "leak" in _extra(row) or row.metric(GATES[-1].columns[0])]
    if asked:
        written += save(_leaks(asked), stem.with_name(f"{stem.name}-leak"))
    for row in used:
        if "picture" not in _extra(row):
            continue
        name = f"{stem.name}-masks-{file_name(row.model)}"
        written += save(draw_masks(row), stem.with_name(name))
    return written


def draw_masks(row: Row) -> Figure:
    """The units each token of a story selects: tokens across, a row for each unit that wins.

    In each panel units stand in the order in which they first win, so that a staircase is a choice
    made anew at every token, and a horizontal run a unit kept from token to token. The colour says
    how often the unit wins over the whole text.
    """
    extra = _extra(row)
    shown, usage = extra["picture"], extra["usage"]
    tokens = [_visible(token) for token in shown["tokens"]]
    layers = len(shown["attention"])
    size = (2.0 + 0.27 * len(tokens), 1.1 + 1.2 * layers)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(layers, 2, sharex=True, squeeze=False)
    norm = LogNorm(1e-3, 1.0)
    marks: Any = None
    for column, (site, title) in enumerate(SITES.items()):
        for layer in range(layers):
            axes = grid[layer][column]
            frequency = _numbers(usage[site]["frequency"][layer])
            marks = _raster(axes, shown[site][layer], frequency, norm)
            axes.set_xlim(-0.6, len(tokens) - 0.4)
            axes.set_ylabel(f"layer {layer}", fontsize=8)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.tick_params(labelsize=7, length=2)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0][column].set_title(
            f"{title} ({usage[site]['k']} of {usage[site]['units']})", fontsize=9, loc="left"
        )
        grid[-1][column].set_xticks(
            range(len(tokens)), tokens, rotation=90, fontsize=7, family="monospace"
        )
    figure.suptitle(f"{row.label}: the units each token keeps", fontsize=10, x=0.01, ha="left")
    bar = figure.colorbar(marks, ax=grid, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("win frequency over the text", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _raster(axes: Axes, positions: Sequence[str], frequency: np.ndarray, norm: LogNorm) -> Any:
    """A mark for each winner; units in order of their first win."""
    places: dict[int, int] = {}
    points = []
    for position, told in enumerate(positions):
        for unit in map(int, told.split()):
            points.append((position, places.setdefault(unit, len(places)), frequency[unit]))
    across, down, often = np.array(points).T
    axes.set_ylim(len(places) - 0.2, -0.8)
    return axes.scatter(
        across, down, c=np.clip(often, norm.vmin, norm.vmax), norm=norm, cmap="viridis_r",
        marker="s", s=9, linewidths=0,
    )  # fmt: skip


def _usage(found: Sequence[Row]) -> Figure:
    """A row for each model: how often units win, overlap of neighbours, similarity of layers."""
    figure = Figure(figsize=(12.6, 0.5 + 2.5 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 5, squeeze=False, width_ratios=(1, 1, 1.15, 0.85, 0.85))
    for line, row in zip(grid, found, strict=True):
        usage = _extra(row)["usage"]
        for axes, site in zip(line[:2], SITES, strict=True):
            _frequencies(axes, usage[site], SITES[site])
        line[0].set_ylabel(f"{row.label}\nwin frequency", fontsize=9)
        _overlaps(line[2], usage)
        for axes, site in zip(line[3:], SITES, strict=True):
            _similarities(axes, usage[site], SITES[site])
    return figure


def _frequencies(axes: Axes, usage: dict[str, Any], title: str) -> None:
    """Win frequency by rank, a line for each layer."""
    layers = len(usage["frequency"])
    for layer, told in enumerate(usage["frequency"]):
        ordered = np.sort(_numbers(told))[::-1]
        alive = ordered[ordered > 0]
        shade = 0.15 + 0.75 * layer / max(1, layers - 1)
        axes.plot(
            np.arange(1, len(alive) + 1), alive, color=(0, 0.35 * shade, shade), linewidth=1.2,
            label=f"layer {layer}" if layer in (0, layers - 1) else None,
        )  # fmt: skip
    even = usage["k"] / usage["units"]
    axes.axhline(even, color="0.5", linestyle=":", linewidth=1, label="all alike")
    axes.set_yscale("log")
    axes.set_xlabel("rank of the unit", fontsize=9)
    dead = numbers(usage["dead"]["value"])
    told = f"{np.nanmean(dead):.0%} dead" if np.isfinite(dead).any() else "dead: no value"
    axes.set_title(f"{title} ({told})", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=7)
    unframed(axes, "y")


def _overlaps(axes: Axes, usage: dict[str, Any]) -> None:
    """Overlap of neighbouring tokens by layer, beside two chance levels."""
    lines = {"overlap": ("next token", "-"), "overlap_same_story": ("two of a story", "--"),
             "overlap_chance": ("any two tokens", ":")}  # fmt: skip
    for site, color, marker in zip(SITES, ("#0072B2", "#D55E00"), "os", strict=True):
        for name, (label, style) in lines.items():
            _curve(
                axes, usage[site][name], f"{SITES[site]}: {label}", color,
                marker if name == "overlap" else "", style,
            )  # fmt: skip
    axes.set_ylim(0, 1.7 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlabel("layer", fontsize=9)
    axes.set_title("share of winners in common", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    unframed(axes, "y")


def _similarities(axes: Axes, usage: dict[str, Any], title: str) -> None:
    """Correlations between layers, as a matrix with its numbers."""
    value = np.array(usage["similarity"]["value"], dtype=float)
    layers = len(value)
    axes.imshow(value, vmin=-1, vmax=1, cmap="RdBu_r")
    size = 8 if layers <= 4 else 5.5
    for a in range(layers):
        for b in range(layers):
            if np.isfinite(value[a, b]):
                color = "white" if abs(value[a, b]) > 0.6 else "black"
                axes.text(b, a, f"{value[a, b]:.2f}", ha="center", va="center", fontsize=size,
                          color=color)  # fmt: skip
    axes.set_xticks(range(layers))
    axes.set_yticks(range(layers))
    axes.tick_params(labelsize=8, length=0)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_title(f"layers alike: {title}", fontsize=9, loc="left")


def _leaks(found: Sequence[Row]) -> Figure:
    """A row for each model: bits a probe reads by layer, and the ablated loss under other masks."""
    figure = Figure(figsize=(8.6, 0.9 + 2.7 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1.4, 1))
    for line, row in zip(grid, found, strict=True):
        _probes(line[0], _extra(row).get("leak"))
        line[0].set_title(f"{row.label}: next token read by a linear probe", fontsize=9, loc="left")
        _losses(line[1], row)
        line[1].set_title("cross-entropy under other masks", fontsize=9, loc="left")
    handles, labels = grid[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return figure


def _probes(axes: Axes, leak: dict[str, Any] | None) -> None:
    if leak is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not asked for", ha="center", fontsize=8, color="0.5")
        return
    for name, (label, color, style) in FLAT_PROBES.items():
        one = next(iter(leak["probes"].get(name, [])), None)
        if one is None or one["bits"] is None:
            axes.plot([], [], color="none", label=f"{label}: no value")
            continue
        axes.axhline(one["bits"], color=color, linestyle=style, linewidth=1.2, label=label)
        if one["bits_interval"]:
            axes.axhspan(*one["bits_interval"], color=color, alpha=0.08, linewidth=0)
    for name, (label, color, marker, style) in PROBES.items():
        told = leak["probes"].get(name, [])
        value = numbers([one["bits"] for one in told])
        if not np.isfinite(value).any():
            if told:
                axes.plot([], [], color="none", label=f"{label}: no value")
            continue
        ends = [one["bits_interval"] or (one["bits"], one["bits"]) for one in told]
        low, high = numbers(ends).T
        reach = np.maximum(0.0, [value - low, high - value])
        axes.errorbar(
            range(len(told)), value, yerr=reach, color=color, marker=marker, linestyle=style,
            markersize=4.5, linewidth=1.2, capsize=2, label=label,
        )  # fmt: skip
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("bits per token over unigrams", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    unframed(axes, "y")


def _losses(axes: Axes, row: Row) -> None:
    record = row.records["gates"]
    told = {label: record.metric(f"masks_{name}_loss") for name, label in LOSSES.items()}
    known = [
        (label, metric) for label, metric in told.items() if metric and metric.value is not None
    ]
    if not known:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not asked for", ha="center", fontsize=8, color="0.5")
        return
    for place, (_, metric) in enumerate(known):
        value = float(metric.value or 0.0)
        reach = None
        if metric.interval:
            reach = [[max(0.0, value - metric.interval.low)],
                     [max(0.0, metric.interval.high - value)]]  # fmt: skip
        axes.errorbar([value], [place], xerr=reach, color=PALETTE[place], marker=MARKERS[place],
                      markersize=6, capsize=3, linestyle="")  # fmt: skip
        axes.annotate(f"{value:.2f}", (value, place), (0, 6), textcoords="offset points",
                      ha="center", fontsize=7)  # fmt: skip
    axes.set_yticks(range(len(known)), [label for label, _ in known], fontsize=8)
    axes.set_ylim(len(known) - 0.5, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel("nats per token (95 % interval)", fontsize=9)
    unframed(axes, "x")


def _curve(
    axes: Axes, curve: dict[str, Any], label: str, color: str, marker: str, style: str
) -> None:
    value = np.array(curve["value"], dtype=float)
    error = np.array(curve["standard_error"], dtype=float)
    axes.errorbar(
        range(len(value)), value, yerr=1.96 * np.nan_to_num(error), label=label, color=color,
        marker=marker, linestyle=style, linewidth=1.2, markersize=4, capsize=2,
    )  # fmt: skip


def _extra(row: Row) -> dict[str, Any]:
    return row.records["gates"].extra


def _numbers(told: str) -> np.ndarray:
    return np.array(told.split(), dtype=float)


def _visible(token: str) -> str:
    """A token as a label: spaces and line ends made visible."""
    text = token.replace("<|endoftext|>", "‹end›").replace("\n", "⏎").replace("\t", "⇥")
    text = text.replace(" ", "·", 1) if text.startswith(" ") else text
    return escape.figure(text) or "∅"
