"""The tasks, and their prompts in a model's own tokens: ``make_task("ioi", tokenizer)``."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.files import candidates, checked_entries, json_file, read_prompts
from evaluations.tasks.greater_than import (
    digit_sides,
    greater_than,
    greater_than_digit,
    sides,
)
from evaluations.tasks.ioi import ioi, ioi_tinystories
from evaluations.tasks.language import agreement, gender, quotes
from evaluations.tasks.pairs import Pair, Sides, TaskPrompts
from evaluations.tasks.recall import induction, recall, reply
from evaluations.tasks.tokens import Apart, Row, Words, answers, collect, start_tokens, with_row
from sat_interp._util.errors import UserError, shown
from sat_interp.data.tokenizer import fingerprint

DRAWS_PER_PROMPT = 50
"""Pairs drawn at most for each prompt asked for."""


@dataclass(frozen=True)
class Task:
    """A task: where its prompts come from.

    Attributes:
        name: of the task in records.
        pairs: draws pairs of prompts without end, given the usable words and a seed.
        apart: what held-out prompts must not share with the others, besides whole prompts.
        sides: from the tokenizer, all right and wrong answers, where there are several.
        instead: the task to try where a tokenizer cannot express this one.
    """

    name: str
    pairs: Callable[[Words, int], Iterator[Pair]]
    apart: Apart | None = None
    sides: Callable[[PreTrainedTokenizerFast], Sides] | None = None
    instead: str | None = None


TASKS = (
    Task("ioi", ioi, apart=answers),
    Task("ioi-tinystories", ioi_tinystories, apart=answers),
    Task("greater-than", greater_than, sides=sides, instead="greater-than-digit"),
    Task("greater-than-digit", greater_than_digit, sides=digit_sides, instead="greater-than"),
    Task("gender", gender),
    Task("quotes", quotes),
    Task("agreement", agreement),
    Task("induction", induction),
    Task("object", recall),
    Task("reply", reply, apart=answers),
)


def make_task(
    task: str | Path | Task | TaskPrompts | Sequence[Any],
    tokenizer: PreTrainedTokenizerFast,
    n: int = 100,
    seed: int = 0,
    bos: bool = True,
    held_out: int = 0,
) -> TaskPrompts:
    """Return the prompts of a task, in a model's own tokens.

    Args:
        task: the name of one of ``TASKS``; a ``.json`` file in auto-circuit's format, or the
            entries of one; a :class:`Task` of one's own; or prompts, which are returned as they
            are.
        tokenizer: of the model (``LoadedModel.tokenizer``).
        n: number of prompts; fewer where the tokenizer, or the file, has no more, which the
            record states.
        seed: of the draws; of a file with more than ``n`` prompts, which of them.
        bos: begin prompts with the token that begins a story.
        held_out: further prompts, in ``TaskPrompts.held_out``, none of them among the ``n``. Of IOI
            (and of a file whose answers are words of the prompts) they share no unordered pair of
            names with them either.

    Raises:
        UserError: an unknown task, a file that is none, ``n`` below 1, ``held_out`` below 0, or a
            tokenizer with which no prompt can be used.
    """
    if n < 1:
        raise UserError(f"a task takes at least one prompt, not {n}")
    if held_out < 0:
        raise UserError(f"a task holds out 0 prompts or more, not {held_out}")
    if isinstance(task, TaskPrompts):
        return task
    name, source = _resolved(task)
    start = start_tokens(tokenizer, bos)
    note: dict[str, Any] = {
        "n_asked_for": n,
        "seed": seed,
        "bos": bos,
        "tokenizer": fingerprint(tokenizer),
        "story_start": tokenizer.convert_ids_to_tokens(start[0]) if start else None,
    }
    if isinstance(source, Task):
        words = Words(name, tokenizer)
        drawn = islice(source.pairs(words, seed), DRAWS_PER_PROMPT * (n + held_out))
        rows = (with_row(words.tokenizer, pair, start) for pair in drawn)
        made = collect(name, rows, n, held_out, source.apart, source.instead)
        whole = _completed(made, words.left_out, note, tokenizer, start)
        return whole if source.sides is None else _with_sides(whole, source.sides(tokenizer))
    several = sum(len(one["answers"]) > 1 or len(one["wrong_answers"]) > 1 for one in source)
    note |= {"n_in_file": len(source), "n_with_several_answers": several}
    random.Random(f"file/{seed}").shuffle(source)
    made = collect(name, candidates(source, tokenizer, start), n, held_out, _names_apart)
    return _completed(made, {}, note, tokenizer, start)


def check_name(task: str) -> None:
    """Refuse a task that no tokenizer could have prompts of.

    Raises:
        UserError: it is neither one of ``TASKS`` nor a file of prompts.
    """
    _resolved(task)


def _resolved(task: object) -> tuple[str, Task | list[dict[str, Any]]]:
    """Return a task's name, and the task or the entries of its file."""
    if isinstance(task, Task):
        return task.name, task
    if isinstance(task, str | Path):
        known = next((one for one in TASKS if one.name == task), None)
        if known is not None:
            return known.name, known
        path = json_file(str(task), "task", [one.name for one in TASKS], "of prompts")
        return path.name, read_prompts(path)
    if isinstance(task, Sequence):
        return "in memory", checked_entries(list(task), "the task")
    raise UserError(
        f"a task is a name, a file or prompts, not {type(task).__name__}: {shown(task)}"
    )


def _completed(
    made: TaskPrompts,
    words_left_out: dict[str, int],
    note: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    start: list[int],
) -> TaskPrompts:
    """Return prompts, those held out too, with the facts that a record states of them."""

    def decode(tokens: list[int]) -> str:
        """Return a prompt's text, without the token that it begins with."""
        own = tokens[len(start) :] if tokens[: len(start)] == start else tokens
        return str(tokenizer.decode(own))

    def completed(prompts: TaskPrompts) -> TaskPrompts:
        return dataclasses.replace(prompts, words_left_out=words_left_out, note=note, decode=decode)

    whole = completed(made)
    if made.held_out is None:
        return whole
    return dataclasses.replace(whole, held_out=completed(made.held_out))


def _with_sides(prompts: TaskPrompts, all_answers: Sides) -> TaskPrompts:
    held = prompts.held_out
    held = None if held is None else dataclasses.replace(held, sides=all_answers)
    return dataclasses.replace(prompts, sides=all_answers, held_out=held)


def _names_apart(row: Row) -> frozenset[int]:
    """Return the pair of answers where both are words of the prompt; else the prompt's tokens."""
    pair = answers(row)
    return pair if pair <= set(row[0]) else frozenset(row[0])
