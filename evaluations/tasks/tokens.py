"""From pairs of text to pairs of tokens: what can be used, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from sat_interp.data.tokenizer import story_start
from sat_interp.errors import UserError

# Why a prompt is left out.
SEVERAL_TOKENS = "an answer is not one token"
SAME_ANSWERS = "right and wrong answer are one token"
UNEQUAL = "clean and corrupted are of unequal length"
SAME_PROMPTS = "clean and corrupted are the same"
REPEATED = "drawn before"

Row = tuple[list[int], list[int], int, int]  # clean, corrupted, right, wrong
Candidate = tuple[Pair, Row | str]  # a pair with its tokens, or with the reason why it has none
WordT = TypeVar("WordT", bound=str)


class Words:
    """A task's view of a tokenizer: which words are one token; the others are counted."""

    def __init__(self, task: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.left_out: dict[str, int] = {}

    def keep(self, kind: str, words: Sequence[WordT], least: int) -> list[WordT]:
        """The words that are one token within a sentence, with the space before them.

        Args:
            kind: what they are, for the count and the message: "names".
            least: how many the task takes.

        Raises:
            UserError: fewer are left.
        """
        kept = [word for word in words if following(self.tokenizer, "and", f" {word}") is not None]
        self.left_out[kind] = len(words) - len(kept)
        if len(kept) < least:
            raise UserError(
                f"{self.task}: {len(kept)} of {len(words)} {kind} are single tokens of this "
                f"tokenizer and the task takes {least}: try another task or tokenizer"
            )
        return kept


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text and none besides."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def following(tokenizer: PreTrainedTokenizerFast, text: str, answer: str) -> int | None:
    """The one token by which ``answer`` continues ``text``; None if it is several, or none.

    Looked up in place, for that is where a model meets it: GPT-2 writes " 1945" as one token, so
    "45" never follows " 19".
    """
    before, whole = encode(tokenizer, text), encode(tokenizer, text + answer)
    if len(whole) != len(before) + 1 or whole[:-1] != before:
        return None
    return whole[-1]


def with_row(tokenizer: PreTrainedTokenizerFast, pair: Pair, start: list[int]) -> Candidate:
    """A pair with its tokens after those of ``start``, or the reason why it cannot be used."""
    right, wrong = (following(tokenizer, pair.clean, answer) for answer in (pair.right, pair.wrong))
    if right is None or wrong is None:
        return pair, SEVERAL_TOKENS
    clean, corrupted = ([*start, *encode(tokenizer, text)] for text in (pair.clean, pair.corrupted))
    return pair, checked(clean, corrupted, right, wrong)


def checked(clean: list[int], corrupted: list[int], right: int, wrong: int) -> Row | str:
    """The row, or the reason why no circuit can be found with it."""
    if right == wrong:
        return SAME_ANSWERS
    if len(clean) != len(corrupted):
        return UNEQUAL
    if clean == corrupted:
        return SAME_PROMPTS
    return clean, corrupted, right, wrong


def start_tokens(tokenizer: PreTrainedTokenizerFast, bos: bool) -> list[int]:
    """The token that stands before a story if ``bos``; none where there is none."""
    start = story_start(tokenizer) if bos else None
    return [] if start is None else [start]


def collect(
    name: str,
    candidates: Iterable[Candidate],
    n: int,
    words_left_out: dict[str, int] | None = None,
    note: dict[str, Any] | None = None,
) -> TaskPrompts:
    """The first ``n`` distinct pairs that can be used, by length; the others are counted.

    Raises:
        UserError: none can be used.
    """
    left_out: Counter[str] = Counter()
    buckets: dict[int, list[tuple[Pair, Row]]] = {}
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for pair, row in candidates:
        if isinstance(row, str):
            left_out[row] += 1
            continue
        key = (tuple(row[0]), tuple(row[1]), row[2:])
        if key in seen:
            left_out[REPEATED] += 1
            continue
        seen.add(key)
        buckets.setdefault(len(row[0]), []).append((pair, row))
        if len(seen) == n:
            break
    if not seen:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.most_common())
        raise UserError(f"{name}: no prompt can be used with this tokenizer: {reasons}")
    ordered = [buckets[length] for length in sorted(buckets)]
    return TaskPrompts(
        name,
        batches=tuple(_batch([row for _, row in bucket]) for bucket in ordered),
        texts=tuple(pair for bucket in ordered for pair, _ in bucket),
        left_out=dict(left_out),
        words_left_out=words_left_out or {},
        note=note or {},
    )


def _batch(rows: Sequence[Row]) -> PairBatch:
    clean, corrupted, right, wrong = map(torch.tensor, zip(*rows, strict=True))
    return PairBatch(clean, corrupted, right, wrong)
