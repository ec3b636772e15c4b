"""Facts: a prompt about a subject, and the attribute that completes it.

A file holds them in the format of ROME's ``known_1000.json`` (Meng et al. 2022, arXiv 2202.05262):
a JSON list of ``{"prompt": "Anna Reed works as a", "subject": "Anna Reed", "attribute": "baker",
"relation_id": "job", "template": "{} works as a"}``. Where there is no prompt, it is the template
with the subject in it. ``facts`` are the planted facts of the built-in corpus, whose deciding token
is known; ``ioi`` are names to be copied (the subject is the indirect object's first mention).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from evaluations.tasks.files import MOST_BYTES, json_file
from evaluations.tasks.tokens import encode, start_tokens
from sat_interp._util.errors import UserError, shown
from sat_interp._util.reading import UnreadableError, read_json
from sat_interp.data.planted.facts import known_facts
from sat_interp.data.stories import ioi_prompts
from sat_interp.data.tokenizer import fingerprint

BUILT_IN = ("facts", "ioi")
IOI_FACTS = 1000

# Why a fact is left out.
NO_SUBJECT = "the subject does not occur in the prompt"
NO_ATTRIBUTE = "the attribute has no token"
REPEATED = "the same prompt and answer as before"


@dataclass(frozen=True)
class Fact:
    """A fact as text.

    Attributes:
        decides: ``first`` or ``last``: which token of the subject the attribute follows from,
            where that is known.
    """

    prompt: str
    subject: str
    attribute: str
    relation: str = ""
    decides: str | None = None


@dataclass(frozen=True)
class FactPrompt:
    """A fact in a model's tokens.

    Attributes:
        tokens: of the prompt.
        subject: positions of the subject's tokens.
        answer: the attribute's first token.
    """

    fact: Fact
    tokens: tuple[int, ...]
    subject: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class FactPrompts:
    """Facts in a model's tokens; an evaluation's data (``runner.Data``).

    Attributes:
        name: ``facts``, ``ioi`` or the file's name.
        left_out: how many facts could not be used, by reason.
        first: 1 where prompts begin with BOS, else 0.
    """

    name: str
    prompts: tuple[FactPrompt, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    first: int = 1
    note: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def content(self) -> str:
        """A hash of tokens, subjects and answers."""
        parts = [(one.tokens, one.subject, one.answer, one.fact.decides) for one in self.prompts]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the facts' description in a record."""
        return {
            "spec": self.name,
            "content": self.content,
            "n": len(self),
            "left_out": dict(self.left_out),
            **self.note,
        }


def make_facts(
    facts: object,
    tokenizer: PreTrainedTokenizerFast,
    n: int,
    seed: int = 0,
    bos: bool = True,
) -> FactPrompts:
    """Return facts in a model's tokens, ``n`` of them drawn at random where there are more.

    Args:
        facts: ``facts``, ``ioi``, a .json file in ROME's format, the entries of one, or facts in
            tokens, which are returned as they are.
        tokenizer: of the model.
        bos: begin prompts with the token that begins a story.

    Raises:
        UserError: no such facts, a file that is none, or no fact that can be used.
    """
    if isinstance(facts, FactPrompts):
        return facts
    name, found = _resolved(facts, seed)
    random.Random(f"facts/{seed}").shuffle(found)
    start = start_tokens(tokenizer, bos)
    left_out: Counter[str] = Counter()
    kept: list[FactPrompt] = []
    seen = set()
    for fact in found:
        made = in_tokens(fact, tokenizer, start)
        if not isinstance(made, FactPrompt):
            left_out[made] += 1
            continue
        if (key := (made.tokens, made.answer)) in seen:
            left_out[REPEATED] += 1
            continue
        seen.add(key)
        kept.append(made)
        if len(kept) == n:
            break
    if not kept:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.most_common())
        raise UserError(f"{name}: no fact can be used: {reasons or 'there is none'}")
    note = {
        "n_in_file": len(found),
        "n_asked_for": n,
        "bos": bos,
        "tokenizer": fingerprint(tokenizer),
    }
    return FactPrompts(name, tuple(kept), dict(left_out), len(start), note)


def in_tokens(
    fact: Fact, tokenizer: PreTrainedTokenizerFast, start: Sequence[int]
) -> FactPrompt | str:
    """Return a fact in tokens, or the reason why it has none.

    The subject's tokens are those whose characters meet its first occurrence in the prompt.
    """
    at = fact.prompt.find(fact.subject) if fact.subject else -1
    if at < 0:
        return NO_SUBJECT
    encode(tokenizer, fact.prompt)  # refuses a stand-in for a tokenizer
    encoded = tokenizer(fact.prompt, add_special_tokens=False, return_offsets_mapping=True)
    end = at + len(fact.subject)
    subject = tuple(
        len(start) + place
        for place, (low, high) in enumerate(encoded["offset_mapping"])
        if low < end and high > at
    )
    answer = _answer(fact, tokenizer)
    if answer is None:
        return NO_ATTRIBUTE
    if not subject:
        return NO_SUBJECT
    return FactPrompt(fact, (*start, *encoded["input_ids"]), subject, answer)


def _answer(fact: Fact, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The first token of the attribute, after the prompt and a space."""
    word = fact.attribute.strip()
    if not word:
        return None
    before, whole = encode(tokenizer, fact.prompt), encode(tokenizer, f"{fact.prompt} {word}")
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before)]
    alone = encode(tokenizer, f" {word}")
    return alone[0] if alone else None


def _resolved(facts: object, seed: int) -> tuple[str, list[Fact]]:
    if facts == "facts":
        return "facts", _planted()
    if facts == "ioi":
        prompts = ioi_prompts(IOI_FACTS, seed)
        return "ioi", [Fact(one.text, one.io, one.io, "ioi") for one in prompts]
    if isinstance(facts, str | Path):
        path = json_file(facts, "facts", BUILT_IN, "in ROME's format")
        return path.name, list(_checked(_read(path), str(path)))
    if isinstance(facts, Sequence):
        return "in memory", list(_checked(list(facts), "the list of facts"))
    raise UserError(
        f"facts are a name, a file or a list of entries, not {type(facts).__name__}: {shown(facts)}"
    )


def _planted() -> list[Fact]:
    return [
        Fact(one.prompt, str(one.person), one.object, one.relation.name, one.relation.decides)
        for one in known_facts()
    ]


def _read(path: Path) -> list[Any]:
    try:
        content = read_json(path, MOST_BYTES)
    except UnreadableError as error:
        raise UserError(f"cannot read facts from {path}: {error}") from None
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of facts, as in ROME's known_1000.json")
    return content


def _checked(entries: list[Any], name: str) -> Iterator[Fact]:
    """Yield the facts of entries.

    Raises:
        UserError: there is none, or one lacks a field or has something else in it.
    """
    if not entries:
        raise UserError(f"{name} has no facts")
    for number, entry in enumerate(entries, start=1):
        where = f"{name}, fact {number} of {len(entries)}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is not an object")
        for key in ("subject", "attribute"):
            if not _is_text(entry.get(key)):
                raise UserError(f"{where}: {key!r} is not text")
        prompt = entry.get("prompt")
        if prompt is None and _is_text(entry.get("template")):
            prompt = entry["template"].replace("{}", entry["subject"], 1)
        if not isinstance(prompt, str) or not _is_text(prompt):
            raise UserError(f"{where} has neither a prompt nor a template")
        decides = entry.get("decides")
        if decides not in (None, "first", "last"):
            raise UserError(f"{where}: 'decides' must be first or last, not {shown(decides)}")
        relation = str(entry.get("relation_id", ""))
        yield Fact(prompt, entry["subject"], entry["attribute"], relation, decides)


def _is_text(value: Any) -> bool:
    """Whether it is text that can be encoded: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)
