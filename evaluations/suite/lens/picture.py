"""Figures of lenses: curves over layers, edits, and layers by tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from evaluations.suite.lens.words import CAVEAT, WORDS
from evaluations.tables.draw import by_layer, finish, legend, numbers
from evaluations.tables.view import Row
from sat_interp._util import escape

COLORS = {
    "logit": "#7F7F7F",
    "tuned": "#0072B2",
    "tuned-paper": "#56B4E9",
    "oca": "#D55E00",
    "shared": "#E69F00",
    "mean": "#009E73",
    "resample": "#CC79A7",
}
MARKERS = {
    "logit": "x",
    "tuned": "s",
    "tuned-paper": "D",
    "oca": "o",
    "shared": "^",
    "mean": "v",
    "resample": "P",
}
ACROSS = 3
"""Models side by side."""
MOST_TOKENS = 24
"""Tokens of a prompt that are drawn, from its end."""
LETTERS = 9
"""Letters of a token that are drawn."""
PALE = LinearSegmentedColormap.from_list("pale", ("#FFFFFF", "#9ECAE1", "#2171B5"))


def curves(models: Sequence[Row]) -> list[Figure]:
    """KL and top-1 agreement of each lens by layer: a column for each model."""
    found = []
    for start in range(0, len(models), ACROSS):
        some = models[start : start + ACROSS]
        figure = Figure(figsize=(3.4 * len(some) + 0.6, 6.0), layout="constrained")
        axes = figure.subplots(2, len(some), squeeze=False, sharex="col", sharey="row")
        for column, row in enumerate(some):
            record = row.records["lens"]
            floor = record.extra["floor"]
            top, low = axes[:, column]
            _panel(top, record.extra["layers"], "kl")
            top.axhline(floor, color="0.5", linestyle=":", linewidth=1, label="mean prediction")
            top.set_yscale("log")
            finish(top, "", "KL(model ‖ lens), nats" if not column else "", row.label)
            _panel(low, record.extra["layers"], "agreement")
            low.set_ylim(0, 1)
            finish(low, "", "top-1 agreement" if not column else "", "")
            by_layer(low)
        legend(figure, columns=1 + len(some))
        found.append(figure)
    return found


def _panel(axes: Axes, layers: Sequence[Mapping[str, Any]], name: str) -> None:
    for kind in dict.fromkeys(one["lens"] for one in layers):
        own = [one for one in layers if one["lens"] == kind]
        x = [one["layer"] for one in own]
        value, low, high = (numbers([one[f"{name}{end}"] for one in own]) for end in ENDS)
        axes.plot(
            x, value, MARKERS[kind] + "-", color=COLORS[kind], markersize=4, label=WORDS[kind]
        )
        axes.fill_between(x, low, high, color=COLORS[kind], alpha=0.2, linewidth=0)


ENDS = ("", "_low", "_high")


def edits(models: Sequence[Row]) -> list[Figure]:
    """Magnitude and direction by layer, a figure for each model: directions of two bases."""
    return [_edits(row) for row in models]


def _edits(row: Row) -> Figure:
    rows: list[dict[str, Any]] = row.records["lens"].extra["edits"]
    known = list(dict.fromkeys(one["basis"] for one in rows))
    kinds = list(dict.fromkeys(one["edit"] for one in rows))
    figure = Figure(figsize=(2.9 * len(kinds) + 0.8, 5.4), layout="constrained")
    figure.set_label(row.model)
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey=True)
    basis = known[0]
    for place, (figure_name, line) in enumerate((("magnitude", axes[0]), ("direction", axes[1]))):
        for axis, edit in zip(line, kinds, strict=True):
            for which, style in ((basis, "-"), ("random", ":")):
                some = [one for one in rows if (one["basis"], one["edit"]) == (which, edit)]
                _lines(axis, some, figure_name, style, which == basis)
            title = edit if place == 0 else ""
            finish(axis, "", figure_name if axis is line[0] else "", title)
            by_layer(axis)
    axes[0, 0].set_ylim(min(0.0, axes[0, 0].get_ylim()[0]), 1)
    legend(figure, columns=5)
    figure.suptitle(
        f"{row.label}: lenses under edits of the stream\nsolid: directions of the {basis} lens; "
        "dotted: random\n" + "\n".join(textwrap.wrap(CAVEAT, 120)),
        fontsize=8,
    )
    return figure


def _lines(
    axes: Axes, some: Sequence[Mapping[str, Any]], name: str, style: str, labelled: bool
) -> None:
    for kind in dict.fromkeys(one["lens"] for one in some):
        own = [one for one in some if one["lens"] == kind]
        axes.plot(
            [one["layer"] for one in own],
            numbers([one[name] for one in own]),
            style,
            marker=MARKERS[kind] if labelled else None,
            color=COLORS[kind],
            markersize=4,
            linewidth=1.2,
            label=WORDS[kind] if labelled else None,
        )


def layers_by_tokens(row: Row, prompt: Mapping[str, Any], kind: str) -> Figure:
    """A lens on a prompt: the top token at each layer and position, coloured by its probability.

    The model's own prediction is the top row; where a lens has the same token, it is bold.
    """
    layers = prompt["lenses"][kind]
    whole = [*layers, prompt["model"]]
    tokens = prompt["tokens"][-MOST_TOKENS:]
    shape = len(whole), len(tokens)
    figure = Figure(figsize=(0.74 * shape[1] + 1.4, 0.34 * shape[0] + 1.5), layout="constrained")
    figure.set_label(row.model)
    axes = figure.subplots()
    p = numbers([one["p"][-MOST_TOKENS:] for one in whole])
    image = axes.imshow(p, vmin=0, vmax=1, cmap=PALE, aspect="auto", origin="lower")
    final = prompt["model"]["top"][-MOST_TOKENS:]
    for layer, one in enumerate(whole):
        for place, token in enumerate(one["top"][-MOST_TOKENS:]):
            is_dark = np.nan_to_num(p[layer, place]) > 0.6
            is_same = token == final[place]
            axes.text(
                place,
                layer,
                _token(token),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if is_dark else "black",
                fontweight="bold" if is_same else "normal",
            )
    axes.set_xticks(range(shape[1]), [_token(one) for one in tokens], fontsize=7, rotation=45)
    axes.set_yticks(range(shape[0]), [*(str(n) for n in range(len(layers))), "model"], fontsize=8)
    axes.set_xlabel("token", fontsize=9)
    axes.set_ylabel("stream before block", fontsize=9)
    axes.set_title(
        f"{row.label}: {WORDS[kind]} lens, top prediction (bold: the model's)",
        fontsize=9,
        loc="left",
    )
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8)
    return figure


def _token(text: str) -> str:
    """A token as a cell shows it: spaces and ends of lines marked, long ones cut."""
    marked = text.replace("\n", "⏎").replace(" ", "·")
    cut = marked if len(marked) <= LETTERS else marked[: LETTERS - 1] + "…"
    return escape.figure(cut)
