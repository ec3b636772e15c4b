"""Tables and figures of ``ablate``: the bridge to self-ablation (Table 3), components, methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluations.core.record import Record
from evaluations.suite.ablate.config import COMPARED, METHODS
from evaluations.tables import Cell, Column, Heading, Layout, Row, Table, make_tables, rows
from evaluations.tables.headline import Headline
from evaluations.tables.table import UNSCORED
from sat_interp._util.files import file_name

HEADLINE = Headline(
    "Is zero nearer to the best constant replacement of its components?",
    "spoof_share",
    "spoof share R",
    3,
    "lower",
)
DRAWN_FROM = "components"
"""Entry of ``record.extra`` that figures are drawn from."""
WORDS = {
    "zero": "zero",
    "mean": "mean",
    "mean_all": "mean, all positions",
    "resample": "resample",
    "resample_all": "resample, all pairs",
    "cf": "counterfactual",
    "cf_mean": "counterfactual mean",
    "noise": "Gaussian noise",
    "oa": "optimal",
    "oa_stopped": "optimal, stopped",
    "oa_pos": "optimal, by position",
}
MARKERS = {"head": ("o", "#0072B2", "head"), "mlp": ("s", "#D55E00", "MLP")}
OTHER_MARKER = ("^", "#009E73", "other")
NOT_MEASURED = "#e4e4e4"
REFITS = (
    "Standard deviation of the held-out Delta of the optimal constant over fits on bootstrap "
    "samples of the prompts"
)
SMALLEST = 1e-5
"""Costs below are drawn here on log axes, in nats."""
ROOM = (0.13, 0.04)
"""Width and height that a component's name takes, as shares of the axes."""
Point = tuple[Mapping[str, Any], float, float]
"""A component and its costs by two methods."""
NO_MORE = 1e-6
"""What a fit has still to gain is drawn here where it is less, in nats."""


def _column(
    metric: str, heading: str, digits: int, definition: str, interval: bool = True
) -> Column:
    return Column("ablate", metric, heading, digits, interval, definition=definition)


BRIDGE = Layout(
    "ablate-bridge",
    "Spoofing: what of the cost of zero is not lost information",
    (
        _column(
            "spoof_share",
            "Spoof share R",
            3,
            "(Sum of Delta_zero - sum of Delta_oa) / sum of Delta_zero over heads and MLPs: "
            "what of the cost of zero is not lost information",
        ),
        _column("spoof_share_heads", "R, heads", 3, "The same over heads"),
        _column("spoof_share_mlps", "R, MLPs", 3, "The same over MLPs"),
        _column(
            "beyond_oa_mean_all",
            "Mean beyond optimal",
            3,
            "The same with the mean over prompts and positions in place of zero",
        ),
        _column(
            "constant_size",
            "|a*| / rms",
            2,
            "Median over heads and MLPs of the optimal constant's norm over the root mean "
            "square of the activation: 0 where zero is optimal",
            False,
        ),
        _column(
            "losers_own_share",
            "R, units off by gates",
            3,
            "Spoof share of the units that the model's own gates switch off, constants fitted "
            "together",
        ),
        _column(
            "losers_top_share",
            "R, units outside top k",
            3,
            "Spoof share of the units outside the top k by absolute activation",
        ),
        _column(
            "losers_random_share", "R, random units", 3, "Spoof share of all but k random units"
        ),
        _column(
            "effective_components",
            "Effective components",
            1,
            "exp of the entropy of Delta_oa over heads and MLPs: how many carry the cost",
        ),
        _column(
            "redundancy",
            "Redundancy of heads",
            3,
            "Delta_oa of all heads of a layer minus the sum over its heads, mean over layers",
        ),
        _column(
            "prior_kl",
            "Ceiling I",
            2,
            "KL of the predictions from their mean: the cost of knowing nothing",
            False,
        ),
    ),
    "Lower R: zero is nearer to the best constant. Self-ablation predicts R below the baseline's.",
)

COMPONENTS = Layout(
    "ablate-components",
    "Cost of ablating heads and MLPs, summed (nats)",
    (
        _column("task_accuracy", "Task accuracy", 2, "Share of prompts answered right", False),
        *(
            _column(
                f"delta_{method}",
                WORDS[method].capitalize(),
                2,
                f"Sum over heads and MLPs of Delta with {WORDS[method]} in their place, "
                "held-out prompts",
            )
            for method in METHODS
            if method != "resample_all"
        ),
        _column("not_converged", "Not converged", 0, "Fits whose certificate does not hold", False),
        _column(
            "overfit",
            "Overfitted",
            0,
            "Components whose held-out Delta_oa exceeds the fitted one by more than a fifth; "
            "they are in no comparison",
            False,
        ),
    ),
)

METHODS_TABLE = Layout(
    "ablate-methods",
    "Optimal ablation against other methods, over heads and MLPs",
    tuple(
        _column(
            f"{metric}_oa_{method}",
            f"{heading}, {WORDS[method]}",
            2,
            f"{definition} {WORDS[method]}",
        )
        for metric, heading, definition in (
            ("spearman", "Rank r", "Rank correlation over components of Delta_oa and Delta by"),
            ("median_share", "Median share", "Median of min(1, Delta_oa / Delta), Delta by"),
        )
        for method in COMPARED
    ),
)

LAYOUTS = (BRIDGE, COMPONENTS, METHODS_TABLE)


def tables(records: Sequence[Record]) -> list[Table]:
    """Table 3, sums over components, methods compared, and each model's components."""
    models = rows(records, "ablate")
    whole = [row for row in models if _components(row.records["ablate"])]
    shown = [table for table in make_tables(LAYOUTS, records) if table.has_values]
    return [*shown, *map(_components_table, whole)]


def _components(record: Record) -> list[dict[str, Any]]:
    """Return what was measured of each component; nothing of a record without its large parts."""
    components = record.extra.get("components")
    return components if isinstance(components, list) else []


def _components_table(row: Row) -> Table:
    """The held-out costs of each component of one model."""
    components = _components(row.records["ablate"])
    methods = [m for m in METHODS if any(m in one["held"] for one in components)]
    is_refitted = any(one.get("refit_sd") is not None for one in components)
    body = [
        [
            Cell(one["name"], "label", (), {"component": one["name"]}),
            *(_cost(one, method) for method in methods),
            _number(one, "size", 2),
            *([_number(one, "refit_sd", 4)] if is_refitted else []),
        ]
        for one in components
    ]
    headings = (
        Heading("Component"),
        *(
            Heading(WORDS[m].capitalize(), None, f"Held-out Delta, nats: {WORDS[m]}")
            for m in methods
        ),
        Heading("|a*| / rms", None, "The optimal constant's norm over the activation's"),
        *([Heading("SD of refits", None, REFITS)] if is_refitted else []),
    )
    notes = ["* overfitted: held-out cost above the fitted one by more than a fifth."]
    if marked := row.records["ablate"].extra.get("marked"):
        notes.append(f"The model {marked}.")
    return Table(
        f"ablate-components-{file_name(row.model)}",
        f"Components of {row.model}: held-out Delta, nats",
        headings,
        body,
        notes=notes,
    )


def _cost(one: Mapping[str, Any], method: str) -> Cell:
    held = one["held"].get(method) or {}
    value = held.get("delta")
    exact = {
        f"{method}{end}": held.get(key)
        for end, key in (("", "delta"), ("_low", "low"), ("_high", "high"))
    }
    exact[f"{method}_fit"] = one["fit"].get(method)
    if value is None:
        return Cell(UNSCORED, "none", (), exact)
    return Cell(f"{value:.4f}" + (" *" if held.get("overfit") else ""), "value", (), exact)


def _number(one: Mapping[str, Any], name: str, digits: int) -> Cell:
    value = one.get(name)
    shown = UNSCORED if value is None else f"{value:.{digits}f}"
    return Cell(shown, "value", (), {name: value})


def warnings(records: Sequence[Record]) -> list[str]:
    """A line for each model that fails the task, or whose constants touch the cap."""
    lines = []
    for record in records:
        name = record.model["name"]
        if marked := record.extra.get("marked"):
            lines.append(f"{name} {marked}; costs say little of how the task is done")
        capped = [
            one["name"]
            for one in _components(record)
            if any(fit["capped"] for fit in one["certificates"].values())
        ]
        if capped:
            lines.append(
                f"{name}: constants at the cap, whose best values may lie at infinity: "
                f"{', '.join(capped)}"
            )
    return lines


# Figures -----------------------------------------------------------------------------------------


def heat_maps(records: Sequence[Record]) -> list[Figure]:
    """Heads by layer, the MLPs beside them: a map for each method, all on one scale."""
    return [figure for row in rows(records, "ablate") if (figure := _heat_map(row))]


def _heat_map(row: Row) -> Figure | None:
    components = [one for one in _components(row.records["ablate"]) if one["kind"] in MARKERS]
    methods = [m for m in METHODS if any(m in one["held"] for one in components)]
    if not components or not methods:
        return None
    n_layers = 1 + max(one["layer"] for one in components)
    n_heads = 1 + max(
        (one["index"] or 0 for one in components if one["kind"] == "head"), default=-1
    )
    maps = {m: _map(components, m, n_layers, n_heads) for m in methods}
    known = np.concatenate([grid[np.isfinite(grid)] for grid in maps.values()])
    if not len(known):
        return None
    norm = LogNorm(max(SMALLEST, known.min()), max(10 * SMALLEST, known.max()))
    across = min(5, len(methods))
    down = -(-len(methods) // across)
    figure = Figure(
        figsize=(2.2 * across + 1, 0.34 * n_layers * down + 1.5 * down), layout="constrained"
    )
    figure.set_label(row.model)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for place, axis in enumerate(axes.flat):
        if place >= len(methods):
            axis.set_axis_off()
            continue
        image = axis.imshow(maps[methods[place]], norm=norm, cmap="viridis", aspect="auto")
        axis.set_facecolor(NOT_MEASURED)
        axis.set_title(WORDS[methods[place]], fontsize=8)
        axis.set_xticks(range(n_heads + 1), [*(str(h) for h in range(n_heads)), "MLP"], fontsize=7)
        axis.set_yticks(range(n_layers), [str(layer) for layer in range(n_layers)], fontsize=7)
        axis.tick_params(labelbottom=place + across >= len(methods))
        axis.axvline(n_heads - 0.5, color="white", linewidth=1.5)
    is_whole = all(np.isfinite(grid).all() for grid in maps.values())
    words = ["head" if n_heads else "", "" if is_whole else "(grey: not measured)"]
    figure.supxlabel(" ".join(words).strip(), fontsize=8)
    figure.supylabel("layer", fontsize=8)
    figure.colorbar(image, ax=axes, label="Δ, nats (held out)", shrink=0.8)
    figure.suptitle(f"{row.label}: cost of ablating each component", fontsize=10)
    return figure


def _map(
    components: Sequence[Mapping[str, Any]], method: str, n_layers: int, n_heads: int
) -> np.ndarray:
    grid = np.full((n_layers, n_heads + 1), np.nan)
    for one in components:
        value = (one["held"].get(method) or {}).get("delta")
        if value is not None:
            column = n_heads if one["kind"] == "mlp" else one["index"]
            grid[one["layer"], column] = max(value, SMALLEST)
    return grid


def scatters(records: Sequence[Record]) -> list[Figure]:
    """Delta_oa against Delta by zero and by the mean, on log axes with the identity line."""
    figures = []
    for row in rows(records, "ablate"):
        components = [one for one in _components(row.records["ablate"]) if one["kind"] != "heads"]
        points = {
            other: [(one, *pair) for one in components if (pair := _pair(one, other, "oa"))]
            for other in ("zero", "mean", "mean_all")
        }
        others = [other for other in points if points[other]][:2]
        if not others:
            continue
        figure = Figure(figsize=(3.6 * len(others) + 0.6, 3.8), layout="constrained")
        figure.set_label(row.model)
        axes = figure.subplots(1, len(others), squeeze=False)[0]
        for axis, other in zip(axes, others, strict=True):
            _scatter(axis, points[other], other)
        figure.suptitle(f"{row.label}: what optimal constants leave of the cost", fontsize=10)
        figures.append(figure)
    return figures


def _pair(one: Mapping[str, Any], first: str, second: str) -> tuple[float, float] | None:
    """A component's costs by two methods, as they are drawn; None where one is not known."""
    x, y = ((one["held"].get(method) or {}).get("delta") for method in (first, second))
    return None if x is None or y is None else (max(x, SMALLEST), max(y, SMALLEST))


def _scatter(axis: Any, points: Sequence[Point], other: str) -> None:
    values = [value for _, *pair in points for value in pair]
    ends = [min(values) / 1.5, max(values) * 1.5]
    for one, x, y in points:
        marker, color, _ = MARKERS.get(one["kind"], OTHER_MARKER)
        face = "none" if one["held"]["oa"].get("overfit") else color
        axis.plot(x, y, marker, color=color, markersize=5, markerfacecolor=face)
    _name_points(axis, points, ends)
    axis.plot(ends, ends, color="#999999", linewidth=1, linestyle="--", label="equal")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axis.set_xlabel(f"Δ, {WORDS[other]} (nats)")
    axis.set_ylabel("Δ, optimal (nats)")
    handles = _handles([one for one, *_ in points], has_markers=True)
    axis.legend(
        handles=[*handles, *axis.get_legend_handles_labels()[0]],
        fontsize=7,
        loc="upper left",
        title="hollow: overfitted",
        title_fontsize=6,
    )


def _name_points(axis: Any, points: Sequence[Point], ends: Sequence[float]) -> None:
    """Name components beside their points, those that cost most first, where there is room."""
    low, high = np.log(ends)
    named: list[np.ndarray] = []
    for one, x, y in sorted(points, key=lambda point: -point[2]):
        at = (np.log([x, y]) - low) / (high - low)
        if any((np.abs(at - other) < ROOM).all() for other in named):
            continue
        named.append(at)
        is_left = at[0] < 0.5
        axis.annotate(
            one["name"],
            (x, y),
            fontsize=5,
            textcoords="offset points",
            xytext=(4, 2) if is_left else (-4, -7),
            ha="left" if is_left else "right",
        )


def _handles(components: Sequence[Mapping[str, Any]], has_markers: bool) -> list[Line2D]:
    """Entries of a legend for the kinds that there are: heads, MLPs, others."""
    kinds = {MARKERS.get(one["kind"], OTHER_MARKER) for one in components}
    known = [one for one in (*MARKERS.values(), OTHER_MARKER) if one in kinds]
    return [
        Line2D([], [], color=color, marker=marker, markersize=5, linestyle="", label=label)
        if has_markers
        else Line2D([], [], color=color, label=label)
        for marker, color, label in known
    ]


def convergence(records: Sequence[Record]) -> list[Figure]:
    """What each fit has still to gain, by evaluations: of records that keep the course of fits."""
    return [figure for row in rows(records, "ablate") if (figure := _convergence(row))]


def _convergence(row: Row) -> Figure | None:
    components = [one for one in _components(row.records["ablate"]) if one.get("course")]
    if not components:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    figure.set_label(row.model)
    axis = figure.subplots()
    for one in components:
        course = np.array(one["course"])
        left = course - course.min()
        n = 1 + int(np.argmax(left == 0))
        _, color, _ = MARKERS.get(one["kind"], OTHER_MARKER)
        axis.plot(1 + np.arange(n), np.maximum(left[:n], NO_MORE), color=color, alpha=0.7)
        if not one["certificates"]["oa"]["converged"]:
            axis.annotate(
                one["name"],
                (n, NO_MORE),
                fontsize=6,
                ha="right",
                va="bottom",
                xytext=(-4, 3),
                textcoords="offset points",
            )
    axis.set(yscale="log", xlabel="evaluations on all prompts, from the best start on")
    axis.set_ylabel("Δ, optimal, minus its last value (nats)")
    axis.legend(handles=_handles(components, has_markers=False), fontsize=7, loc="upper right")
    figure.suptitle(f"{row.label}: convergence of the fits (named: not converged)", fontsize=10)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Record]], list[Figure]]] = {
    "": scatters,
    "maps": heat_maps,
    "convergence": convergence,
}


def details(record: Record, out: Path) -> pd.DataFrame:
    """A row for each component and method: its costs with their interval, fitted and held out."""
    return pd.DataFrame(
        {
            "model": record.model.get("name"),
            "component": one["name"],
            "kind": one["kind"],
            "layer": one["layer"],
            "index": one["index"],
            "method": method,
            **held,
            "delta_fit": one["fit"].get(method),
            "oa_refit_sd": one.get("refit_sd"),
            "size": one["size"],
            "cosine": one["cosine"],
            **{
                f"oa_{key}": one["certificates"].get("oa", {}).get(key)
                for key in ("gradient", "gap", "converged", "capped", "spread")
            },
        }
        for one in _components(record)
        for method, held in one["held"].items()
    )


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures."""
    return []
