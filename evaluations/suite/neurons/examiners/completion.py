"""Validation of chat completions, and the part of them that is stored.

A stored reply is one of

- ``{"text": ..., "finish": ..., "levels": [[place, written, {level: log-probability}], ...]}``,
- ``{"failed": reason}``: an unusable reply that was paid for; stored so that it is not requested
  again,
- ``{"refused": parameter}``: the endpoint does not support a parameter.
"""

from __future__ import annotations

import json
import math
from typing import Any

from evaluations.suite.neurons.examiners.answers import is_level

OPTIONAL = ("top_logprobs", "logprobs", "temperature", "max_tokens")
"""Parameters that an endpoint may not support."""

StoredReply = dict[str, Any]
Usage = tuple[int, int]
"""Numbers of input and output tokens."""

TOO_MANY = 10
"""An endpoint's usage above this multiple of a request's maximum is ignored, and the maximum is
charged. Reasoning that ``max_tokens`` does not limit can exceed it."""
IMPOSSIBLE = 1 << 20
"""Usage above this makes a reply invalid."""
ABOVE_ONE = 1e-3
"""Log-probabilities up to this are rounding errors of 0."""
LONGEST_REASON = 100
_TEXT = ("text", "output_text", None)
"""Types of message parts that belong to the answer; others are reasoning or images."""


def read_reply(body: str | bytes, most: Usage | None = None) -> tuple[StoredReply, Usage | None]:
    """Return the stored part of a chat completion, and its usage if the endpoint reports it.

    Args:
        most: maximum numbers of input and output tokens of the request.

    Raises:
        ValueError: the body is not a chat completion.
    """
    if isinstance(body, bytes):
        body = body.decode("utf-8", errors="replace")
    try:
        completion = json.loads(body)
    except RecursionError:
        return {"failed": "reply nested too deeply"}, None
    try:
        choice = completion["choices"][0]
        message, reported = choice["message"], completion.get("usage")
        text = _text(message)
        finish = "content_filter" if message.get("refusal") else choice.get("finish_reason")
        pieces = (choice.get("logprobs") or {}).get("content") or []
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {error!r}") from None
    try:
        usage = _usage(reported, most)
    except ValueError:
        return {"failed": "impossible usage"}, None
    if not _is_text(text) or not _is_text(str(finish or "stop"), 100):
        return {"failed": "broken characters"}, usage
    try:
        levels = _levels(text, pieces)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"failed": "impossible log-probabilities"}, usage
    return {"text": text, "finish": str(finish or "stop"), "levels": levels}, usage


def is_stored_reply(value: Any) -> bool:
    """Whether a value from the database is a valid stored reply."""
    if not isinstance(value, dict):
        return False
    if set(value) == {"refused"}:
        return value["refused"] in OPTIONAL
    if set(value) == {"failed"}:
        return _is_text(value["failed"], LONGEST_REASON) and bool(value["failed"].strip())
    if set(value) != {"text", "finish", "levels"} or not isinstance(value["levels"], list):
        return False
    if not _is_text(value["text"]) or not _is_text(value["finish"], 100):
        return False
    return all(_is_stored_level(level, len(value["text"])) for level in value["levels"])


def _is_stored_level(level: Any, length: int) -> bool:
    if not isinstance(level, list | tuple) or len(level) != 3:
        return False
    place, written, logprobs = level
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < length:
        return False
    if not isinstance(written, str) or not is_level(written) or not isinstance(logprobs, dict):
        return False
    return all(is_level(text) and _is_logprob(value) for text, value in logprobs.items())


def _text(message: Any) -> Any:
    text = message.get("content") or ""
    if isinstance(text, str):
        return text
    return "".join(part.get("text") or "" for part in text if part.get("type") in _TEXT)


def _is_text(text: Any, longest: int = 1 << 24) -> bool:
    """Whether a value is a string that can be encoded (no lone surrogates)."""
    if not isinstance(text, str) or len(text) > longest:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _usage(reported: Any, most: Usage | None) -> Usage | None:
    """Return the reported usage; None if it is missing or implausibly high.

    Raises:
        ValueError: the usage is not valid.
    """
    if reported is None:
        return None
    if not isinstance(reported, dict):
        raise ValueError("usage is not a mapping")
    values = [reported.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if None in values:
        return None
    counts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a number of tokens is not a number")
        if not 0 <= value <= IMPOSSIBLE or value != int(value):
            raise ValueError("an impossible number of tokens")
        counts.append(int(value))
    read, written = counts
    if most and (read > TOO_MANY * most[0] or written > TOO_MANY * most[1]):
        return None
    return read, written


def _is_logprob(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= ABOVE_ONE  # accepts minus infinity, not nan


def _levels(text: str, pieces: list[dict[str, Any]]) -> list[tuple[int, str, dict[str, float]]]:
    """Return position, written text and alternative levels of each level in the answer.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the pieces are not valid.
    """
    levels = []
    before = bytearray()
    for piece in pieces:
        written = piece["token"]
        if is_level(written.strip()):
            place = len(before.decode(errors="ignore"))
            place += len(written) - len(written.lstrip())
            levels.append((place, written.strip(), _alternatives(piece)))
        # use bytes, as a token may be part of a character
        own = piece.get("bytes")
        if own is not None and not isinstance(own, list):
            raise TypeError("bytes are not a list")  # bytes(number) would be zeros
        before += written.encode() if own is None else bytes(own)
    return levels if before.decode(errors="ignore") == text else []


def _alternatives(piece: dict[str, Any]) -> dict[str, float]:
    """Return the log-probabilities of alternative levels, with those of '3' and ' 3' added."""
    logprobs: dict[str, float] = {}
    alternatives = piece.get("top_logprobs") or []
    if piece["token"] not in [other["token"] for other in alternatives]:
        alternatives = [piece, *alternatives]
    for other in alternatives:
        level, logprob = other["token"].strip(), other["logprob"]
        if not _is_logprob(logprob):
            raise ValueError(f"a log-probability of {logprob}")
        if is_level(level):
            p = math.exp(logprobs.get(level, -math.inf)) + math.exp(logprob)
            logprobs[level] = min(0.0, math.log(p)) if p > 0 else -math.inf
    return logprobs
