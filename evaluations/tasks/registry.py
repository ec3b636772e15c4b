"""Tasks by name, or from a file: ``make_task("ioi", tokenizer)``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.files import candidates, read_prompts
from evaluations.tasks.greater_than import greater_than
from evaluations.tasks.ioi import ioi, ioi_tinystories
from evaluations.tasks.language import agreement, gender, quotes
from evaluations.tasks.pairs import Pair, TaskPrompts
from evaluations.tasks.recall import induction, recall
from evaluations.tasks.tokens import Row, Words, answers, collect, start_tokens, with_row
from sat_interp._util.errors import UserError, suggest
from sat_interp.data.tokenizer import fingerprint

# Each draws pairs without end; the words a tokenizer does not have are counted on the way.
TASKS: dict[str, Callable[[Words, int], Iterator[Pair]]] = {
    "ioi": ioi,
    "ioi-tinystories": ioi_tinystories,
    "greater-than": greater_than,
    "gender": gender,
    "quotes": quotes,
    "agreement": agreement,
    "induction": induction,
    "object": recall,
}
TRIES = 50  # pairs drawn at most for each one asked for


def make_task(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    n: int = 100,
    seed: int = 0,
    bos: bool = True,
    held_out: int = 0,
) -> TaskPrompts:
    """The prompts of a task, in a model's own tokens.

    Args:
        name_or_path: a name in ``TASKS``, or a ``.json`` file in auto-circuit's format.
        n: prompts; fewer come where the tokenizer, or the file, has no more, and the record says
            so.
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
    name = str(name_or_path)
    start = start_tokens(tokenizer, bos)
    note: dict[str, Any] = {
        "n_asked_for": n, "seed": seed, "bos": bos, "tokenizer": fingerprint(tokenizer),
        "story_start": tokenizer.convert_ids_to_tokens(start[0]) if start else None,
    }  # fmt: skip
    if name not in TASKS:
        return _from_file(_file(name), tokenizer, n, seed, start, note, held_out)
    words = Words(name, tokenizer)
    pairs = islice(TASKS[name](words, seed), TRIES * (n + held_out))
    drawn = (with_row(tokenizer, pair, start) for pair in pairs)
    apart = answers if name.startswith("ioi") else None
    decode = _decoder(tokenizer, start)
    return collect(name, drawn, n, words.left_out, note, held_out, apart, decode)


def _decoder(tokenizer: PreTrainedTokenizerFast, start: list[int]) -> Callable[[list[int]], str]:
    """From a prompt's tokens to its text, without the token that it begins with."""

    def decode(tokens: list[int]) -> str:
        return str(
            tokenizer.decode(tokens[len(start) :] if tokens[: len(start)] == start else tokens)
        )

    return decode


def _names_apart(row: Row) -> frozenset[int]:
    """The pair of answers where both are words of the prompt; else the prompt's own tokens."""
    pair = answers(row)
    return pair if pair <= set(row[0]) else frozenset(row[0])


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name too long
        raise UserError(f"task {name[:60]!r}: {error.strerror}") from None
    if path.suffix == ".json":
        raise UserError(f"there is no file {name}")
    raise UserError(f"{suggest('task', name, TASKS)}; or a .json file of prompts")


def _from_file(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    n: int,
    seed: int,
    start: list[int],
    note: dict[str, Any],
    held_out: int,
) -> TaskPrompts:
    entries = read_prompts(path)
    several = sum(len(entry["answers"]) > 1 or len(entry["wrong_answers"]) > 1 for entry in entries)
    random.Random(f"file/{seed}").shuffle(entries)
    note = {**note, "n_in_file": len(entries), "n_with_several_answers": several}
    return collect(
        path.name, candidates(entries, tokenizer, start), n, note=note, held_out=held_out,
        apart=_names_apart, decode=_decoder(tokenizer, start),
    )  # fmt: skip
