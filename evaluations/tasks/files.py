"""Prompts from a file in the JSON format of auto-circuit (Miller et al. 2024, arXiv 2407.08734).

``{"prompts": [{"clean": ..., "corrupt": ..., "answers": [...], "wrong_answers": [...]}, ...]}``,
where prompts are text or token numbers and answers lists of text or of token numbers. Other keys
(``word_idxs``, ``seq_labels``) are for pictures and are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.pairs import Pair
from evaluations.tasks.tokens import SEVERAL_TOKENS, Candidate, checked, encode, following
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded
from sat_interp._util.reading import UnreadableError, read_json

MOST_BYTES = 1 << 28
KEYS = ("clean", "corrupt", "answers", "wrong_answers")


def json_file(name: str | Path, kind: str, choices: Iterable[str], content: str) -> Path:
    """Return the file that an argument names, where it names nothing built in.

    Args:
        name: the argument.
        kind: of thing that it names, such as ``task``.
        choices: what is built in, for the message.
        content: of the file, such as ``prompts``.

    Raises:
        UserError: there is no such file, or it looks like a name and not like a file.
    """
    path = expanded(name)
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name too long
        raise UserError(f"{kind} {str(name)[:60]!r}: {error.strerror}") from None
    if path.suffix == ".json":
        raise UserError(f"there is no file {name}")
    raise UserError(f"{suggest(kind, str(name), choices)}; or a .json file {content}")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file, each with its four keys.

    Raises:
        UserError: the file cannot be read, is no JSON, has no prompts, or one of them lacks a key
            or has something else under it.
    """
    try:
        content = read_json(path, MOST_BYTES)
    except UnreadableError as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from None
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list):
        raise UserError(f'{path} has no list of prompts: {{"prompts": [...]}}')
    return checked_entries(prompts, str(path))


def checked_entries(prompts: list[Any], name: str) -> list[dict[str, Any]]:
    """Return entries that are prompts, each with its four keys.

    Args:
        prompts: the entries.
        name: of where they come from, for messages.

    Raises:
        UserError: there is none, or one lacks a key or has something else under it.
    """
    if not prompts:
        raise UserError(f"{name} has an empty list of prompts")
    for number, entry in enumerate(prompts, start=1):
        if fault := _fault(entry):
            raise UserError(f"{name}, prompt {number} of {len(prompts)}: {fault}")
    return prompts


def _fault(entry: Any) -> str | None:
    """Return what is wrong with an entry, or None."""
    if not isinstance(entry, dict):
        return "it is not an object"
    if missing := [key for key in KEYS if key not in entry]:
        return f"it has no {missing[0]!r}"
    for key in KEYS[:2]:
        if not entry[key] or not (_is_text(entry[key]) or _are_tokens(entry[key])):
            return f"{key!r} is neither text nor a list of token numbers"
    for key in KEYS[2:]:
        if not _are_answers(entry[key]):
            return f"{key!r} is not a list of answers"
    return None


def _are_answers(value: Any) -> bool:
    """Whether it is a list of answers: texts or token numbers, at least one."""
    if not value or not isinstance(value, list):
        return False
    return all(map(_is_text, value)) or _are_tokens(value)


def _is_text(value: Any) -> bool:
    """Whether it is text that can be encoded: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(token) is int and 0 <= token < 1 << 31 for token in value
    )


def candidates(
    entries: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, start: list[int]
) -> Iterator[Candidate]:
    """Yield each entry with its tokens, or with the reason why it cannot be used.

    Of several answers the first is taken. An answer is looked up by itself, as auto-circuit does,
    and in its place after the prompt where that is not one token.

    Args:
        entries: the prompts.
        tokenizer: of the model.
        start: tokens to put before prompts that are text; token numbers are taken as they are.
    """
    for entry in entries:
        texts = [_text(tokenizer, entry[key]) for key in KEYS[:2]]
        texts += [_text(tokenizer, entry[key][0]) for key in KEYS[2:]]
        pair = Pair(*texts)
        right, wrong = (_answer(tokenizer, pair.clean, entry[key][0]) for key in KEYS[2:])
        if right is None or wrong is None:
            yield pair, SEVERAL_TOKENS
            continue
        clean, corrupted = (_tokens(tokenizer, entry[key], start) for key in KEYS[:2])
        yield pair, checked(clean, corrupted, right, wrong)


def _text(tokenizer: PreTrainedTokenizerFast, value: str | int | list[int]) -> str:
    if isinstance(value, str):
        return value
    return str(tokenizer.decode(value))


def _tokens(
    tokenizer: PreTrainedTokenizerFast, value: str | list[int], start: list[int]
) -> list[int]:
    return [*start, *encode(tokenizer, value)] if isinstance(value, str) else value


def _answer(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str | int) -> int | None:
    if isinstance(answer, int):
        return answer
    alone = encode(tokenizer, answer)
    return alone[0] if len(alone) == 1 else following(tokenizer, prompt, answer)
