"""Figures that fail: a figure never costs a table, nor a model the figure of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evaluations.core.record import Record
from sat_interp._util.errors import UserError

Draw = Callable[[Sequence[Record]], list[Path]]
"""Draws a figure of records and returns the files written."""

log = logging.getLogger(__name__)


def draw_figures(
    figures: Mapping[str, Draw], records: Sequence[Record]
) -> tuple[list[Path], list[str]]:
    """Draw each figure of all records it can be drawn of.

    Where a figure fails it is drawn once more, of those records it can be drawn of alone.

    Args:
        figures: by what they show.

    Returns:
        The files written, and a line for each figure or model that is left out, with the reason.
    """
    written: list[Path] = []
    failures: list[str] = []
    for name, draw in figures.items():
        paths, told = _draw(name, draw, records)
        written += paths
        failures += told
    return written, failures


def _draw(name: str, draw: Draw, records: Sequence[Record]) -> tuple[list[Path], list[str]]:
    try:
        return draw(records), []
    except OSError as error:  # a full disk is full for one model, too
        where = f": {error.filename}" if error.filename else ""
        return [], [f"{name}: no figure ({error.strerror or error}{where})"]
    except Exception as error:
        log.debug("%s is not drawn", name, exc_info=True)
        whole = reason_of(error)
    if len(records) < 2:
        return [], [f"{name}: no figure ({whole})"]
    failed = {place: why for place, one in enumerate(records) if (why := _failure(draw, one))}
    rest = [record for place, record in enumerate(records) if place not in failed]
    told = [f"{name}: no figure of {_name(records[place])} ({why})"
            for place, why in failed.items()]  # fmt: skip
    fails_alike = not rest and len(set(failed.values())) == 1
    if not failed or fails_alike:
        return [], [f"{name}: no figure ({whole})"]
    if not rest:
        return [], told
    try:
        return draw(rest), told
    except Exception as error:
        return [], [*told, f"{name}: no figure ({reason_of(error)})"]


def _failure(draw: Draw, record: Record) -> str:
    """Why a figure of one record fails; "" where it does not."""
    try:
        draw([record])
    except Exception as error:
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _name(record: Record) -> str:
    return str(record.model.get("name", "?"))
