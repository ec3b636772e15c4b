"""``sat-eval accuracy``: on which tasks models are right, before any circuit is searched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluations import tables
from evaluations.comparison.options import AccuracyOptions
from evaluations.core.inputs import default_task
from evaluations.core.model_source import sources
from evaluations.core.models import LoadedModel
from evaluations.core.outcome import Outcome
from evaluations.output import console
from evaluations.tables import Cell, Heading, Table
from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import check_name, make_task
from sat_interp._util import progress
from sat_interp._util.errors import UserError, first_line

STREAMS = (("clean_perplexity", "Perplexity"), ("ablated_perplexity", "Ablated stream"))
"""Validation perplexities that a model's card records, and their headings."""


def print_accuracy(models: Sequence[str], options: AccuracyOptions) -> list[Path]:
    """Print the accuracy of each model on each task, and write the table.

    A model that cannot be read stops no other; a task that a model's tokenizer does not allow is
    left out with its reason.

    Returns:
        The files written: ``accuracy.md``, ``.csv`` and ``.tex``.

    Raises:
        UserError: an unknown task; no model could be read; or, when all else is written, the ones
            that could not.
    """
    for task in options.tasks:
        check_name(task)
    outcome, rows = Outcome(), list[list[Cell]]()
    unusable: dict[str, list[str]] = defaultdict(list)
    for source in progress.bar(sources(list(models), None), desc="accuracy", unit="model"):
        with outcome.noting(source.label, "accuracy"):
            loaded = source.load(options.device, "float32")
            rows.append(_row(loaded, options, unusable))
    if not rows:
        outcome.raise_failures()
    notes = [f"{reason} ({', '.join(names)})" for reason, names in unusable.items()]
    table = _table(rows, options, notes)
    written = tables.write([table], Path(options.out), "accuracy")
    tables.show([table], console())
    outcome.raise_failures()
    return written


def _row(
    loaded: LoadedModel, options: AccuracyOptions, unusable: dict[str, list[str]]
) -> list[Cell]:
    cells = [Cell.label("model", loaded.name)]
    for task in options.tasks or (default_task(loaded),):
        try:
            cells.append(_accuracy(loaded, task, options))
        except UserError as error:
            cells.append(Cell.none(task))
            unusable[first_line(error)].append(loaded.name)
    card = getattr(loaded.model, "card", None) or {}
    return [*cells, *(_perplexity(card, name) for name, _ in STREAMS)]


def _accuracy(loaded: LoadedModel, task: str, options: AccuracyOptions) -> Cell:
    prompts = make_task(task, loaded.tokenizer, options.prompts, options.seed)
    found = competence(loaded.model, prompts)
    exact = {task: found.accuracy, f"{task}_low": found.low, f"{task}_high": found.high}
    interval = f"[{found.low:.2f}, {found.high:.2f}]"
    return Cell(f"{found.accuracy:.3f}", "value", (interval,), {**exact, f"{task}_n": found.n})


def _perplexity(card: dict[str, Any], name: str) -> Cell:
    value = card.get(name)
    return Cell.none(name) if value is None else Cell(f"{value:.3f}", exact={name: value})


def _table(rows: list[list[Cell]], options: AccuracyOptions, notes: list[str]) -> Table:
    headings = (
        Heading("Model"),
        *(Heading(task, "higher") for task in options.tasks or ("task",)),
        *(Heading(title, "lower") for _, title in STREAMS),
    )
    caption = (
        f"Share of {options.prompts} prompts (seed {options.seed}) on which the right answer has a "
        "higher logit than the wrong one; Wilson interval, 95 %; chance is 0.5. Perplexity: of "
        "validation in training, from the model's card."
    )
    return Table("accuracy", "Accuracy on tasks", headings, rows, caption, notes)
