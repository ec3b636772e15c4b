"""A model on facts: what is left of its answers when a subject is corrupted and outputs restored.

The corruption is added to the token embeddings (positions are kept), and outputs of attention or
MLPs are put back to their clean values at chosen layers and tokens (Meng et al. 2022, arXiv
2202.05262, section 2.1). Many such problems run in one batch, on prompts of one length at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_pass import (
    ATTENTION_OUT,
    MLP_OUT,
    RESIDUAL_IN,
    Edit,
    passes,
    unembed,
)
from evaluations.tasks.facts import FactPrompt
from sat_interp._util.errors import UserError

SITES = {"attn": ATTENTION_OUT, "mlp": MLP_OUT}
Restored = Literal["clean", "zero"]


class Problem(NamedTuple):
    """Outputs that are restored: of one kind, at some tokens, in some layers; none of no layers."""

    kind: str = "mlp"
    tokens: str = "last"
    layers: tuple[int, ...] = ()


NOTHING = Problem()


@dataclass(frozen=True)
class Bucket:
    """Facts whose prompts have one length.

    Attributes:
        numbers: of the facts.
        stream: the first block's clean input.
        embedded: the token embeddings in it.
        sets: positions by name: last, last_subject, all_subject, first_subject, middle_subject,
            next (the first after the subject) and further (the others before the last), span (as
            many tokens as the subject has, elsewhere), deciding and other (subject tokens).
        clean: outputs by layer and kind.
        answer: the answers' tokens.
    """

    numbers: Int[Tensor, " fact"]
    tokens: Int[Tensor, "fact pos"]
    stream: Float[Tensor, "fact pos d_model"]
    embedded: Float[Tensor, "fact pos d_model"]
    sets: Mapping[str, Bool[Tensor, "fact pos"]]
    clean: Mapping[tuple[int, str], Float[Tensor, "fact pos d_model"]]
    answer: Int[Tensor, " fact"]

    def __len__(self) -> int:
        return len(self.numbers)


class Answers(NamedTuple):
    """What the model says at the last position.

    Attributes:
        p: probability of the answer.
        logit: its logit less the mean of all.
        is_top: whether it is the first choice.
    """

    p: Float[Tensor, "*rows"]
    logit: Float[Tensor, "*rows"]
    is_top: Bool[Tensor, "*rows"]


Change = Callable[[Bucket, slice, Int[Tensor, " problem"]], Float[Tensor, "_ fact pos d_model"]]
"""What is added to the embeddings of some facts of a bucket, for each problem or for all (1)."""


class TraceRun:
    """A model with its facts, run once.

    Args:
        facts: in tokens.
        answers: the tokens whose probability is traced.
        spans: for each fact, positions of a span beside the subject; empty where there is none.
        memory: bytes of activations that one pass may hold.
    """

    def __init__(
        self,
        model: HookedTransformer,
        facts: Sequence[FactPrompt],
        answers: Sequence[int],
        spans: Sequence[Sequence[int]],
        memory: int,
    ) -> None:
        self.model, self.facts, self.memory = model, facts, memory
        self.passes = passes(model)
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, fact in enumerate(facts):
            by_length[len(fact.tokens)].append(number)
        with torch.no_grad():
            self.buckets = [
                self._bucket(numbers, answers, spans) for _, numbers in sorted(by_length.items())
            ]

    def __len__(self) -> int:
        return len(self.facts)

    def _bucket(
        self, numbers: list[int], answers: Sequence[int], spans: Sequence[Sequence[int]]
    ) -> Bucket:
        device = self.model.W_E.device
        tokens = torch.tensor([self.facts[i].tokens for i in numbers]).to(device)
        parts = [self._clean(some) for some in tokens.split(self._rows(tokens.shape[1]))]
        stream, embedded, *outputs = (torch.cat(one) for one in zip(*parts, strict=True))
        at = [positions(self.facts[i], spans[i]) for i in numbers]
        sets = {name: _mask([one[name] for one in at], tokens) for name in at[0]}
        answer = torch.tensor([answers[i] for i in numbers]).to(device)
        clean = dict(zip(self._places(), outputs, strict=True))
        return Bucket(torch.tensor(numbers), tokens, stream, embedded, sets, clean, answer)

    def _places(self) -> list[tuple[int, str]]:
        kinds = ["attn"] if self.model.cfg.attn_only else ["attn", "mlp"]
        return [(layer, kind) for layer in range(self.model.cfg.n_layers) for kind in kinds]

    def _clean(self, tokens: Int[Tensor, "fact pos"]) -> list[Tensor]:
        """The first block's input, the token embeddings, and the outputs of all places."""
        streams = self.passes.streams(tokens)
        found = [streams[0], self.model.embed(tokens)]
        for layer in range(self.model.cfg.n_layers):
            state = self.passes.state(layer, streams[layer])
            found += [state[SITES[kind]][0] for at, kind in self._places() if at == layer]
        return found

    def _rows(self, n_pos: int) -> int:
        """How many rows, each a prompt with a problem, one pass may hold."""
        cfg = self.model.cfg
        per_position = 12 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 4 * (cfg.d_mlp or 0)
        per_position += cfg.n_heads * n_pos
        row = cfg.n_layers * n_pos * per_position + 4 * cfg.d_vocab_out
        return max(1, self.memory // (row * self.model.W_E.element_size()))

    def embeddings(self, where: str = "all_subject") -> Float[Tensor, "token d_model"]:
        """Return the token embeddings at some positions of all facts."""
        return torch.cat([bucket.embedded[bucket.sets[where]] for bucket in self.buckets])

    def answers(
        self,
        problems: Sequence[Problem],
        change: Change | None = None,
        restored: Restored = "clean",
    ) -> Answers:
        """Return the answers of each problem and fact, on the CPU, as float64.

        Args:
            change: of the embeddings; none by default.
            restored: what outputs are put to: their clean values, or 0 (a knock-out).
        """
        found = Answers(
            torch.zeros(len(problems), len(self), dtype=torch.float64),
            torch.zeros(len(problems), len(self), dtype=torch.float64),
            torch.zeros(len(problems), len(self), dtype=torch.bool),
        )
        with torch.no_grad():
            for bucket, rows, some in self.pieces(len(problems)):
                chosen = [problems[i] for i in some]
                logits = self.logits(chosen, bucket, rows, change, some, restored)
                at = bucket.answer[rows].expand(len(some), -1)[..., None]
                own = logits.double()
                log_p = own.log_softmax(-1).gather(-1, at)[..., 0]
                logit = own.gather(-1, at)[..., 0] - own.mean(-1)
                numbers = bucket.numbers[rows]
                for part, value in zip(
                    found, (log_p.exp(), logit, logits.argmax(-1) == at[..., 0]), strict=True
                ):
                    part[some[:, None], numbers] = value.cpu()
        return found

    def first_choices(self) -> Int[Tensor, " fact"]:
        """Return each clean prompt's most probable next token.

        Raises:
            UserError: predictions that are not finite.
        """
        found = torch.zeros(len(self), dtype=torch.long)
        with torch.no_grad():
            for bucket, rows, some in self.pieces(1):
                logits = self.logits([NOTHING], bucket, rows, None, some)[0]
                if not bool(logits.isfinite().all()):
                    raise UserError("the model's predictions are not finite (NaN) on these facts")
                found[bucket.numbers[rows]] = logits.argmax(-1).cpu()
        return found

    def pieces(self, n_problems: int) -> Iterator[tuple[Bucket, slice, Int[Tensor, " problem"]]]:
        """Yield facts and numbers of problems small enough for one pass."""
        for bucket in self.buckets:
            size = self._rows(bucket.tokens.shape[1])
            n_rows = min(len(bucket), size)
            for start in range(0, len(bucket), n_rows):
                rows = slice(start, min(start + n_rows, len(bucket)))
                for some in torch.arange(n_problems).split(max(1, size // n_rows)):
                    yield bucket, rows, some

    def logits(
        self,
        problems: Sequence[Problem],
        bucket: Bucket,
        rows: slice,
        change: Change | None,
        numbers: Int[Tensor, " problem"],
        restored: Restored = "clean",
    ) -> Float[Tensor, "problem fact d_vocab"]:
        """Return the logits at the last position; differentiable in the change.

        Args:
            numbers: of the problems, for ``change``.
        """
        stream = bucket.stream[rows][None]
        value = stream if change is None else stream + change(bucket, rows, numbers)
        value = value.expand(len(problems), -1, -1, -1)
        edits = {
            (layer, SITES[kind]): _editor(problems, layer, kind, bucket, rows, restored)
            for layer, kind in self._places()
            if any(one.kind == kind and layer in one.layers for one in problems)
        }
        state = {RESIDUAL_IN: stream}
        end = self.passes.tail((0, RESIDUAL_IN), state, value, edits, last=True)
        return unembed(self.model, end)[:, :, -1]


def _editor(
    problems: Sequence[Problem],
    layer: int,
    kind: str,
    bucket: Bucket,
    rows: slice,
    restored: Restored,
) -> Edit:
    """Put a place's outputs back, for the problems and at the tokens that ask for it."""
    clean = bucket.clean[layer, kind][rows]
    none = torch.zeros_like(bucket.sets["last"][rows])
    mask = torch.stack(
        [
            bucket.sets[one.tokens][rows] if one.kind == kind and layer in one.layers else none
            for one in problems
        ]
    )[..., None]
    new = clean if restored == "clean" else torch.zeros_like(clean)

    def edit(value: Tensor, narrowed: bool) -> Tensor:
        if narrowed:
            return torch.where(mask[:, :, -1:], new[:, -1:], value)
        return torch.where(mask, new, value)

    return edit


def has_known_decider(fact: FactPrompt) -> bool:
    """Whether it is known which of the subject's two tokens decides."""
    return fact.fact.decides is not None and len(fact.subject) == 2


def positions(fact: FactPrompt, span: Sequence[int] = ()) -> dict[str, tuple[int, ...]]:
    """Positions of a fact by name."""
    subject, decides = fact.subject, fact.fact.decides
    first, last = subject[:1], subject[-1:]
    rest = tuple(range(subject[-1] + 1, len(fact.tokens) - 1))
    both = {"first": (first, last), "last": (last, first)}
    deciding, other = both[str(decides)] if has_known_decider(fact) else ((), ())
    return {
        "last": (len(fact.tokens) - 1,),
        "last_subject": last,
        "first_subject": first,
        "all_subject": subject,
        "middle_subject": subject[1:-1],
        "next": rest[:1],
        "further": rest[1:],
        "span": tuple(span),
        "deciding": deciding,
        "other": other,
    }


def _mask(
    positions: Sequence[Sequence[int]], tokens: Int[Tensor, "fact pos"]
) -> Bool[Tensor, "fact pos"]:
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, some in enumerate(positions):
        mask[row, list(some)] = True
    return mask.to(tokens.device)
