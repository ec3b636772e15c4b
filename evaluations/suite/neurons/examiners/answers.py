"""How the answers of a language model are read; one that cannot be is ``Unscored``, not guessed.

What a reasoning model thought before it answered is no part of its answer (``thinking.py``).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from evaluations.suite.neurons.examiners.base import HIGHEST, Explanation, Unscored
from evaluations.suite.neurons.examiners.prompts import show
from evaluations.suite.neurons.examiners.thinking import spoken

Levels = tuple[float, ...]
Alternatives = tuple[str, Mapping[str, float]]
"""The token that was written, and the log-probabilities of the levels that stand in its place."""

UNPARSABLE = Unscored("unparsable answer")
TOKENS_DIFFER = Unscored("tokens differ")
UNFINISHED = Unscored("unfinished reasoning")
LONGEST_EXPLANATION = 300  # characters


def read_explanation(answer: str) -> Explanation | Unscored:
    """The first line that says something, without quotes, marks or a heading before it."""
    said = spoken(answer)
    if said is None:
        return UNFINISHED
    for line in map(_printable, said.splitlines()):
        line = re.sub(r"^[\s*#>-]*(explanation|answer)?\s*[:*]*\s*", "", line, flags=re.I)
        line = re.sub(r"^([\"'`])(.*)\1$", r"\2", line.strip(" \t*"))
        if re.search(r"\w", line):
            return Explanation(line[:LONGEST_EXPLANATION])
    return Unscored("empty answer")


def read_lines(
    answer: str, tokens: Sequence[str], found: Mapping[int, Alternatives] | None = None
) -> Levels | Unscored:
    """Levels of ``token<tab>level`` lines: the expected value where probabilities are given.

    The expected value is sum(p v) / sum(p) over the levels v among the alternatives to what was
    written; a level written as several tokens (1, 0) lends its value to the first of them.

    Args:
        found: the alternatives to the levels of the answer, by their place in it.
    """
    said = spoken(answer)  # every place in it is where it was in the answer
    if said is None:
        return UNFINISHED
    lines = list(re.finditer(r"^(.*)\t[ ]*(\d+)[ \t\r]*$", said, flags=re.M))
    if not lines:
        return UNPARSABLE
    if len(lines) != len(tokens):
        return TOKENS_DIFFER
    levels = []
    for line, token in zip(lines, tokens, strict=True):
        if line[1].strip() != show(token).strip():
            return TOKENS_DIFFER
        if not is_level(line[2]):
            return UNPARSABLE
        text, logprobs = (found or {}).get(line.start(2), (line[2], {}))
        levels.append(expected(logprobs, {text: int(line[2])}, otherwise=int(line[2])))
    return tuple(levels)


def expected(alternatives: Mapping[str, float], values: Mapping[str, int], otherwise: int) -> float:
    """The mean level under log-probabilities; ``otherwise`` where no level is among them."""
    weights = {text: math.exp(logprob) for text, logprob in alternatives.items()}
    total = sum(weights.values())
    if not total > 0:
        return float(otherwise)
    return sum(p * values.get(text, int(text)) for text, p in weights.items()) / total


def is_level(text: str) -> bool:
    """Whether a token, without the blanks around it, is a level."""
    return text.isascii() and text.isdigit() and len(text) < 3 and int(text) <= HIGHEST


def read_json(answer: str, tokens: Sequence[str]) -> Levels | Unscored:
    """Levels of a JSON list of [token, level]."""
    said = spoken(answer)
    if said is None:
        return UNFINISHED
    found = _list(said)
    if found is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        return UNPARSABLE
    if len(found) != len(tokens):
        return TOKENS_DIFFER
    for (name, level), token in zip(found, tokens, strict=True):
        if isinstance(level, bool) or not isinstance(level, int | float):
            return UNPARSABLE
        if not 0 <= level <= HIGHEST:
            return UNPARSABLE
        if str(name).strip() not in (token.strip(), show(token).strip()):
            return TOKENS_DIFFER
    return tuple(float(level) for _, level in found)


def read_verdicts(answer: str, count: int) -> tuple[bool, ...] | Unscored:
    """``count`` verdicts of a JSON list: 1 and 0 (or 1.0 and 0.0), true and false, yes and no."""
    said = spoken(answer)
    if said is None:
        return UNFINISHED
    found = _list(said)
    if found is None:
        return UNPARSABLE
    verdicts = [_verdict(verdict) for verdict in found]
    if None in verdicts:
        return UNPARSABLE
    if len(verdicts) != count:
        return Unscored("wrong number of verdicts")
    return tuple(bool(verdict) for verdict in verdicts)


def _verdict(said: Any) -> bool | None:
    """What one entry of a list of verdicts says; None where it is none."""
    if isinstance(said, int | float):
        return bool(said) if said in (0, 1) else None
    if not isinstance(said, str):
        return None
    word = said.strip().lower()
    if re.fullmatch(r"[01](\.0*)?", word):
        return word[0] == "1"
    return {"true": True, "yes": True, "false": False, "no": False}.get(word)


def _printable(line: str) -> str:
    """A line without control characters: explanations are shown in terminals."""
    return "".join(" " if unicodedata.category(one) in ("Cc", "Cs") else one for one in line)


def _list(answer: str) -> list[Any] | None:
    """The JSON list in an answer, whatever is said around it."""
    start, end = answer.find("["), answer.rfind("]")
    try:
        found = json.loads(answer[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
