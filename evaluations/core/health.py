"""Health marks: warnings about a measurement, shown in every table with its values.

An evaluation whose measurement is unsound adds short phrases to its record, under
``extra["health"]``: ``{"health": ["97 % of the features are dead"]}``. Every table (terminal,
Markdown, LaTeX, CSV, HTML) then marks the model with a dagger, explains it in a note, and prints no
value of that evaluation in bold.
"""

from __future__ import annotations

from collections.abc import Iterable

from evaluations.core.record import Record

DAGGER = "†"
KEY = "health"
NOT_CONVERGED = "not converged"
"""Reason of the L0 of an autoencoder that explains less than half of the variance."""
OF_TASKS = ("acdc", "circuits", "ablate")
"""Evaluations of how a model does a task."""
NAMED = 4
"""Number of models named after a phrase."""


def stated(record: Record) -> list[str]:
    """Return the phrases in ``record.extra["health"]``."""
    entries = record.extra.get(KEY)
    return (
        [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    )


def phrases(record: Record) -> list[str]:
    """Return warnings about the measurement as short phrases; an empty list if there are none.

    They are the phrases in the record. For records without phrases they are derived: a model fails
    the task (``extra["marked"]`` of ``OF_TASKS``), or an autoencoder did not converge
    (a reason of ``l0``).
    """
    marks = stated(record)
    if marks:
        return list(dict.fromkeys(marks))
    if record.evaluation in OF_TASKS and isinstance(marked := record.extra.get("marked"), str):
        marks.append(marked.partition(":")[0].partition(";")[0])
    if record.evaluation == "sae" and (l0 := record.metric("l0")) and NOT_CONVERGED in l0.reasons:
        marks.append(f"{NOT_CONVERGED}: explains less than half of the variance")
    return marks


def explained(marked: Iterable[tuple[str, Record]]) -> list[str]:
    """Return a sentence for each phrase, with the models it applies to, for notes of a table.

    Args:
        marked: pairs of a model's name in the table and a record.
    """
    by_phrase: dict[str, list[str]] = {}
    for name, record in marked:
        for phrase in phrases(record):
            names = by_phrase.setdefault(f"{record.evaluation}: {phrase}", [])
            names += [name] * (name not in names)
    return [f"{DAGGER} {phrase} ({_listed(names)})." for phrase, names in by_phrase.items()]


def _listed(names: list[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names)} models: {', '.join(names[:NAMED])}, ..."
