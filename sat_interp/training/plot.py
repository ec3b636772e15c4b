"""The loss figure of a run, drawn from its log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from sat_interp._util.files import write_atomically

FEW = 10
"""Fewer points than this do not make a line one can see."""

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLORS = {"clean": "#0072B2", "ablated": "#D55E00"}


def draw_losses(log: list[dict[str, Any]], path: Path, title: str = "") -> Path:
    """Training loss of each stream against the step, with the validations as points.

    Raises:
        OSError: the figure cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for stream, color in COLORS.items():
        lines = [line for line in log if stream in line]
        if lines:
            axes.plot(
                [line["step"] for line in lines],
                [line[stream] for line in lines],
                color=color,
                linewidth=1.0,
                alpha=0.75,
                label=f"{stream}, training",
                marker="." if len(lines) < FEW else None,
                markersize=3,
            )
        name = f"validation_{stream}"
        points = [line for line in log if line.get(name) is not None]
        if points:
            axes.plot(
                [point["step"] for point in points],
                [point[name] for point in points],
                color=color,
                linestyle="",
                marker="o",
                markersize=5,
                markeredgecolor="white",
                label=f"{stream}, validation (last {points[-1][name]:.3f})",
            )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.02)
    axes.legend(frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    return write_atomically(path, content.getvalue())
