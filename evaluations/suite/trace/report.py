"""Tables and figures of ``trace``: effects by layer, maps of layer by token, the planted truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.trace.config import METHODS, TOKENS
from evaluations.suite.trace.words import KIND, NAMES, WHERE
from evaluations.tables import Column, Layout, Row, Table, make_tables, rows
from evaluations.tables.draw import by_layer, finish, legend, numbers
from evaluations.tables.headline import Headline

HEADLINE = Headline(
    "Is a fact read in fewer layers?", "layers_oat", "effective layers, OAT", 2, "lower"
)
DRAWN_FROM = "curves"
"""Entry of ``record.extra`` that figures are drawn from."""
COLORS = {
    "oat": "#0072B2",
    "oat_shared": "#56B4E9",
    "gnt": "#D55E00",
    "gnt_dims": "#E69F00",
    "swap": "#009E73",
}
STYLES = {"oat": "-", "gnt": "--", "oat_shared": ":", "gnt_dims": ":", "swap": "-."}
ROLE = {
    "first_subject": "first\nsubject",
    "middle_subject": "middle\nsubject",
    "last_subject": "last\nsubject",
    "next": "next",
    "further": "further",
    "last": "last",
}
PLOTTED = ("oat", "gnt")
Curve = Mapping[str, Any]


def _column(metric: str, heading: str, digits: int, definition: str) -> Column:
    return Column("trace", metric, heading, digits, True, definition=definition)


def _each(
    metric: str,
    heading: str,
    digits: int,
    definition: str,
    methods: Sequence[str] = ("oat", "oat_shared", "gnt"),
) -> tuple[Column, ...]:
    return tuple(
        _column(f"{metric}_{method}", f"{heading}: {NAMES[method]}", digits, definition)
        for method in methods
    )


LAYERS = "exp of the entropy over layers of the average indirect effect (AIE)"
PEAK = "Largest AIE of the layers over their mean"
KNOCKED = "Rank correlation of the AIE with the loss where the same outputs are 0"
LOST = "Loss with nothing restored"
FOUND = "Facts brought back further by the deciding token than by the other; chance 0.5"
MARGIN = "AIE at the deciding token less that at the other"
OTHERS = ("gnt_dims", "swap")


LAYOUTS = (
    Layout(
        "trace",
        "Causal tracing: how sharply restored outputs bring facts back",
        (
            _column("known", "Facts known", 2, "Facts whose attribute is the first choice"),
            Column(
                "trace",
                "facts_traced",
                "Facts traced",
                0,
                definition="Facts whose answer is traced",
            ),
            *_each("layers", "Effective layers", 2, LAYERS),
            *_each("peak", "Peak over mean", 2, PEAK),
            *_each("agreement", "Knock-out r", 2, KNOCKED),
            _column(
                "gain_oat_gnt",
                "AIE, optimal less noise",
                3,
                "Mean difference over layers, outputs, tokens and windows",
            ),
            _column(
                "gain_oat_shared",
                "AIE, optimal less shared",
                3,
                "Mean difference from one constant for all that is restored",
            ),
        ),
        "Lower effective layers: the effect is in fewer layers.",
    ),
    Layout(
        "trace-effects",
        "Largest average indirect effect of restoring single layers",
        tuple(
            _column(
                f"aie_{method}_{kind}_{tokens}_w1",
                f"{NAMES[method].capitalize()}: {KIND[kind]}, {WHERE[tokens]}",
                2,
                "AIE on held-out facts at the layer where it is largest on the others",
            )
            for tokens in TOKENS
            for kind in KIND
            for method in PLOTTED
        ),
    ),
    Layout(
        "trace-controls",
        "Controls of causal tracing",
        (
            *_each("damage", "Probability lost", 2, LOST),
            Column(
                "trace",
                "not_converged",
                "Fits not converged",
                0,
                n=True,
                definition="Constants whose gradient or gap is above the certificate's limits",
            ),
            Column(
                "trace",
                "largest_gap",
                "Largest gap",
                3,
                definition="By how much the least settled fit's loss fell in its second half",
            ),
            *(
                _column(
                    f"span_{method}",
                    f"Other span: {NAMES[method]}",
                    2,
                    "Loss from corrupting as many tokens beside the subject, over the subject's",
                )
                for method in PLOTTED
            ),
            *(
                _column(
                    f"neighbours_gnt_w{window}",
                    f"Neighbours less random layers, window {window}",
                    3,
                    "AIE of neighbouring layers less that of as many random ones, Gaussian noise",
                )
                for window in (5, 9)
            ),
        ),
    ),
    Layout(
        "trace-others",
        "Other corruptions: noise of a size for each dimension, another subject's tokens",
        (
            *_each("layers", "Effective layers", 2, LAYERS, OTHERS),
            *_each("agreement", "Knock-out r", 2, KNOCKED, OTHERS),
            *_each("damage", "Probability lost", 2, LOST, OTHERS),
        ),
    ),
    Layout(
        "trace-truth",
        "Planted facts: is the token that decides found?",
        (
            _column(
                "kept_deciding",
                "Kept, deciding token swapped",
                2,
                "Facts whose answer stays with the deciding token of an unrelated subject",
            ),
            _column(
                "kept_other",
                "Kept, other token swapped",
                2,
                "Facts whose answer stays with the other token of an unrelated subject",
            ),
            *_each("found", "Found", 2, FOUND, METHODS),
            *_each("margin", "Margin", 3, MARGIN, METHODS),
        ),
    ),
    Layout(
        "trace-truth-windows",
        "Planted facts: is the token that decides found by windows of layers?",
        tuple(
            _column(
                f"{metric}_{method}_w{window}",
                f"{heading}: {NAMES[method]}, window {window}",
                digits,
                definition,
            )
            for metric, heading, digits, definition in (
                ("found", "Found", 2, FOUND),
                ("margin", "Margin", 3, MARGIN),
            )
            for method in ("oat", "gnt", "swap")
            for window in (5, 9)
        ),
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Precision, effects, controls, and what else any of the records has."""
    return [table for table in make_tables(LAYOUTS, records) if table.has_values]


def _curves(record: Record) -> list[Curve]:
    """The curves of a record; none of one without its large parts."""
    curves = record.extra.get("curves")
    return curves if isinstance(curves, list) else []


def effects(records: Sequence[Record]) -> list[Figure]:
    """A figure of each model: AIE by layer, tokens across, outputs and windows down."""
    return _each_model(records, _effects)


def maps(records: Sequence[Record]) -> list[Figure]:
    """A figure of each model: AIE of single layers at single tokens."""
    return _each_model(records, _maps)


def truth(records: Sequence[Record]) -> list[Figure]:
    """A figure of each model with planted facts: AIE at the deciding and at the other token."""
    return _each_model(records, _truth)


FIGURES: Mapping[str, Callable[[Sequence[Record]], list[Figure]]] = {
    "": effects,
    "maps": maps,
    "truth": truth,
}


def _each_model(
    records: Sequence[Record], draw: Callable[[Row, Record], Figure | None]
) -> list[Figure]:
    figures = []
    for row in rows(records, "trace"):
        figure = draw(row, row.records["trace"]) if _curves(row.records["trace"]) else None
        if figure is not None:
            figure.set_label(row.model)
            figures.append(figure)
    return figures


def _is_defined(curve: Curve) -> bool:
    return any(value is not None for value in curve["value"])


def _effects(row: Row, record: Record) -> Figure | None:
    curves = [c for c in _curves(record) if c["tokens"] in TOKENS and _is_defined(c)]
    if not curves:
        return None
    across = [tokens for tokens in TOKENS if any(c["tokens"] == tokens for c in curves)]
    down = sorted({(c["kind"], c["window"]) for c in curves})
    shown = [m for m in PLOTTED if any(c["method"] == m for c in curves)]
    shown = shown or [curves[0]["method"]]
    figure = Figure(figsize=(2.6 * len(across) + 0.6, 1.7 * len(down) + 0.9), layout="constrained")
    panels = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
    for number, (line, (kind, window)) in enumerate(zip(panels, down, strict=True)):
        for axes, tokens in zip(line, across, strict=True):
            for method in shown:
                wanted = {"kind": kind, "window": window, "tokens": tokens, "method": method}
                _draw_curve(axes, _find(curves, wanted), method)
            knocked = _find(record.extra.get("knock_out", []), {**wanted, "method": None})
            if knocked is not None:
                axes.plot(
                    numbers(knocked["value"]),
                    color="0.6",
                    linewidth=1,
                    label="loss of a knock-out in the clean run",
                )
            title = "" if number else WHERE[tokens]
            finish(axes, "", f"{KIND[kind]}\nwindow {window}", title)
            by_layer(axes)
            axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            axes.label_outer()
    figure.suptitle(f"{row.label}: average indirect effect of restored outputs", fontsize=10)
    legend(figure, 3, panels[0][0])
    return figure


def _find(curves: Sequence[Curve], wanted: Mapping[str, Any]) -> Curve | None:
    """The curve with these properties; None where there is none."""
    return next((c for c in curves if all(c.get(k) == v for k, v in wanted.items())), None)


def _draw_curve(axes: Axes, curve: Curve | None, method: str, label: str = "") -> None:
    """A line by layer with its 95 % band."""
    if curve is None:
        return
    value, low, high = (numbers(curve[name]) for name in ("value", "low", "high"))
    layers = range(len(value))
    axes.fill_between(layers, low, high, color=COLORS[method], alpha=0.18, linewidth=0)
    axes.plot(
        layers,
        value,
        STYLES[method],
        color=COLORS[method],
        marker="o",
        markersize=3,
        linewidth=1.3,
        label=label or NAMES[method],
    )


def _maps(row: Row, record: Record) -> Figure | None:
    grids = record.extra.get("heat") or []
    known = [one for grid in grids for layer in grid["value"] for one in layer if one is not None]
    if not known:
        return None
    kinds = sorted({one["kind"] for one in grids})
    methods = [m for m in COLORS if any(one["method"] == m for one in grids)]
    n_layers = len(grids[0]["value"])
    top = max(0.1, *known)
    height = 0.3 * n_layers + 1.3
    figure = Figure(figsize=(2.9 * len(kinds) + 0.9, height * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), len(kinds), squeeze=False)
    for line, method in zip(panels, methods, strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            one = _find(grids, {"method": method, "kind": kind})
            assert one is not None
            shown = [at for at, _ in enumerate(one["tokens"]) if one["value"][0][at] is not None]
            grid = numbers([[layer[at] for at in shown] for layer in one["value"]])
            image = axes.imshow(
                grid, vmin=0, vmax=top, cmap="viridis", aspect="auto", origin="lower"
            )
            ticks = [_tick(one, at) for at in shown]
            axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
            axes.set_yticks(range(n_layers) if n_layers <= 12 else range(0, n_layers, 6))
            axes.tick_params(labelsize=7)
            axes.set_title(f"{NAMES[method]}: {KIND[kind]}", fontsize=8)
            axes.set_ylabel("layer", fontsize=8)
    figure.colorbar(image, ax=panels, label="AIE, 0 and above", shrink=0.8)
    figure.suptitle(f"{row.label}: effect of one layer's output at one token", fontsize=10)
    return figure


def _tick(grid: Mapping[str, Any], at: int) -> str:
    """A token's name and the number of facts that have it, which older records lack."""
    n = f"\nn = {grid['n'][at]:,}" if "n" in grid else ""
    return f"{ROLE[grid['tokens'][at]]}{n}"


def _truth(row: Row, record: Record) -> Figure | None:
    curves = [c for c in _curves(record) if c["tokens"] in ("deciding", "other")]
    kinds = sorted({c["kind"] for c in curves})
    shown = [m for m in PLOTTED if any(c["method"] == m for c in curves)]
    if not shown:
        return None
    figure = Figure(figsize=(3.4 * len(kinds) + 0.4, 3.0), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for method in shown:
            for tokens, word in (("deciding", "decides"), ("other", "does not")):
                wanted = {"method": method, "kind": kind, "tokens": tokens, "window": 1}
                _draw_curve(
                    axes, _find(curves, wanted), method, f"{NAMES[method]}, token that {word}"
                )
                if tokens == "other" and axes.lines:
                    axes.lines[-1].set_markerfacecolor("white")
        finish(axes, "", "AIE", f"{KIND[kind]}, single layers")
        by_layer(axes)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.label_outer()
    figure.suptitle(f"{row.label}: is the token found that decides the fact?", fontsize=10)
    legend(figure, 2, panels[0])
    return figure


def details(record: Record, out: Path) -> pd.DataFrame:
    """A row for each point of each curve, with its interval."""
    return pd.DataFrame(
        {
            "model": record.model.get("name"),
            **{name: curve[name] for name in ("method", "kind", "tokens", "window")},
            "layer": layer,
            "aie": curve["value"][layer],
            "low": curve["low"][layer],
            "high": curve["high"][layer],
            "aie_fit": curve["fit"][layer],
            "aie_logit": curve["logit"][layer],
        }
        for curve in _curves(record)
        for layer in range(len(curve["value"]))
    )


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures."""
    return []
