"""Descriptions in words of the contexts that cover most of a unit's firing tokens."""

from __future__ import annotations

import json
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from evaluations.suite.neurons.examiners.contexts import PLACES, EncodedExcerpts
from evaluations.suite.neurons.excerpts import FIRES

# Contexts that are put into words, the simplest first, which is preferred in ties.
NAMED = ("token", "place", "after", "pair", "triple")
NARROW = sum(end <= 8 for end in PLACES)
"""Number of ranges within the first eight positions; later ranges are too wide."""
MOST = 6
"""Maximum number of contexts."""
LEAST_PRECISE = 0.3
"""Minimum share of a context's tokens on which the unit fires."""
LEAST_NEW = 0.04
"""Minimum share of the firing tokens that a context adds."""
DOUBT = 0.5
"""Pseudo-count of tokens without firing, so that a single occurrence is not enough."""

Context: TypeAlias = tuple[str, int]
"""A kind and a code."""


def describe_contexts(
    text: EncodedExcerpts, levels: Float[np.ndarray, " tokens"], units: int
) -> list[str]:
    """Return one line per unit, such as ``fires on " looked"; on "," after " glad"``.

    Contexts are chosen greedily by the number of firing tokens not yet covered times the share of
    the context's tokens on which the unit fires.

    Args:
        levels: level of each token, 0 to 10.
    """
    fires = levels >= FIRES
    precise: list[dict[Context, float]] = [{} for _ in range(units)]
    covers: list[dict[Context, list[int]]] = [{} for _ in range(units)]
    for kind in NAMED:
        contexts = text.occurrences[kind]
        fired = np.bincount(contexts.which, fires[contexts.tokens], len(contexts.counts))
        share = fired / (contexts.counts + DOUBT)
        is_named = fires[contexts.tokens] & (share[contexts.which] >= LEAST_PRECISE)
        if kind == "place":
            is_named &= contexts.codes[contexts.which] < NARROW
        which = contexts.which[is_named]
        for token, unit, code, precision in zip(
            contexts.tokens[is_named].tolist(),
            contexts.units[which].tolist(),
            contexts.codes[which].tolist(),
            share[which].tolist(),
            strict=True,
        ):
            covers[unit].setdefault((kind, code), []).append(token)
            precise[unit][kind, code] = precision
    totals = np.bincount(text.unit[fires], minlength=units).tolist()
    return [
        _words(_cover(covers[unit], precise[unit], totals[unit]), totals[unit], text)
        for unit in range(units)
    ]


def _cover(
    covers: dict[Context, list[int]], precise: dict[Context, float], total: int
) -> list[tuple[Context, int]]:
    """Choose contexts greedily; return each with the number of firing tokens it adds."""
    left = {key: set(tokens) for key, tokens in covers.items()}
    chosen: list[tuple[Context, int]] = []
    while left and len(chosen) < MOST:
        best = max(left, key=lambda key: len(left[key]) * precise[key])  # the first in ties
        new = left.pop(best)
        if len(new) < LEAST_NEW * total or not new:
            break
        chosen.append((best, len(new)))
        left = {key: rest for key, tokens in left.items() if (rest := tokens - new)}
    return chosen


def _words(chosen: list[tuple[Context, int]], total: int, text: EncodedExcerpts) -> str:
    if not total:
        return "never fires here"
    if not chosen:
        return "fires on no consistent token or preceding tokens"
    groups: dict[tuple[str, str], list[str]] = {}
    for (kind, code), _ in chosen:
        (strings,) = text.names(kind, np.array([code]))
        before, what, after = _say(kind, strings)
        groups.setdefault((before, after), []).append(what)
    parts = [
        " ".join(filter(None, [before, ", ".join(what), after]))
        for (before, after), what in groups.items()
    ]
    covered = sum(new for _, new in chosen)
    start = "fires " if 2 * covered >= total else "fires, among others, "
    return start + "; ".join(parts)


def _say(kind: str, strings: tuple[str, ...]) -> tuple[str, str, str]:
    """Return a context in words as three parts; contexts with equal outer parts are merged."""
    if kind == "place":
        return "at the story's", _place(int(strings[0])), ""
    *before, token = strings
    if kind == "token":
        return "on", _quoted(token), ""
    if kind == "after":
        return ("after", _quoted(token), "") if token else ("at the story's", "token 1", "")
    where = f"after {_quoted(''.join(before))}" if before[-1] else "at the story's beginning"
    return "on", _quoted(token), where


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _place(number: int) -> str:
    first = (0, *PLACES)[number] + 1
    last = PLACES[number]
    return f"token {first}" if first == last else f"tokens {first} to {last}"
