"""Contexts in words: those that cover most of the tokens on which a unit fires."""

from __future__ import annotations

import json
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from evaluations.suite.neurons.examiners.contexts import PLACES, Numbered
from evaluations.suite.neurons.shown import FIRES

# The contexts that can be put into words, the simplest first: of equals the first is named.
SPOKEN = ("token", "place", "after", "pair", "triple")
NARROW = sum(end <= 8 for end in PLACES)
"""Classes of places within the first eight tokens; later ones are too wide to tell anything."""
MOST = 6
"""Contexts named at most."""
LEAST_PRECISE = 0.3
"""A context is named only if the unit fires on at least this share of its tokens."""
LEAST_NEW = 0.04
"""... and only if it adds at least this share of the tokens on which the unit fires."""
DOUBT = 0.5
"""Tokens without firing that are added to those seen: one sighting alone is no proof."""

Context: TypeAlias = tuple[str, int]
"""A kind and a code."""


def phrase(text: Numbered, levels: Float[np.ndarray, " tokens"], units: int) -> list[str]:
    """For each unit, one line: ``fires on " looked"; on "," after " glad"``.

    Contexts are chosen one by one: the one with the highest (firing tokens not yet covered) times
    (share of its tokens on which the unit fires).

    Args:
        levels: of each token, 0 to 10.
    """
    fires = levels >= FIRES
    precise: list[dict[Context, float]] = [{} for _ in range(units)]
    covers: list[dict[Context, list[int]]] = [{} for _ in range(units)]
    for kind in SPOKEN:
        found = text.occurrences[kind]
        fired = np.bincount(found.which, fires[found.tokens], len(found.counts))
        share = fired / (found.counts + DOUBT)
        told = fires[found.tokens] & (share[found.which] >= LEAST_PRECISE)
        if kind == "place":
            told &= found.codes[found.which] < NARROW
        which = found.which[told]
        for token, unit, code, precision in zip(
            found.tokens[told].tolist(),
            found.units[which].tolist(),
            found.codes[which].tolist(),
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
    """The contexts chosen, best first, each with how many tokens it adds."""
    left = {key: set(tokens) for key, tokens in covers.items()}
    found: list[tuple[Context, int]] = []
    while left and len(found) < MOST:
        best = max(left, key=lambda key: len(left[key]) * precise[key])  # the first of equals
        new = left.pop(best)
        if len(new) < LEAST_NEW * total or not new:
            break
        found.append((best, len(new)))
        left = {key: rest for key, tokens in left.items() if (rest := tokens - new)}
    return found


def _words(found: list[tuple[Context, int]], total: int, text: Numbered) -> str:
    if not total:
        return "never fires here"
    if not found:
        return "fires on nothing that a token or the two before it would tell"
    spoken: dict[tuple[str, str], list[str]] = {}
    for (kind, code), _ in found:
        (strings,) = text.names(kind, np.array([code]))
        before, what, after = _say(kind, strings)
        spoken.setdefault((before, after), []).append(what)
    parts = [
        " ".join(filter(None, [before, ", ".join(what), after]))
        for (before, after), what in spoken.items()
    ]
    covered = sum(new for _, new in found)
    start = "fires " if 2 * covered >= total else "fires, among others, "
    return start + "; ".join(parts)


def _say(kind: str, strings: tuple[str, ...]) -> tuple[str, str, str]:
    """A context in words, in three parts: those that begin and end alike are named together."""
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
