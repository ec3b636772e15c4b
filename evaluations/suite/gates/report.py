"""Tables and figures of ``gates``: use of the masks, what probes read from them, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluations.core.record import Record
from evaluations.tables import Column, Layout, Row, Table, draw, make_tables, rows
from evaluations.tables.headline import Headline
from sat_interp._util import escape

HEADLINE = Headline(
    "Do the masks carry the next token, beyond the current one?",
    "leak_mask_excess",
    "bits of a token's own masks beyond those of exchanged masks",
    3,
    compared_with="zero",
)
DRAWN_FROM = "usage"
"""Entry of ``record.extra`` that figures are drawn from."""
SITES = {"attention": "attention units", "neuron": "neurons"}
PROBES = {
    "residual": ("clean stream at the block's input", "#0072B2", "s", "-"),
    "token+mask": ("current token + masks", "#CC79A7", "D", "-"),
    "token+exchanged": ("current token + exchanged masks", "#009E73", "x", ":"),
    "mask": ("masks", "#D55E00", "o", "-"),
    "shuffled": ("shuffled masks", "#999999", "v", ":"),
}
"""By what a probe reads: label, colour, marker and line."""
FLAT_PROBES = {
    "final": ("final clean state", "#56B4E9", "-."),
    "token": ("current token", "#000000", "--"),
}
LOSSES = {
    "clean": "clean stream",
    "own": "own masks",
    "shuffled": "shuffled positions",
    "other_story": "masks of another story",
    "random": "random k units",
}
BITS = "Bits per token, over the unigram baseline, that a linear probe of the next token gains from"


def _column(
    metric: str, heading: str, digits: int, definition: str, interval: bool = True
) -> Column:
    return Column("gates", metric, heading, digits, interval, definition=definition)


def _usage_layout(site: str, title: str) -> Layout:
    return Layout(
        f"gates-usage-{site}",
        f"Use of the masks: {title} (means over layers)",
        (
            _column(f"{site}_dead", "Dead", 3, "Share of units that no token selects", False),
            _column(
                f"{site}_entropy",
                "Entropy, bits",
                2,
                "Entropy of the distribution of wins over units: how evenly they are used",
                False,
            ),
            _column(
                f"{site}_entropy_share",
                "Normalised entropy",
                3,
                "Entropy divided by its maximum, log2 of the number of units",
            ),
            _column(
                f"{site}_overlap",
                "Overlap with next token",
                3,
                "Share of selected units that the next token of the story selects too",
            ),
            _column(
                f"{site}_overlap_chance",
                "Chance overlap",
                3,
                "The same overlap of any two tokens of the text",
                False,
            ),
            _column(
                f"{site}_similarity",
                "Similarity of layers, r",
                3,
                "Correlation between two layers of the overlap of token pairs: 1 where both "
                "group tokens alike",
            ),
        ),
    )


GATES = (
    *(_usage_layout(site, title) for site, title in SITES.items()),
    Layout(
        "gates-probes",
        "Next token read by a linear probe: bits per token over unigrams (means over layers)",
        (
            _column("leak_mask", "Masks", 2, f"{BITS} the masks"),
            _column(
                "leak_shuffled",
                "Shuffled masks",
                2,
                f"{BITS} the masks of the story's positions in random order (control)",
            ),
            _column("leak_token", "Token", 2, f"{BITS} the current token"),
            _column(
                "leak_mask_adds",
                "Bits added by masks",
                2,
                "Bits of token and masks together, minus bits of the token",
            ),
            _column(
                "leak_exchanged_adds",
                "Bits added by exchanged masks",
                2,
                "The same with the masks of another occurrence of the token (control)",
            ),
            _column(
                "leak_mask_excess",
                "Excess over token",
                3,
                "Bits added by masks minus bits added by exchanged masks: what masks carry "
                "beyond the current token",
            ),
            _column(
                "leak_residual",
                "Block input",
                2,
                f"{BITS} the clean stream at the block's input",
                False,
            ),
            _column(
                "leak_final",
                "Final state",
                2,
                f"{BITS} the clean state after the final layer norm",
                False,
            ),
        ),
    ),
    Layout(
        "gates-interventions",
        "Ablated loss under other masks (nats per token)",
        (
            _column(
                "masks_clean_loss", "Clean stream", 3, "Cross-entropy of the clean stream", False
            ),
            _column("masks_own_loss", "Own masks", 3, "Cross-entropy of the ablated stream", False),
            _column(
                "masks_shuffled_cost",
                "Cost: shuffled positions",
                3,
                "Loss added when each position gets the masks of another one of its story",
            ),
            _column(
                "masks_other_story_cost",
                "Cost: another story",
                3,
                "Loss added when each position gets the masks of another story",
            ),
            _column(
                "masks_random_cost",
                "Cost: random units",
                3,
                "Loss added when k random units are kept",
            ),
        ),
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Use of the masks at both sites, what probes read, loss under other masks."""
    return make_tables(GATES, records)


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures."""
    return []


def _with(records: Sequence[Record], *parts: str) -> list[Row]:
    """The models whose record has these parts of ``extra``."""
    return [row for row in rows(records, "gates") if {*parts} <= _extra(row).keys()]


def _usages(records: Sequence[Record]) -> list[Figure]:
    models = _with(records, "usage")
    return [_usage(models)] if models else []


def _probed(records: Sequence[Record]) -> list[Figure]:
    """What probes read and the loss under other masks, of models that have either."""
    models = [
        row
        for row in _with(records)
        if "leak" in _extra(row) or row.records["gates"].metric("masks_clean_loss")
    ]
    return [_leaks(models)] if models else []


def _pictures(records: Sequence[Record]) -> list[Figure]:
    """A figure for each model, labelled with its name."""
    made = []
    for row in _with(records, "usage", "picture"):
        figure = draw_masks(row)
        figure.set_label(row.model)
        made.append(figure)
    return made


FIGURES: Mapping[str, draw.Draw] = {"": _usages, "probes": _probed, "masks": _pictures}


def draw_masks(row: Row) -> Figure:
    """The units each token of a story selects: tokens across, a row for each unit that wins.

    In each panel units are in the order in which they first win: a staircase is a new choice at
    every token, a horizontal run a unit kept from token to token. The colour is the unit's win
    frequency over the whole text.
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
    for position, winners in enumerate(positions):
        for unit in map(int, winners.split()):
            points.append((position, places.setdefault(unit, len(places)), frequency[unit]))
    across, down, often = np.array(points).T
    axes.set_ylim(len(places) - 0.2, -0.8)
    return axes.scatter(
        across,
        down,
        c=np.clip(often, norm.vmin, norm.vmax),
        norm=norm,
        cmap="viridis_r",
        marker="s",
        s=9,
        linewidths=0,
    )


def _usage(models: Sequence[Row]) -> Figure:
    """A row for each model: how often units win, overlap of neighbours, similarity of layers."""
    figure = Figure(figsize=(12.6, 1.9 + 2.5 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 5, squeeze=False, width_ratios=(1, 1, 1.15, 0.85, 0.85))
    for line, row in zip(grid, models, strict=True):
        usage = _extra(row)["usage"]
        for axes, site in zip(line[:2], SITES, strict=True):
            _frequencies(axes, usage[site], SITES[site])
        line[0].set_ylabel(f"{row.label}\nwin frequency", fontsize=9)
        _overlaps(line[2], usage)
        for axes, site in zip(line[3:], SITES, strict=True):
            _similarities(axes, usage[site], SITES[site])
    for axes in grid[-1][:3]:  # one legend for each column
        draw.legend(axes, 1)
    return figure


def _frequencies(axes: Axes, usage: dict[str, Any], title: str) -> None:
    """Win frequency by rank, a line for each layer."""
    layers = len(usage["frequency"])
    for layer, text in enumerate(usage["frequency"]):
        ordered = np.sort(_numbers(text))[::-1]
        alive = ordered[ordered > 0]
        shade = 0.15 + 0.75 * layer / max(1, layers - 1)
        axes.plot(
            np.arange(1, len(alive) + 1),
            alive,
            color=(0, 0.35 * shade, shade),
            linewidth=1.2,
            label=f"layer {layer}" if layer in (0, layers - 1) else None,
        )
    even = usage["k"] / usage["units"]
    axes.axhline(even, color="0.5", linestyle=":", linewidth=1, label="all used evenly")
    axes.set_yscale("log")
    dead = draw.numbers(usage["dead"]["value"])
    share = f"{np.nanmean(dead):.0%} dead" if np.isfinite(dead).any() else "dead: no value"
    draw.finish(axes, "rank of the unit", "", f"{title} ({share})", "y")


def _overlaps(axes: Axes, usage: dict[str, Any]) -> None:
    """Overlap of neighbouring tokens by layer, beside two chance levels."""
    lines = {
        "overlap": ("next token", "-"),
        "overlap_same_story": ("two tokens of a story", "--"),
        "overlap_chance": ("any two tokens", ":"),
    }
    for site, color, marker in zip(SITES, ("#0072B2", "#D55E00"), "os", strict=True):
        for name, (label, style) in lines.items():
            draw.curve(
                axes,
                usage[site][name],
                f"{SITES[site]}: {label}",
                color,
                marker if name == "overlap" else "",
                style,
            )
    axes.set_ylim(bottom=0)
    draw.finish(axes, "layer", "", "share of winners in common", "y")
    draw.by_layer(axes)


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
                axes.text(
                    b, a, f"{value[a, b]:.2f}", ha="center", va="center", fontsize=size, color=color
                )
    axes.set_xticks(range(layers))
    axes.set_yticks(range(layers))
    axes.tick_params(labelsize=8, length=0)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_title(f"similarity of layers (r):\n{title}", fontsize=9, loc="left")


def _leaks(models: Sequence[Row]) -> Figure:
    """A row for each model: bits a probe reads by layer, and the ablated loss under other masks."""
    figure = Figure(figsize=(8.6, 0.9 + 2.7 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False, width_ratios=(1.4, 1))
    for line, row in zip(grid, models, strict=True):
        _probes(line[0], _extra(row).get("leak"))
        line[0].set_title(f"{row.label}: next token read by a linear probe", fontsize=9, loc="left")
        _losses(line[1], row)
        line[1].set_title("cross-entropy under other masks", fontsize=9, loc="left")
    probed = [line[0] for line in grid if line[0].get_legend_handles_labels()[0]]
    if probed:
        draw.legend(figure, like=probed[0])
    return figure


def _probes(axes: Axes, leak: dict[str, Any] | None) -> None:
    if leak is None:
        draw.empty(axes, "no probe was trained")
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
        layers = leak["probes"].get(name, [])
        value = draw.numbers([one["bits"] for one in layers])
        if not np.isfinite(value).any():
            if layers:
                axes.plot([], [], color="none", label=f"{label}: no value")
            continue
        ends = [one["bits_interval"] or (one["bits"], one["bits"]) for one in layers]
        low, high = draw.numbers(ends).T
        reach = np.maximum(0.0, [value - low, high - value])
        axes.errorbar(
            range(len(layers)),
            value,
            yerr=reach,
            color=color,
            marker=marker,
            linestyle=style,
            markersize=4.5,
            linewidth=1.2,
            capsize=2,
            label=label,
        )
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    draw.finish(axes, "layer", "bits per token over unigrams", "", "y")
    draw.by_layer(axes)


def _losses(axes: Axes, row: Row) -> None:
    record = row.records["gates"]
    losses = {label: record.metric(f"masks_{name}_loss") for name, label in LOSSES.items()}
    known = [
        (label, metric) for label, metric in losses.items() if metric and metric.value is not None
    ]
    if not known:
        draw.empty(axes, "no masks were exchanged")
        return
    for place, (_, metric) in enumerate(known):
        value = float(metric.value or 0.0)
        axes.errorbar(
            [value],
            [place],
            xerr=draw.reach(metric),
            color=draw.PALETTE[place],
            marker=draw.MARKERS[place],
            markersize=6,
            capsize=3,
            linestyle="",
        )
        axes.annotate(
            f"{value:.2f}",
            (value, place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.margins(x=0.12)
    draw.finish(axes, "nats per token (95 % interval)", "", "", "x")
    axes.set_yticks(range(len(known)), [label for label, _ in known], fontsize=8)
    axes.set_ylim(len(known) - 0.5, -0.6)


def _extra(row: Row) -> dict[str, Any]:
    return row.records["gates"].extra


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=float)


def _visible(token: str) -> str:
    """A token as a label: spaces and line ends made visible."""
    text = token.replace("<|endoftext|>", "‹end›").replace("\n", "⏎").replace("\t", "⇥")
    text = text.replace(" ", "·", 1) if text.startswith(" ") else text
    return escape.figure(text) or "∅"
