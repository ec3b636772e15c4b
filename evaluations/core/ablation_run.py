"""A model on prompts, run once: what any ablation costs on them (``ablation``)."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation import Group, Part, Place
from evaluations.core.ablation_pass import Edit, State, passes, unembed
from sat_interp._util.errors import UserError

Scored = Literal["last", "all"]
Replacement = Sequence[Float[Tensor, "problem _ _ _"]]
"""What replaces each part of a group on one bucket of prompts."""

MEMORY = 64 * 2**20
"""Bytes of activations that one pass may hold, by default. Larger passes are slower on a CPU: the
allocator gives memory of this size back to the system and fetches it again, time and again."""
KEPT = 4
"""The model's own predictions are kept where they take so many times that memory at most."""


@dataclass(frozen=True)
class CleanBucket:
    """Prompts of one length and the residual stream before every block and after the last."""

    tokens: Int[Tensor, "prompt pos"]
    streams: list[Tensor]

    def __len__(self) -> int:
        return len(self.tokens)


class CleanRun:
    """A model on prompts, run once; what any ablation of it costs on them.

    Args:
        batches: prompts, each batch of one length; never padded.
        first: the first position that is ablated: 1 where prompts begin with BOS, else 0.
        scored: whether the KL is that at the last position, or the mean over all from ``first`` on.
        memory: bytes of activations that one pass may hold.

    Raises:
        UserError: no prompts, prompts too short to be ablated, or activations that are not finite.
    """

    def __init__(
        self,
        model: HookedTransformer,
        batches: Sequence[Int[Tensor, "_ _"]],
        first: int = 1,
        scored: Scored = "last",
        memory: int = MEMORY,
    ) -> None:
        self.model, self.first, self.scored, self.memory = model, first, scored, memory
        self.passes = passes(model)
        kept = [batch for batch in batches if len(batch)]
        if not kept:
            raise UserError("there are no prompts to ablate on")
        if min(batch.shape[1] for batch in kept) <= first:
            raise UserError(f"a prompt has no position to ablate: it has {first} tokens or fewer")
        with torch.no_grad():
            self.buckets = [self._run(batch.to(model.W_E.device)) for batch in kept]
        if not all(bool(bucket.streams[-1].isfinite().all()) for bucket in self.buckets):
            raise UserError("the model's activations are not finite (NaN) on these prompts")
        self._states: dict[tuple[int, int], State] = {}
        self._targets: dict[int, Target] = {}
        self._double: CleanRun | None = None

    def subset(self, prompts: Int[Tensor, " some"]) -> CleanRun:
        """Return the run of some of the prompts, by number; nothing is computed again."""
        kept: list[CleanBucket] = []
        targets: dict[int, Target] = {}
        offset = 0
        for number, bucket in enumerate(self.buckets):
            own = prompts[(prompts >= offset) & (prompts < offset + len(bucket))] - offset
            offset += len(bucket)
            if len(own):
                own = own.to(bucket.tokens.device)
                if (target := self._kept_target(number)) is not None:
                    targets[len(kept)] = target.take(own)
                streams = [stream[own] for stream in bucket.streams]
                kept.append(CleanBucket(bucket.tokens[own], streams))
        return self._with(kept, targets)

    def double(self) -> CleanRun:
        """Return the run of the same prompts and model in float64; it is kept."""
        if self.model.W_E.dtype == torch.float64:
            return self
        if self._double is None:
            model = copy.deepcopy(self.model)
            model.to(torch.float64, print_details=False)
            batches = [bucket.tokens for bucket in self.buckets]
            self._double = CleanRun(model, batches, self.first, self.scored, self.memory)
        return self._double

    def bucket_run(self, number: int) -> CleanRun:
        """Return the run of one bucket."""
        target = self._kept_target(number)
        return self._with([self.buckets[number]], {} if target is None else {0: target})

    def _with(self, buckets: list[CleanBucket], targets: dict[int, Target]) -> CleanRun:
        """The run of other prompts of which the streams are known."""
        chosen = copy.copy(self)
        chosen._states, chosen._targets, chosen._double = {}, targets, None
        chosen.buckets = buckets
        return chosen

    def _run(self, tokens: Int[Tensor, "prompt pos"]) -> CleanBucket:
        rows = self._rows(0, tokens.shape[1])
        parts = [self.passes.streams(piece) for piece in tokens.split(rows)]
        return CleanBucket(tokens, [torch.cat(pieces) for pieces in zip(*parts, strict=True)])

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def lengths(self) -> list[int]:
        """The prompts' lengths in tokens, bucket by bucket."""
        return [bucket.tokens.shape[1] for bucket in self.buckets]

    def _rows(self, layer: int, n_pos: int) -> int:
        """How many rows from this layer on one pass may hold."""
        cfg, size = self.model.cfg, self.model.W_E.element_size()
        attention = 4 * cfg.n_heads * cfg.d_head
        per_position = 8 * cfg.d_model + attention + 4 * (cfg.d_mlp or 0) + cfg.n_heads * n_pos
        scored = 1 if self.scored == "last" else n_pos
        row = (cfg.n_layers - layer) * n_pos * per_position + 4 * scored * cfg.d_vocab_out
        return max(1, self.memory // (row * size))

    def state(self, number: int, layer: int) -> State:
        """Return the clean values of a block's sites on one bucket; the last ones are kept."""
        key = (number, layer)
        if key not in self._states:
            if any(known[1] != layer for known in self._states):
                self._states.clear()
            with torch.no_grad():
                stream = self.buckets[number].streams[layer]
                self._states[key] = self.passes.state(layer, stream)
        return self._states[key]

    def read(self, part: Part) -> list[Float[Tensor, "problem _ _ size"]]:
        """Return a part's clean activations, for each bucket."""
        layer, site = part.place
        with torch.no_grad():
            return [
                part.read(self.state(number, layer)[site][0]) for number in range(len(self.buckets))
            ]

    def log_probs(
        self, number: int, rows: slice = slice(None)
    ) -> Float[Tensor, "prompt pos d_vocab"]:
        """Return the model's own log-probabilities at the scored positions, as float64."""
        with torch.no_grad():
            logits = self._scored(self.buckets[number].streams[-1][rows])
            return logits.double().log_softmax(-1)

    def _scored(self, stream: Tensor) -> Tensor:
        """Logits at the scored positions; ``stream`` may hold the last position only."""
        keep = stream[..., -1:, :] if self.scored == "last" else stream[..., self.first :, :]
        return unembed(self.model, keep)

    def kl(
        self, group: Group, replacements: Sequence[Replacement]
    ) -> Float[Tensor, "problem prompt"]:
        """Return what each problem costs on each prompt, in nats, as float64 on the CPU.

        Args:
            replacements: for each bucket, what replaces each part: (problem, prompt or 1, pos or
                1, size).
        """
        found = torch.zeros(len(group), len(self), dtype=torch.float64)
        with torch.no_grad():
            for piece in self.pieces(group, torch.arange(len(group))):
                new = [one[piece.problems] for one in replacements[piece.bucket]]
                new = [one[:, piece.rows] if one.shape[1] > 1 else one for one in new]
                kl = self.piece_kl(group, piece, new)
                columns = slice(piece.offset + piece.rows.start, piece.offset + piece.rows.stop)
                found[piece.problems, columns] = kl.double().cpu()
        return found

    def pieces(self, group: Group, problems: Int[Tensor, " active"]) -> Iterator[Piece]:
        """Yield problems and prompts in pieces small enough for one pass.

        Rather many problems on few prompts than the reverse: they share the prompts' predictions.
        """
        offset = 0
        for number, bucket in enumerate(self.buckets):
            size = self._rows(group.start[0], bucket.tokens.shape[1])
            n_problems = max(1, min(len(problems), size))
            n_rows = min(len(bucket), max(1, size // n_problems))
            for start in range(0, len(bucket), n_rows):
                rows = slice(start, min(start + n_rows, len(bucket)))
                for some in problems.split(n_problems):
                    yield Piece(number, offset, rows, some)
            offset += len(bucket)

    def piece_kl(
        self, group: Group, piece: Piece, new: Sequence[Tensor]
    ) -> Float[Tensor, "problem prompt"]:
        """Return the KL of a piece's problems on its prompts; differentiable in ``new``."""
        logits = self.piece_logits(group, piece, new)
        target = self._target(piece.bucket, piece.rows)
        if logits.requires_grad:
            log_q = logits.log_softmax(-1)
            return -(target.entropy + (target.p * log_q).sum(-1)).mean(-1)
        log_q, log_p = logits.double().log_softmax(-1), target.log_p
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)

    def piece_logits(
        self, group: Group, piece: Piece, new: Sequence[Tensor]
    ) -> Float[Tensor, "problem prompt pos d_vocab"]:
        """Return the logits of a piece's ablated models at the scored positions."""
        taken, number, rows = group.take(piece.problems), piece.bucket, piece.rows
        layer, site = group.start
        bucket = self.buckets[number]
        n_pos = bucket.tokens.shape[1]
        ablated = torch.arange(n_pos, device=bucket.tokens.device) >= self.first
        state = {name: value[:, rows] for name, value in self.state(number, layer).items()}
        replaced: dict[Place, list[tuple[Part, Tensor]]] = defaultdict(list)
        for part, one in zip(taken.parts, new, strict=True):
            replaced[part.place].append((part, one))
        edits = {place: _editor(parts, ablated, number, rows) for place, parts in replaced.items()}
        value = edits.pop(group.start)(state[site], False)
        end = self.passes.tail((layer, site), state, value, edits, self.scored == "last")
        return self._scored(end)

    def _target(self, number: int, rows: slice) -> Target:
        """The model's own predictions on some prompts."""
        kept = self._kept_target(number)
        return kept.take(rows) if kept is not None else self._make_target(number, rows)

    def _kept_target(self, number: int) -> Target | None:
        """The predictions on all prompts of a bucket; None where they take too much memory."""
        if number not in self._targets:
            bucket = self.buckets[number]
            scored = 1 if self.scored == "last" else bucket.tokens.shape[1] - self.first
            size = 8 + self.model.W_E.element_size()
            if len(self) * scored * self.model.cfg.d_vocab_out * size > KEPT * self.memory:
                return None
            self._targets[number] = self._make_target(number, slice(None))
        return self._targets[number]

    def _make_target(self, number: int, rows: slice) -> Target:
        log_p = self.log_probs(number, rows)
        p, dtype = log_p.exp(), self.model.W_E.dtype
        return Target(log_p, p.to(dtype), -(p * log_p).sum(-1).to(dtype))


@dataclass(frozen=True)
class Target:
    """A model's own predictions: their logarithms in float64, and p and entropy in its precision.

    The first is for costs, the others for gradients.
    """

    log_p: Float[Tensor, "prompt pos d_vocab"]
    p: Float[Tensor, "prompt pos d_vocab"]
    entropy: Float[Tensor, "prompt pos"]

    def take(self, prompts: slice | Int[Tensor, " taken"]) -> Target:
        """Return those of some prompts."""
        return Target(self.log_p[prompts], self.p[prompts], self.entropy[prompts])


@dataclass(frozen=True)
class Piece:
    """Some problems on some prompts of one bucket, whose first prompt has number ``offset``."""

    bucket: int
    offset: int
    rows: slice
    problems: Int[Tensor, " active"]


def _editor(
    parts: Sequence[tuple[Part, Tensor]], ablated: Tensor, bucket: int, rows: slice
) -> Edit:
    """What puts the new activations of all parts of one place into its value."""

    def edit(value: Tensor, narrowed: bool) -> Tensor:
        at = slice(-1, None) if narrowed else slice(None)
        for part, new in parts:
            mask = None if part.mask is None else part.mask[bucket][rows, at]
            value = part.edit(value, new[:, :, at], ablated[at], mask)
        return value

    return edit
