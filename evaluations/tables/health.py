"""Health marks: what is wrong with a measurement, said in every table that shows a figure of it.

An evaluation that finds its own measurement unsound leaves short phrases in its record, under
``extra["health"]``: ``{"health": ["97 % of the features are dead"]}``. Nothing else is needed.
Every table (terminal, Markdown, LaTeX, CSV, HTML) then marks the model with a dagger, explains it
beneath, and prints none of its figures of that evaluation in bold.
"""

from __future__ import annotations

from collections.abc import Iterable

from evaluations.core.record import Record
from evaluations.suite.sae.figures import NOT_CONVERGED

DAGGER = "†"
KEY = "health"
NAMED = 4
"""Models named after a phrase; of more, only their number is said."""


def stated(record: Record) -> list[str]:
    """The phrases an evaluation left in ``record.extra["health"]``, a list of texts."""
    told = record.extra.get(KEY)
    return [one for one in told if isinstance(one, str)] if isinstance(told, list) else []


def phrases(record: Record) -> list[str]:
    """What is wrong with the measurement, as short phrases; an empty list where nothing is.

    The phrases it states itself or, of records from before there were any: that a model fails the
    task (``extra["marked"]`` of ``acdc``) and that an autoencoder did not converge (a reason of
    ``l0``).
    """
    found = stated(record)
    if found:
        return list(dict.fromkeys(found))
    if record.evaluation == "acdc" and isinstance(marked := record.extra.get("marked"), str):
        found.append(marked.partition(":")[0].partition(";")[0])
    if record.evaluation == "sae" and (l0 := record.metric("l0")) and NOT_CONVERGED in l0.reasons:
        found.append("not converged: explains less than half of the variance")
    return found


def explained(marked: Iterable[tuple[str, Record]]) -> list[str]:
    """A sentence for each phrase, with the models it is said of: what stands beneath a table.

    Args:
        marked: the name a table gives a model, and a record its figures are from.
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
