"""Figures made from records: their style, and PNG and SVG files of them, side by side.

A figure that fails costs no other figure, no table, and no model the figure of the others.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from evaluations.core.record import Metric, Record
from sat_interp._util.errors import UserError, system_reason
from sat_interp._util.files import file_name, write_atomically

# Okabe and Ito's colours, distinct for colour-blind readers too, then more for studies; markers
# and line styles distinguish them in grey.
PALETTE = (
    "#000000",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#0072B2",
    "#D55E00",
    "#7F7F7F",
    "#882255",
    "#8C6D31",
)
MARKERS = "os^Dv<>PX*"
STYLES = ("-", "--", ":", "-.")
BELOW = 30
"""Points between a panel and its legend: room for the numbers and name of its axis."""

Draw = Callable[[Sequence[Record]], list[Figure]]
"""Draws figures of records; an empty list where there is nothing to draw."""

log = logging.getLogger(__name__)


def save(figures: Mapping[str, Sequence[Figure]], out: Path, stem: str) -> list[Path]:
    """Write figures as PNG (200 dpi) and SVG, each file whole.

    Args:
        figures: by name. The files are called ``<stem>-<name>``, or ``<stem>`` for the name "",
            followed by the figure's label (`Figure.set_label`) or, of several, its number.

    Returns:
        The files, PNG then SVG of each.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    for name, several in figures.items():
        for place, figure in enumerate(several, start=1):
            part = str(figure.get_label()) or (str(place) if len(several) > 1 else "")
            parts = [stem, name, file_name(part) if part else ""]
            written += _save(figure, out / "-".join(filter(None, parts)))
    return written


def _save(figure: Figure, path: Path) -> list[Path]:
    written = []
    for ending, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        content = io.BytesIO()
        figure.savefig(content, format=ending, **options)
        figure.set_layout_engine("none")  # it is laid out; the second file need not do it again
        written.append(
            write_atomically(path.with_name(f"{path.name}.{ending}"), content.getvalue())
        )
    return written


def write(
    figures: Mapping[str, Draw], records: Sequence[Record], out: Path, stem: str
) -> tuple[list[Path], list[str]]:
    """Draw and save each figure of all records it can be drawn of.

    Where a figure fails it is drawn once more, of those records it can be drawn of alone.

    Args:
        figures: by name, as in `save`.

    Returns:
        The files written, and a line for each figure or model that is left out, with the reason.
    """
    written: list[Path] = []
    failures: list[str] = []
    for name, draw in figures.items():

        def attempt(some: Sequence[Record], name: str = name, draw: Draw = draw) -> list[Path]:
            return save({name: draw(some)}, out, stem)

        paths, lines = _write(" ".join(filter(None, (stem, name))), attempt, records)
        written += paths
        failures += lines
    return written, failures


def _write(
    title: str, attempt: Callable[[Sequence[Record]], list[Path]], records: Sequence[Record]
) -> tuple[list[Path], list[str]]:
    try:
        return attempt(records), []
    except OSError as error:  # a full disk is full for one model, too
        return [], [f"{title}: no figure ({system_reason(error)})"]
    except Exception as error:
        log.debug("%s is not drawn", title, exc_info=True)
        whole = f"{title}: no figure ({reason_of(error)})"
    if len(records) < 2:
        return [], [whole]
    failed = {at: why for at, one in enumerate(records) if (why := _failure(attempt, one))}
    rest = [record for at, record in enumerate(records) if at not in failed]
    lines = [f"{title}: no figure of {_name(records[at])} ({why})" for at, why in failed.items()]
    if not failed or (not rest and len(set(failed.values())) == 1):
        return [], [whole]
    if not rest:
        return [], lines
    try:
        return attempt(rest), lines
    except Exception as error:
        return [], [*lines, f"{title}: no figure ({reason_of(error)})"]


def _failure(attempt: Callable[[Sequence[Record]], list[Path]], record: Record) -> str:
    """Why a figure of one record fails; "" where it does not."""
    try:
        attempt([record])
    except Exception as error:
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _name(record: Record) -> str:
    return str(record.model.get("name", "?"))


def color(index: int) -> str:
    """The colour of the model at a place; after the last colour comes the first again."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """The marker of the model at a place."""
    return MARKERS[index % len(MARKERS)]


def line_style(index: int) -> str:
    """The line style of the model at a place."""
    return STYLES[index % len(STYLES)]


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """Values of a record as an array: what does not exist is nan, which is not drawn."""
    return np.array(values, dtype=np.float64)


def reach(metric: Metric) -> Any:
    """The interval of a metric as lengths of an error bar; None where it has none."""
    if metric.interval is None or metric.value is None:
        return None
    low, high = metric.interval.low, metric.interval.high
    # Rounding may put a percentile beyond the value itself; a bar has no negative length.
    return [[max(0.0, metric.value - low)], [max(0.0, high - metric.value)]]


def finish(axes: Axes, x: str, y: str, title: str, grid: Any = "both") -> None:
    """Label a panel, and leave away the frame that data does not need."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def curve(
    axes: Axes, values: Mapping[str, Any], label: str, color: str, marker: str, style: str = "-"
) -> None:
    """Draw a value of each layer as a line, its 95 % interval (1.96 standard errors) as bars.

    Args:
        values: ``value`` and ``standard_error`` of each layer; an error that is missing is 0.
    """
    value = numbers(values["value"])
    axes.errorbar(
        range(len(value)),
        value,
        yerr=1.96 * np.nan_to_num(numbers(values["standard_error"])),
        label=label,
        color=color,
        marker=marker,
        linestyle=style,
        linewidth=1.2,
        markersize=4,
        capsize=2,
    )


def by_layer(axes: Axes) -> None:
    """Number the layers on the x axis in whole numbers."""
    axes.set_xlabel("layer", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def empty(axes: Axes, reason: str) -> None:
    """Say in a panel why nothing is drawn in it."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.text(
        0.5,
        0.5,
        reason,
        ha="center",
        va="center",
        fontsize=8,
        color="0.4",
        wrap=True,
        transform=axes.transAxes,
    )


def legend(where: Axes | Figure, columns: int = 3, like: Axes | None = None) -> None:
    """Put a legend below a panel or a figure, where it covers no data.

    Args:
        like: of a figure, the panel whose legend it is.
    """
    source = like if like is not None else where
    if isinstance(source, Figure):
        source = source.axes[0]
    handles, labels = source.get_legend_handles_labels()
    if not handles:
        return
    style: dict[str, Any] = {"ncols": min(columns, len(labels)), "frameon": False, "fontsize": 8}
    if isinstance(where, Figure):
        where.legend(handles, labels, loc="outside lower center", **style)
    else:
        below = offset_copy(where.transAxes, where.get_figure(root=True), 0, -BELOW, "points")
        where.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=below,
            **style,
        )
