"""Pairs of text as pairs of tokens: which can be used, and why the others are left out."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from sat_interp._util.errors import UserError
from sat_interp.data.stories.grammar import pick
from sat_interp.data.tokenizer import story_start

log = logging.getLogger(__name__)

# Why a prompt is left out.
SEVERAL_TOKENS = "an answer is not one token"
SAME_ANSWERS = "right and wrong answer are one token"
UNEQUAL = "clean and corrupted are of unequal length"
SAME_PROMPTS = "clean and corrupted are the same"
REPEATED = "drawn before"
NOT_APART = "its pair of names is among the prompts searched with"

LEAST_HELD_OUT = 10
"""With fewer, prompts are taken from those searched with."""

Row = tuple[list[int], list[int], int, int]  # clean, corrupted, right, wrong
Candidate = tuple[Pair, Row | str]  # a pair with its tokens, or with the reason why it has none
Apart = Callable[[Row], frozenset[int]]  # what held-out prompts must not share with the others
T = TypeVar("T")
WordT = TypeVar("WordT", bound=str)


class Words:
    """The words that a tokenizer has as single tokens; the others are counted."""

    def __init__(self, task: str, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the task's name, for messages, and the tokenizer."""
        self.task, self.tokenizer = task, tokenizer
        self.left_out: dict[str, int] = {}

    def keep(self, kind: str, words: Sequence[WordT], least: int) -> list[WordT]:
        """Return the words that are one token within a sentence, with the space before them.

        Args:
            kind: what the words are, for the count and the message: "names".
            words: to choose from.
            least: minimum number of words that the task needs.

        Raises:
            UserError: fewer are left.
        """
        kept = [word for word in words if following(self.tokenizer, "and", f" {word}") is not None]
        self.left_out[kind] = len(words) - len(kept)
        if len(kept) < least:
            raise UserError(
                f"{self.task}: {len(kept)} of {len(words)} {kind} are single tokens of this "
                f"tokenizer and the task needs {least}: try another task or tokenizer"
            )
        return kept


def distinct(rng: random.Random, pool: Sequence[T], size: int, but: Collection[T] = ()) -> list[T]:
    """Return ``size`` different entries of the pool, none of them in ``but``.

    The draws are the same in every version of Python.
    """
    drawn: list[T] = []
    while len(drawn) < size:
        choice = pick(rng, pool)
        if choice not in drawn and choice not in but:
            drawn.append(choice)
    return drawn


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the tokens of a text and none besides.

    Raises:
        UserError: the tokenizer is the stand-in of a model without one.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the model has no tokenizer and the prompts are text: give a tokenizer "
            "(tokenizer=...), or prompts of token ids"
        )
    return list(tokenizer.encode(text, add_special_tokens=False))


def following(tokenizer: PreTrainedTokenizerFast, text: str, answer: str) -> int | None:
    """Return the token by which ``answer`` continues ``text``; None if it is several, or none.

    It is looked up after the text, where a model sees it: GPT-2 writes " 1945" as one token, so
    "45" never follows " 19".
    """
    before, whole = encode(tokenizer, text), encode(tokenizer, text + answer)
    if len(whole) != len(before) + 1 or whole[:-1] != before:
        return None
    return whole[-1]


def with_row(tokenizer: PreTrainedTokenizerFast, pair: Pair, start: list[int]) -> Candidate:
    """Return a pair with its tokens after ``start``, or the reason why it cannot be used."""
    right, wrong = (following(tokenizer, pair.clean, answer) for answer in (pair.right, pair.wrong))
    if right is None or wrong is None:
        return pair, SEVERAL_TOKENS
    clean, corrupted = ([*start, *encode(tokenizer, text)] for text in (pair.clean, pair.corrupted))
    return pair, checked(clean, corrupted, right, wrong)


def checked(clean: list[int], corrupted: list[int], right: int, wrong: int) -> Row | str:
    """Return the row, or the reason why no circuit can be searched with it."""
    if right == wrong:
        return SAME_ANSWERS
    if len(clean) != len(corrupted):
        return UNEQUAL
    if clean == corrupted:
        return SAME_PROMPTS
    return clean, corrupted, right, wrong


def start_tokens(tokenizer: PreTrainedTokenizerFast, bos: bool) -> list[int]:
    """Return the token that stands before a story if ``bos``; none where there is none."""
    start = story_start(tokenizer) if bos else None
    return [] if start is None else [start]


def collect(
    name: str,
    candidates: Iterable[Candidate],
    n: int,
    held_out: int = 0,
    apart: Apart | None = None,
    instead: str | None = None,
) -> TaskPrompts:
    """Return the first ``n`` distinct pairs that can be used, by length; the others are counted.

    Args:
        name: of the task.
        candidates: pairs with their tokens, or with the reason why they cannot be used.
        n: how many pairs to use.
        held_out: how many further pairs to hold out, none of them among the first. Where there are
            too few for both (fewer than ``LEAST_HELD_OUT`` to hold out), all usable pairs are
            divided in the ratio asked for.
        apart: held-out pairs differ from the first ones in this, too.
        instead: the task to try where none can be used.

    Raises:
        UserError: none can be used.
    """
    selection = _Selection(candidates, n, held_out, apart)
    if not selection.first:
        counts = selection.left_out.most_common()
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in counts)
        advice = f"; try the task {instead}" if instead else ""
        raise UserError(f"{name}: no prompt can be used with this tokenizer: {reasons}{advice}")
    prompts = _prompts(name, selection.first, selection.left_out)
    if not selection.rest:
        return prompts
    rest = _prompts(name, selection.rest, selection.rest_left_out)
    return dataclasses.replace(prompts, held_out=rest)


def _prompts(
    name: str, pairs: Sequence[tuple[Pair, Row]], left_out: Mapping[str, int]
) -> TaskPrompts:
    """Return pairs as prompts, those of one length together."""
    by_length: dict[int, list[tuple[Pair, Row]]] = {}
    for pair, row in pairs:
        by_length.setdefault(len(row[0]), []).append((pair, row))
    ordered = [by_length[length] for length in sorted(by_length)]
    return TaskPrompts(
        name,
        batches=tuple(_batch([row for _, row in group]) for group in ordered),
        texts=tuple(pair for group in ordered for pair, _ in group),
        left_out=dict(left_out),
    )


class _Selection:
    """The pairs that are used, and those held out.

    Attributes:
        first, rest: pairs to search a circuit with, and pairs to measure it on.
        near: pairs that share with the first ones what held-out pairs must not.
        left_out, rest_left_out: pairs that could not be used while either was drawn, by reason.
    """

    def __init__(
        self, candidates: Iterable[Candidate], n: int, held_out: int, apart: Apart | None
    ) -> None:
        self.apart = apart
        self.left_out: Counter[str] = Counter()
        self.rest_left_out: Counter[str] = Counter()
        self.first: list[tuple[Pair, Row]] = []
        self.rest: list[tuple[Pair, Row]] = []
        self.near: list[tuple[Pair, Row]] = []
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for pair, row in candidates:
            left_out = self.left_out if len(self.first) < n else self.rest_left_out
            if isinstance(row, str):
                left_out[row] += 1
                continue
            key = (tuple(row[0]), tuple(row[1]), row[2:])
            if key in seen:
                left_out[REPEATED] += 1
                continue
            seen.add(key)
            self._take(pair, row, n)
            if len(self.first) == n and len(self.rest) >= held_out:
                break
        if len(self.rest) < min(held_out, LEAST_HELD_OUT):
            self._share(n, held_out)
        if self.near:
            self.rest_left_out[NOT_APART] += len(self.near)

    def _take(self, pair: Pair, row: Row, n: int) -> None:
        if len(self.first) < n:
            self.first.append((pair, row))
        elif self.apart and self.apart(row) in self._excluded:
            self.near.append((pair, row))
        else:
            self.rest.append((pair, row))

    @cached_property
    def _excluded(self) -> set[frozenset[int]]:
        """What held-out pairs must not share with the first ones, which are complete by now."""
        return {self.apart(row) for _, row in self.first} if self.apart else set()

    def _share(self, n: int, held_out: int) -> None:
        """Divide all pairs; those that must not be separated go to one side together."""
        pairs = [*self.first, *self.rest, *self.near]
        by_key: dict[object, list[tuple[Pair, Row]]] = {}
        for place, (pair, row) in enumerate(pairs):
            by_key.setdefault(self.apart(row) if self.apart else place, []).append((pair, row))
        if len(by_key) < 2:
            return
        wanted = min(n, max(1, round(len(pairs) * n / (n + held_out))))
        *groups, last = by_key.values()
        self.first, self.rest, self.near = [], [], []
        for group in groups:
            (self.first if len(self.first) < wanted else self.rest).extend(group)
        self.rest.extend(last)
        self.first, self.rest = self.first[:n], self.rest[:held_out]
        log.warning(
            "%d prompts can be used: %d to search with, %d held out (--held-out 0 holds out none)",
            len(pairs),
            len(self.first),
            len(self.rest),
        )


def answers(row: Row) -> frozenset[int]:
    """Return the unordered pair of answers: the names of an IOI prompt."""
    return frozenset(row[2:])


def _batch(rows: Sequence[Row]) -> PairBatch:
    clean, corrupted, right, wrong = map(torch.tensor, zip(*rows, strict=True))
    return PairBatch(clean, corrupted, right, wrong)
