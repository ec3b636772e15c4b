"""Paired prompts with a right and a wrong answer, in tokens: a task as evaluations read it.

A clean prompt has a right answer; its corrupted counterpart, of the same length, does not support
it. Prompts of one length form a batch, so that nothing is padded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sat_interp._util.errors import UserError

LOGITS = 1 << 24
"""Logits in memory at once: 64 MiB in float32, for any batch and vocabulary."""
_Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


class Pair(NamedTuple):
    """A pair as text; the answers follow the clean prompt directly, space included."""

    clean: str
    corrupted: str
    right: str
    wrong: str


Sides = Callable[[Pair], tuple[list[int], list[int]]]
"""All right and all wrong answers to a pair's clean prompt, as tokens."""


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one length. ``right`` and ``wrong`` are the tokens after the last position."""

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    right: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.clean)

    def __getitem__(self, rows: Sequence[int]) -> PairBatch:
        """Return the pairs in these rows; a row may come more than once."""
        at = torch.tensor(rows, dtype=torch.long)
        return PairBatch(self.clean[at], self.corrupted[at], self.right[at], self.wrong[at])

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.clean, self.corrupted, self.right, self.wrong


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of one task for one tokenizer; an evaluation's data (``runner.Data``).

    Attributes:
        name: of the task, or of the file the prompts came from (without its folder).
        batches: one for each length, shortest first, on the CPU. Prompts are numbered through
            them: 0 is the first of the shortest.
        texts: the same pairs as text, in the same order.
        left_out: how many drawn prompts could not be used, by reason.
        words_left_out: how many words could not be used at all (not one token), by kind.
        note: further facts for the record (seed, tokenizer, ...).
        held_out: further prompts of the task, none of them among these, on which a circuit found
            with these is measured.
        decode: from tokens to text, where the tokenizer is known.
        sides: all right and all wrong answers, where a task has more than one of either.
    """

    name: str
    batches: tuple[PairBatch, ...]
    texts: tuple[Pair, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    words_left_out: dict[str, int] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)
    held_out: TaskPrompts | None = None
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)
    sides: Sides | None = field(default=None, repr=False, compare=False)

    @property
    def n(self) -> int:
        """The number of prompts, of all lengths."""
        return sum(map(len, self.batches))

    @property
    def n_left_out(self) -> int:
        """The number of prompts that could not be used, for any reason."""
        return sum(self.left_out.values())

    @property
    def first_ablated(self) -> int:
        """The first position that ablations replace: 1 where all prompts begin with BOS, else 0.

        Attention rests on BOS, which says nothing about a prompt. Prompts that do not state how
        they begin have one if all begin with the same token.
        """
        if "story_start" in self.note:
            return int(self.note["story_start"] is not None)
        return int(len({int(token) for batch in self.batches for token in batch.clean[:, 0]}) == 1)

    @cached_property
    def content(self) -> str:
        """A hash of the tokens; the task's name is not part of it."""
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(repr(tuple(batch.clean.shape)).encode())
            for part in batch._parts():
                # one dtype and byte order, so that the hash is the same on any machine
                digest.update(part.numpy().astype("<i8").tobytes())
        if self.held_out is not None:
            digest.update(self.held_out.content.encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the facts a record states; ``content`` alone decides whether prompts are the same.

        ``lengths`` maps a length in tokens to the number of prompts that have it.
        """
        return {
            "spec": self.name,
            "content": self.content,
            "n": self.n,
            "n_left_out": self.n_left_out,
            "left_out": dict(self.left_out),
            "words_left_out": dict(self.words_left_out),
            "lengths": {batch.clean.shape[1]: len(batch) for batch in self.batches},
            **self.note,
            **({} if self.held_out is None else {"held_out": self._held_out_described()}),
        }

    def _held_out_described(self) -> dict[str, Any]:
        assert self.held_out is not None
        facts = self.held_out.describe()
        return {key: facts[key] for key in ("content", "n", "left_out", "lengths")}

    def subset(self, indices: Sequence[int]) -> TaskPrompts:
        """Return the prompts of these numbers, each with those of its length; repeats are kept.

        Raises:
            IndexError: a number is negative or beyond the last prompt.
        """
        wanted = sorted(int(index) for index in indices)
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.n:
            raise IndexError(f"there are {self.n} prompts: no number {wanted[0]} or {wanted[-1]}")
        batches, first = [], 0
        for batch in self.batches:
            rows = [index - first for index in wanted if first <= index < first + len(batch)]
            first += len(batch)
            if rows:
                batches.append(batch[rows])
        texts = tuple(self.texts[index] for index in wanted)
        return dataclasses.replace(self, batches=tuple(batches), texts=texts)

    def bootstrap(self, seed: int) -> TaskPrompts:
        """Return as many prompts, drawn with replacement from all of them (Efron 1979)."""
        drawn = np.random.default_rng(seed).integers(self.n, size=self.n)
        return self.subset(drawn.tolist())


@dataclass(frozen=True)
class Competence:
    """How well a model does a task. The edge count of a model that fails it is not meaningful.

    Attributes:
        accuracy: share of prompts where the right answer's logit is above the wrong answer's;
            chance is 0.5, and a tie counts as wrong.
        low, high: 95 % Wilson interval of the accuracy.
        top: share of prompts where the right answer has the highest logit of all.
        logit_difference: mean of logit(right) - logit(wrong), in nats.
        logit_difference_error: its standard error over prompts; None with fewer than two.
        n: prompts scored.
        n_failed: prompts whose logits are not finite; excluded from all figures.
        n_left_out: prompts the task left out for this tokenizer.
        probability_differences: of each prompt scored, the probability of all right answers minus
            that of all wrong ones, where a task has several (``TaskPrompts.sides``).
    """

    accuracy: float
    low: float
    high: float
    top: float
    logit_difference: float
    logit_difference_error: float | None
    n: int
    n_failed: int
    n_left_out: int
    probability_differences: tuple[float, ...] = ()

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy's interval includes 0.5: not shown to exceed chance."""
        return self.low <= 0.5


def competence(model: HookedTransformer, prompts: TaskPrompts) -> Competence:
    """Score the clean prompts on the clean stream, at the last position.

    Raises:
        UserError: the prompts do not fit the model, or none of its logits is finite.
    """
    check_fit(model, prompts)
    differences: list[Float[Tensor, " batch"]] = []
    tops: list[Bool[Tensor, " batch"]] = []
    apart: list[float] = []
    texts = iter(prompts.texts)
    with torch.inference_mode():
        for batch in prompts.batches:
            logits = _last_logits(model, batch.clean).double()
            at = torch.arange(len(batch))
            if prompts.sides is not None:
                apart += _apart(logits, [prompts.sides(next(texts)) for _ in range(len(batch))])
            differences.append(logits[at, batch.right] - logits[at, batch.wrong])
            tops.append(logits.argmax(-1) == batch.right)
    difference, top = torch.cat(differences), torch.cat(tops)
    finite = difference.isfinite()
    difference, top = difference[finite], top[finite]
    n, n_failed = len(difference), int((~finite).sum())
    if not n:
        raise UserError(f"{prompts.name}: the model's logits are not finite on any prompt")
    successes = int((difference > 0).sum())
    low, high = wilson(successes, n)
    error = float(difference.std()) / math.sqrt(n) if n > 1 else None
    return Competence(
        accuracy=successes / n,
        low=low,
        high=high,
        top=float(top.double().mean()),
        logit_difference=float(difference.mean()),
        logit_difference_error=error,
        n=n,
        n_failed=n_failed,
        n_left_out=prompts.n_left_out,
        probability_differences=tuple(one for one in apart if math.isfinite(one)),
    )


def _apart(
    logits: Float[Tensor, "batch d_vocab"], sides: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """The probability of all right answers minus that of all wrong ones, of each prompt."""
    p = logits.softmax(-1)
    return [
        float(own[right].sum() - own[wrong].sum())
        for own, (right, wrong) in zip(p, sides, strict=True)
    ]


def check_fit(model: HookedTransformer, prompts: TaskPrompts) -> None:
    """Do nothing if the model can read the prompts.

    Raises:
        UserError: there is no prompt, one is longer than the context, or has a token that the model
            has no row for.
    """
    if not prompts.n:
        raise UserError(f"{prompts.name}: there is no prompt")
    longest = max(batch.clean.shape[1] for batch in prompts.batches)
    if longest > model.cfg.n_ctx:
        raise UserError(
            f"{prompts.name}: prompts of {longest} tokens do not fit the context of "
            f"{model.cfg.n_ctx}"
        )
    highest = max(int(part.max()) for batch in prompts.batches for part in batch._parts())
    if highest >= model.cfg.d_vocab:
        raise UserError(
            f"{prompts.name}: the prompts use token number {highest:,}, but the model knows only "
            f"{model.cfg.d_vocab:,}; tokenizer and model do not belong together"
        )


def _last_logits(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_vocab"]:
    """Return the logits after the last token, on the CPU, computed for a few rows at a time."""
    rows = max(1, LOGITS // (tokens.shape[1] * model.cfg.d_vocab_out))
    parts = [
        model(tokens[first : first + rows].to(model.cfg.device), return_type="logits")[:, -1].cpu()
        for first in range(0, len(tokens), rows)
    ]
    return torch.cat(parts)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927), valid near 0 and 1.

    With p = successes / n and z the normal quantile, centre (p + z^2/2n) / (1 + z^2/n) and half
    width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    """
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
