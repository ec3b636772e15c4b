"""Health marks: what is wrong with a measurement, shown in every table that has a value of it.

An evaluation that finds its own measurement unsound leaves short phrases in its record, under
``extra["health"]``: ``{"health": ["97 % of the features are dead"]}``. Nothing else is needed.
Every table (terminal, Markdown, LaTeX, CSV, HTML) then marks the model with a dagger, explains it
beneath, and prints no value of that evaluation in bold.
"""

from __future__ import annotations

from collections.abc import Iterable

from evaluations.core.record import Record

DAGGER = "†"
KEY = "health"
NOT_CONVERGED = "not converged"
"""Reason beside the L0 of an autoencoder that explains less than half of the variance."""
NAMED = 4
"""Models named after a phrase; of more, their number is given."""


def stated(record: Record) -> list[str]:
    """The phrases an evaluation left in ``record.extra["health"]``, a list of texts."""
    phrases = record.extra.get(KEY)
    return [one for one in phrases if isinstance(one, str)] if isinstance(phrases, list) else []


def phrases(record: Record) -> list[str]:
    """What is wrong with the measurement, as short phrases; an empty list where nothing is.

    The phrases in the record or, for records from before there were any: that a model fails the
    task (``extra["marked"]`` of ``acdc``) and that an autoencoder did not converge (a reason of
    ``l0``).
    """
    marks = stated(record)
    if marks:
        return list(dict.fromkeys(marks))
    if record.evaluation == "acdc" and isinstance(marked := record.extra.get("marked"), str):
        marks.append(marked.partition(":")[0].partition(";")[0])
    if record.evaluation == "sae" and (l0 := record.metric("l0")) and NOT_CONVERGED in l0.reasons:
        marks.append(f"{NOT_CONVERGED}: explains less than half of the variance")
    return marks


def explained(marked: Iterable[tuple[str, Record]]) -> list[str]:
    """A sentence for each phrase, with the models it applies to, for the notes of a table.

    Args:
        marked: the name a table gives a model, and a record its values are from.
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
