"""A chat completion as an endpoint sends it: what is kept of it, and whether that can be believed.

What is kept is one of

- ``{"text": ..., "finish": ..., "levels": [[place, written, {level: log-probability}], ...]}``,
- ``{"failed": reason}``: a reply that was paid for and cannot be used, so as not to be asked again,
- ``{"refused": parameter}``: the endpoint does not know a parameter.
"""

from __future__ import annotations

import json
import math
from typing import Any

from evaluations.suite.neurons.examiners.answers import is_level

OPTIONAL = ("top_logprobs", "logprobs", "temperature", "max_tokens")
"""Parameters that an endpoint may refuse."""

Kept = dict[str, Any]
Usage = tuple[int, int]
"""Tokens read and written."""

TOO_MANY = 10
"""Above so many times the tokens a request can take, what an endpoint says it used is not counted:
the request is charged at the most. Thoughts that are not bounded by ``max_tokens`` do that."""
IMPOSSIBLE = 1 << 20
"""Nor is a reply used that is said to have taken more tokens than this."""
ABOVE_ONE = 1e-3
"""Log-probabilities up to this are roundings of 0."""
LONGEST_REASON = 100
_TEXT = ("text", "output_text", None)
"""Kinds of parts of an answer that are the answer; others are thoughts, or pictures."""


def read_reply(body: str | bytes, most: Usage | None = None) -> tuple[Kept, Usage | None]:
    """What is kept of a chat completion, and the tokens it read and wrote, where it says so.

    Args:
        most: tokens the request can take, read and written.

    Raises:
        ValueError: it is none.
    """
    if isinstance(body, bytes):
        body = body.decode("utf-8", errors="replace")
    try:
        completion = json.loads(body)
    except RecursionError:
        return {"failed": "reply nested too deeply"}, None
    try:
        choice = completion["choices"][0]
        message, said = choice["message"], completion.get("usage")
        text = _text(message)
        finish = "content_filter" if message.get("refusal") else choice.get("finish_reason")
        pieces = (choice.get("logprobs") or {}).get("content") or []
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no chat completion: {error!r}") from None
    try:
        usage = _usage(said, most)
    except ValueError:
        return {"failed": "impossible usage"}, None
    if not _is_text(text) or not _is_text(str(finish or "stop"), 100):
        return {"failed": "broken characters"}, usage
    try:
        levels = _levels(text, pieces)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"failed": "impossible log-probabilities"}, usage
    return {"text": text, "finish": str(finish or "stop"), "levels": levels}, usage


def is_kept(found: Any) -> bool:
    """Whether something is what ``read_reply`` keeps: the database it was in may be anyone's."""
    if not isinstance(found, dict):
        return False
    if set(found) == {"refused"}:
        return found["refused"] in OPTIONAL
    if set(found) == {"failed"}:
        return _is_text(found["failed"], LONGEST_REASON) and bool(found["failed"].strip())
    if set(found) != {"text", "finish", "levels"} or not isinstance(found["levels"], list):
        return False
    if not _is_text(found["text"]) or not _is_text(found["finish"], 100):
        return False
    return all(_is_kept_level(level, len(found["text"])) for level in found["levels"])


def _is_kept_level(level: Any, length: int) -> bool:
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
    """Whether it is a text that can be written: half a surrogate pair cannot."""
    if not isinstance(text, str) or len(text) > longest:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _usage(said: Any, most: Usage | None) -> Usage | None:
    """The tokens read and written; None where the endpoint does not say, or says too many.

    Raises:
        ValueError: no numbers of tokens, or more than any model can take.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("usage is no mapping")
    values = [said.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if None in values:
        return None
    counts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a number of tokens is no number")
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
    return value <= ABOVE_ONE  # minus infinity is one; not a number is none


def _levels(text: str, pieces: list[dict[str, Any]]) -> list[tuple[int, str, dict[str, float]]]:
    """Where the answer has levels: the place, what was written, the levels among alternatives.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: these are no pieces with probabilities.
    """
    found = []
    before = bytearray()
    for piece in pieces:
        written = piece["token"]
        if is_level(written.strip()):
            place = len(before.decode(errors="ignore"))
            place += len(written) - len(written.lstrip())
            found.append((place, written.strip(), _alternatives(piece)))
        # a token may be part of a character: only its bytes add up
        own = piece.get("bytes")
        if own is not None and not isinstance(own, list):
            raise TypeError("bytes are no list")  # a number would be as many zeros
        before += written.encode() if own is None else bytes(own)
    return found if before.decode(errors="ignore") == text else []


def _alternatives(piece: dict[str, Any]) -> dict[str, float]:
    """The log-probabilities of the levels that might have been written; of '3' and ' 3' the sum."""
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
