"""Tokenising long texts in pieces, with the same tokens: it takes over 100 bytes a character."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Tokenizer

PIECE = 100_000
"""A text longer than this many characters is cut, into pieces of about half of it."""
_AROUND = 200
_TRIED = 8
_SPACE_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


def encode(backend: Tokenizer, texts: list[str], at_once: int) -> list[list[int]]:
    """The token ids of each text, no more than ``at_once`` characters in the tokenizer at a time.

    A text longer than ``PIECE`` is cut before a space where the tokens of the text around it are
    the tokens of both sides. Where there is no such place it stays in one piece.
    """
    tokens: list[list[int]] = [[] for _ in texts]
    waiting: list[tuple[int, str]] = []
    characters = 0

    def flush() -> None:
        encoded = backend.encode_batch_fast(
            [piece for _, piece in waiting], add_special_tokens=False
        )
        for (number, _), encoding in zip(waiting, encoded, strict=True):
            tokens[number] += encoding.ids

    for number, text in enumerate(texts):
        for piece in pieces(text, lambda around, place: _is_border(backend, around, place)):
            if waiting and characters + len(piece) > at_once:
                flush()
                waiting, characters = [], 0
            waiting.append((number, piece))
            characters += len(piece)
    flush()
    return tokens


def words_apart(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones cut before spaces between words: no byte-level BPE merges across one."""
    for text in texts:
        yield from pieces(text)


def pieces(text: str, is_border: Callable[[str, int], bool] | None = None) -> Iterator[str]:
    """The text; one longer than ``PIECE`` cut before spaces between words.

    Args:
        is_border: (text around, place in it) -> whether it may be cut there; anywhere by default.
    """
    start = 0
    while len(text) - start > PIECE:
        place = _place(text, start, is_border)
        if place is None:
            break
        yield text[start:place]
        start = place
    yield text[start:]


def _place(text: str, start: int, is_border: Callable[[str, int], bool] | None) -> int | None:
    """The next place to cut at, half a piece after ``start`` or later."""
    spaces = _SPACE_BETWEEN_WORDS.finditer(text, start + PIECE // 2)
    for _, space in zip(range(_TRIED), spaces, strict=False):
        place = space.start()
        low = max(0, place - _AROUND)
        if is_border is None or is_border(text[low : place + _AROUND], place - low):
            return place
    return None


def _is_border(backend: Tokenizer, around: str, place: int) -> bool:
    three = [around, around[:place], around[place:]]
    encoded = backend.encode_batch_fast(three, add_special_tokens=False)
    whole, left, right = (encoding.ids for encoding in encoded)
    return bool(whole == left + right)
