"""The table at the end of ``sat-train --study``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from sat_interp._util import escape
from sat_interp.training.study_training import RunOutcome


def study_table(done: Sequence[RunOutcome]) -> Table:
    """A row for each run: steps, tokens, validation perplexity of both streams, minutes, state."""
    table = Table(title="Runs", title_justify="left")
    table.add_column("Run", no_wrap=True)
    for heading in ("Steps", "Tokens", "Perplexity", "Ablated perplexity", "Minutes"):
        table.add_column(heading, justify="right")
    table.add_column("State")
    for item in done:
        table.add_row(escape.terminal(item.run.name), *_figures(item), _state(item))
    return table


def _figures(item: RunOutcome) -> list[str]:
    if item.summary is None:
        return ["–"] * 5
    best = item.summary["best"]
    # a matched run's own figure is that of all its trials
    seconds = item.summary.get("match", item.summary)["seconds"]
    ablated = best.get("ablated_perplexity")
    return [
        f"{item.summary['steps']:,}",
        f"{item.summary['tokens']:,}",
        f"{best['clean_perplexity']:.3f}",
        "–" if ablated is None else f"{ablated:.3f}",
        f"{seconds / 60:.1f}",
    ]


def _state(item: RunOutcome) -> str:
    if item.summary is None:
        return "failed"
    return "already done" if item.was_finished else "trained"
