"""Parsers of a language model's answers; answers that cannot be parsed are ``Unscored``.

The reasoning before an answer is removed (``thinking.py``).
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
from evaluations.suite.neurons.examiners.thinking import final_answer

Levels = tuple[float, ...]
Alternatives = tuple[str, Mapping[str, float]]
"""The written token, and the log-probabilities of levels at its position."""

UNPARSABLE = Unscored("unparsable answer")
TOKENS_DIFFER = Unscored("tokens differ")
UNFINISHED = Unscored("unfinished reasoning")
LONGEST_EXPLANATION = 300  # characters


def read_explanation(answer: str) -> Explanation | Unscored:
    """Return the first line with words, without quotes, markup or a heading."""
    text = final_answer(answer)
    if text is None:
        return UNFINISHED
    for line in map(_printable, text.splitlines()):
        line = re.sub(r"^[\s*#>-]*(explanation|answer)?\s*[:*]*\s*", "", line, flags=re.I)
        line = re.sub(r"^([\"'`])(.*)\1$", r"\2", line.strip(" \t*"))
        if re.search(r"\w", line):
            return Explanation(line[:LONGEST_EXPLANATION])
    return Unscored("empty answer")


def read_lines(
    answer: str, tokens: Sequence[str], alternatives: Mapping[int, Alternatives] | None = None
) -> Levels | Unscored:
    """Return the levels of ``token<tab>level`` lines, or expected values under probabilities.

    The expected value is sum(p v) / sum(p) over the levels v among the alternatives to the written
    token. The first token of a level written as several tokens (1, 0) has the value of the level.

    Args:
        alternatives: alternatives to the levels of the answer, by position in it.
    """
    text = final_answer(answer)  # positions are those in the answer
    if text is None:
        return UNFINISHED
    lines = list(re.finditer(r"^(.*)\t[ ]*(\d+)[ \t\r]*$", text, flags=re.M))
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
        written, logprobs = (alternatives or {}).get(line.start(2), (line[2], {}))
        levels.append(expected(logprobs, {written: int(line[2])}, otherwise=int(line[2])))
    return tuple(levels)


def expected(alternatives: Mapping[str, float], values: Mapping[str, int], otherwise: int) -> float:
    """Return the expected level under log-probabilities; ``otherwise`` if they have no level."""
    weights = {text: math.exp(logprob) for text, logprob in alternatives.items()}
    total = sum(weights.values())
    if not total > 0:
        return float(otherwise)
    return sum(p * values.get(text, int(text)) for text, p in weights.items()) / total


def is_level(text: str) -> bool:
    """Whether a token, stripped of whitespace, is a level."""
    return text.isascii() and text.isdigit() and len(text) < 3 and int(text) <= HIGHEST


def read_json(answer: str, tokens: Sequence[str]) -> Levels | Unscored:
    """Return the levels of a JSON list of [token, level]."""
    text = final_answer(answer)
    if text is None:
        return UNFINISHED
    pairs = _list(text)
    if pairs is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return UNPARSABLE
    if len(pairs) != len(tokens):
        return TOKENS_DIFFER
    for (name, level), token in zip(pairs, tokens, strict=True):
        if isinstance(level, bool) or not isinstance(level, int | float):
            return UNPARSABLE
        if not 0 <= level <= HIGHEST:
            return UNPARSABLE
        if str(name).strip() not in (token.strip(), show(token).strip()):
            return TOKENS_DIFFER
    return tuple(float(level) for _, level in pairs)


def read_verdicts(answer: str, count: int) -> tuple[bool, ...] | Unscored:
    """Return ``count`` verdicts of a JSON list: 1 or 0 (1.0 or 0.0), true or false, yes or no."""
    text = final_answer(answer)
    if text is None:
        return UNFINISHED
    entries = _list(text)
    if entries is None:
        return UNPARSABLE
    verdicts = [_verdict(entry) for entry in entries]
    if None in verdicts:
        return UNPARSABLE
    if len(verdicts) != count:
        return Unscored("wrong number of verdicts")
    return tuple(bool(verdict) for verdict in verdicts)


def _verdict(entry: Any) -> bool | None:
    """Return the verdict of an entry of a list; None if it is not a verdict."""
    if isinstance(entry, int | float):
        return bool(entry) if entry in (0, 1) else None
    if not isinstance(entry, str):
        return None
    word = entry.strip().lower()
    if re.fullmatch(r"[01](\.0*)?", word):
        return word[0] == "1"
    return {"true": True, "yes": True, "false": False, "no": False}.get(word)


def _printable(line: str) -> str:
    """Replace control characters, as explanations are shown in terminals."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in line)


def _list(answer: str) -> list[Any] | None:
    """Return the JSON list in an answer, ignoring any text around it."""
    start, end = answer.find("["), answer.rfind("]")
    try:
        value = json.loads(answer[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
