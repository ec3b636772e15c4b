"""Training curves of several runs in one figure: loss by tokens seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from evaluations.tables import draw
from sat_interp._util import escape
from sat_interp._util.errors import UserError
from sat_interp.training.facts import is_number, read_lines

LOG = "log.jsonl"
STREAMS = ("clean", "ablated")
LARGEST = 1e18
"""Numbers from here on are none that a run logs."""
WINDOW = 0.02
"""Share of the run over which training losses are averaged."""


@dataclass(frozen=True)
class RunLog:
    """A training run's name and the lines of its log."""

    name: str
    lines: list[dict[str, Any]]

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(training tokens seen, value) wherever the log has ``key``."""
        rate = self.tokens_per_step
        known = [line for line in self.lines if _can_be_drawn(line.get(key))]
        found = [(line["step"] * rate, line[key]) for line in known]
        tokens, values = zip(*found, strict=True) if found else ((), ())
        return np.array(tokens, float), np.array(values, float)

    @property
    def tokens_per_step(self) -> float:
        """Lines of training carry tokens; validations only their step."""
        known = (one for one in self.lines if one["step"] and _can_be_drawn(one.get("tokens")))
        return next((line["tokens"] / line["step"] for line in known), 1.0)


def _can_be_drawn(value: Any) -> bool:
    return is_number(value) and abs(value) < LARGEST


def read_runs(paths: Iterable[str | Path]) -> tuple[list[RunLog], list[UserError]]:
    """Read runs, and why others cannot be read."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except UserError as error:
            problems.append(error)
    return runs, problems


def read_run(path: str | Path) -> RunLog:
    """A run from its directory or its log; damaged lines are left out, as of a run in progress.

    Raises:
        UserError: there is no log, or it holds something else.
    """
    path = Path(path)
    log = path if path.is_file() else path / LOG
    if not log.is_file():
        raise UserError(f"{path} has no {LOG}: name a directory that sat-train wrote")
    kept, damaged = read_lines(log.read_bytes())
    kept = [line for line in kept if line["step"] < LARGEST]
    if damaged and not kept:
        raise UserError(f"{log} is not the log of a training run")
    if not kept:
        raise UserError(f"{log} is empty: the run has not logged a step yet")
    return RunLog(log.resolve().parent.name, kept)


def draw_curves(runs: Sequence[RunLog]) -> Figure:
    """Training loss of each stream (averaged over WINDOW of the run) and validations as points."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    gated = [run for run in runs if len(run.series("ablated")[0])]
    panels = [("clean", list(runs))] + ([("ablated", gated)] if gated else [])
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    colors = {run.name: draw.color(i) for i, run in enumerate(runs)}
    for panel, (stream, shown) in zip(axes, panels, strict=True):
        for run in shown:
            _draw(panel, run, stream, colors[run.name])
        panel.set_title(f"{stream} stream", fontsize=10, loc="left")
        panel.set_xlabel("training tokens")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.set_xlim(left=0)
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("cross-entropy (nats per token)")
    _leave_out_the_start(axes[0], runs)
    return figure


def _draw(axes: Axes, run: RunLog, stream: str, color: str) -> None:
    tokens, losses = run.series(stream)
    if len(losses):
        width = max(1, round(WINDOW * len(losses)))
        means = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(tokens[width - 1 :], means, color=color, linewidth=1.0, alpha=0.8)
    tokens, losses = run.series(f"validation_{stream}")
    last = f" ({losses[-1]:.3f})" if len(losses) else ""
    axes.plot(
        tokens,
        losses,
        "o",
        color=color,
        markersize=5,
        markeredgecolor="white",
        label=f"{escape.figure(run.name)}{last}",
    )


def _leave_out_the_start(axes: Axes, runs: Sequence[RunLog]) -> None:
    """The first steps fall from ln(vocabulary): they would press all that matters together."""
    late = [
        losses[len(losses) // 10 :]
        for run in runs
        for stream in STREAMS
        if len(losses := run.series(stream)[1])
    ]
    if late:
        everything = np.concatenate(late)
        low, high = everything.min(), everything.max()
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-6)
