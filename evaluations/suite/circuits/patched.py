"""Prompts as circuits read them: cached activations, replacements of ablated edges, and the KL.

Prompts are run in chunks of a size that follows the memory of the model's device. Their activations
are kept where all of them fit into a share of it; otherwise a chunk is run again for each use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.config import Ablation
from evaluations.suite.circuits.forward import Kept, Replacement, Sources, embed, forward, run
from evaluations.suite.circuits.graph import Graph
from sat_interp._util.devices import memory_of
from sat_interp._util.errors import UserError

PRECISE = (torch.float32, torch.float64)
"""Precisions in which circuits are searched; in lower precision most KL steps are rounding."""
CHUNK_SHARE = 1 / 32
"""Share of the device's memory that the activations of one chunk of prompts take, roughly."""
KEPT_SHARE = 1 / 16
"""Share of the device's memory up to which the activations of a task's prompts are kept."""

Constants = Float[Tensor, "source d_model"]


@runtime_checkable
class Prompts(Protocol):
    """Clean and corrupted prompts of one length, (batch, pos) token ids without padding."""

    @property
    def clean(self) -> Tensor:
        """Clean prompts."""
        ...

    @property
    def corrupted(self) -> Tensor:
        """Corrupted prompts."""
        ...


@dataclass(frozen=True)
class PromptBatch:
    """Cached activations of prompts of one length.

    Attributes:
        clean: outputs of the sources on the clean prompts.
        replacement: replacements of the sources' outputs for ablated edges.
        logits: logits of the clean run at the last position.
        first: position before which clean output and replacement are equal.
        answers: right and wrong answer, where circuits are found by the logit difference; else
            None, and they are found by KL.
    """

    clean: Sources
    replacement: Replacement
    logits: Float[Tensor, "batch d_vocab"]
    first: int = 0
    answers: Int[Tensor, "batch 2"] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def with_constants(self, constants: Constants) -> PromptBatch:
        """Return the batch with these constants as replacements from ``first`` on."""
        return replace(self, replacement=_replacement(self.clean, constants, self.first))

    def __getitem__(self, rows: slice) -> PromptBatch:
        varies = self.replacement.shape[1] > 1  # else it is the same for all prompts
        return PromptBatch(
            self.clean[:, rows],
            self.replacement[:, rows] if varies else self.replacement,
            self.logits[rows],
            self.first,
            None if self.answers is None else self.answers[rows],
        )


class Prepared(Sequence[PromptBatch]):
    """The activations of prompts, chunk by chunk; each is of one length.

    Attributes:
        chunks: for each chunk the number of its batch, and its rows there.
        is_kept: whether activations are kept once they are made.
    """

    def __init__(
        self,
        chunks: Sequence[tuple[int, slice]],
        make: Callable[[int, slice], PromptBatch],
        is_kept: bool,
    ) -> None:
        self.chunks, self._make, self.is_kept = list(chunks), make, is_kept
        self._kept: dict[int, PromptBatch] | None = {} if is_kept else None

    def answered(self, answers: Sequence[Int[Tensor, "batch 2"]]) -> Prepared:
        """Return the same with the right and the wrong answer of the prompts of each batch."""

        def make(number: int, rows: slice) -> PromptBatch:
            bucket = self._make(number, rows)
            return replace(bucket, answers=answers[number][rows].to(bucket.logits.device))

        return Prepared(self.chunks, make, self.is_kept)

    def __len__(self) -> int:
        return len(self.chunks)

    @overload
    def __getitem__(self, index: int) -> PromptBatch: ...

    @overload
    def __getitem__(self, index: slice) -> list[PromptBatch]: ...

    def __getitem__(self, index: int | slice) -> PromptBatch | list[PromptBatch]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        number = range(len(self))[index]
        if self._kept is None:
            return self._make(*self.chunks[number])
        if number not in self._kept:
            self._kept[number] = self._make(*self.chunks[number])
        return self._kept[number]


def prepare(
    model: HookedTransformer,
    graph: Graph,
    batches: Sequence[Prompts],
    ablation: Ablation | Constants = "resample",
    averaged: Sequence[Prompts] | None = None,
    first: int = 1,
) -> Prepared:
    """Prepare the activations of the clean prompts, and the replacements of ablated edges.

    Args:
        model: the model.
        graph: its graph.
        batches: prompts, each batch of one length.
        ablation: replacement of an ablated edge: its source's output on the corrupted prompt
            (``resample``), zero (``zero``), its source's mean output over all ablated positions of
            all clean prompts (``mean``) or of all corrupted ones (``cf_mean``), or a given constant
            for each source (arXiv 2409.09951, section 2).
        averaged: the prompts that means are taken over, by default ``batches``.
        first: the first position that constants replace: 1 where prompts begin with BOS, on which
            attention rests, else 0.

    Raises:
        UserError: there are no prompts, a corrupted prompt differs in length from its clean prompt,
            constants have the wrong shape, or the model is in lower precision than float32.
    """
    if model.W_E.dtype not in PRECISE:
        kind = str(model.W_E.dtype).removeprefix("torch.")
        raise UserError(
            f"circuits are not searched in {kind}, whose rounding passes for KL: use float32"
        )
    if not batches or not all(len(batch.clean) for batch in batches):
        raise UserError("there are no prompts to find a circuit with")
    if any(batch.clean.shape != batch.corrupted.shape for batch in batches):
        raise UserError("a clean prompt and its corrupted one must have equally many tokens")
    constants = _constants(model, graph, averaged or batches, ablation, first)

    def make(batch: int, rows: slice) -> PromptBatch:
        clean, corrupted = batches[batch].clean[rows], batches[batch].corrupted[rows]
        with torch.no_grad():
            if constants is not None:
                return _with_constants(model, graph, clean, constants, first)
            return _resampled(model, graph, clean, corrupted)

    copies = 1 if constants is not None and not first else 2
    each = [copies * graph.n_sources * _position_bytes(model, batch) for batch in batches]
    total = sum(size * len(batch.clean) for size, batch in zip(each, batches, strict=True))
    is_kept = total <= KEPT_SHARE * memory_of(model.W_E.device)
    return Prepared(_chunks(model, graph, batches), make, is_kept)


def _position_bytes(model: HookedTransformer, batch: Prompts) -> int:
    """Return the bytes of one residual stream of one prompt."""
    weight = model.W_E
    return int(batch.clean.shape[1]) * weight.shape[1] * weight.element_size()


def _chunks(
    model: HookedTransformer, graph: Graph, batches: Sequence[Prompts]
) -> list[tuple[int, slice]]:
    """Return chunks of prompts whose activations fit into the device's memory.

    Counted are, for each prompt, outputs, replacements and differences of the sources, and the
    gradient of every destination.
    """
    most = CHUNK_SHARE * memory_of(model.W_E.device)
    streams = 3 * graph.n_sources + graph.n_destinations
    chunks = []
    for number, batch in enumerate(batches):
        size = max(1, int(most // (streams * _position_bytes(model, batch))))
        starts = range(0, len(batch.clean), size)
        chunks += [(number, slice(start, start + size)) for start in starts]
    return chunks


def _resampled(
    model: HookedTransformer, graph: Graph, clean: Tensor, corrupted: Tensor
) -> PromptBatch:
    """Return a chunk whose replacements are the outputs on the corrupted prompts."""
    clean, corrupted = clean.to(model.W_E.device), corrupted.to(model.W_E.device)
    outputs = run(model, graph, embed(model, clean))
    first = _first_difference(clean, corrupted)
    replacement = run(model, graph, embed(model, corrupted)).sources
    # Equal by causality; made equal to the last bit.
    replacement[:, :, :first] = outputs.sources[:, :, :first]
    return PromptBatch(outputs.sources, replacement, outputs.logits, first)


def _with_constants(
    model: HookedTransformer, graph: Graph, clean: Tensor, constants: Constants, first: int
) -> PromptBatch:
    """Return a chunk with constants as replacements from the first ablated position on."""
    outputs = run(model, graph, embed(model, clean.to(model.W_E.device)))
    first = min(first, clean.shape[1])
    replacement = _replacement(outputs.sources, constants, first)
    return PromptBatch(outputs.sources, replacement, outputs.logits, first)


def _replacement(clean: Sources, constants: Constants, first: int) -> Replacement:
    """Return constants at all positions but the first ones, which keep their outputs."""
    replacement = constants[:, None, None]
    if not first:
        return replacement
    replacement = replacement.expand_as(clean).clone()
    replacement[:, :, :first] = clean[:, :, :first]
    return replacement


def _first_difference(clean: Tensor, corrupted: Tensor) -> int:
    """Return the first position at which any clean and corrupted prompt differ, else the last."""
    differ = (clean != corrupted).any(0)
    return int(differ.int().argmax()) if differ.any() else clean.shape[1] - 1


def _constants(
    model: HookedTransformer,
    graph: Graph,
    batches: Sequence[Prompts],
    ablation: Ablation | Constants,
    first: int,
) -> Constants | None:
    """Return the constant replacement of each source; None if it differs between prompts.

    Means leave out prompts on which an output is not finite; with no others they are NaN.
    """
    weight = model.W_E
    if isinstance(ablation, Tensor):
        wanted = (graph.n_sources, weight.shape[1])
        if tuple(ablation.shape) != wanted:
            raise UserError(f"constants have shape {tuple(ablation.shape)}, not {wanted}")
        return ablation.to(weight)
    if ablation == "resample":
        return None
    total = weight.new_zeros(graph.n_sources, weight.shape[1])
    if ablation == "zero":
        return total
    is_clean, n = ablation == "mean", 0
    with torch.no_grad():
        for number, rows in _chunks(model, graph, batches):
            batch = batches[number]
            tokens = (batch.clean if is_clean else batch.corrupted)[rows].to(weight.device)
            sources = run(model, graph, embed(model, tokens)).sources
            finite = sources.isfinite().flatten(2).all(-1).all(0)
            counted = sources[:, finite, first:]
            total += counted.sum((1, 2))
            n += counted[0, :, :, 0].numel()
    return total / n


def kl_divergence(
    clean: Float[Tensor, "*rows d_vocab"], patched: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """Compute KL(clean || patched) in nats, the sum over tokens of p (ln p - ln q)."""
    p = clean.log_softmax(-1)
    return (p.exp() * (p - patched.log_softmax(-1))).sum(-1)


def circuit_logits(
    model: HookedTransformer, graph: Graph, buckets: Sequence[PromptBatch], kept: Kept
) -> list[Float[Tensor, "batch d_vocab"]]:
    """Return logits at the last position with these edges kept, for each batch."""
    return [forward(model, graph, b.clean[0], kept, b.replacement) for b in buckets]


def circuit_kl(
    model: HookedTransformer, graph: Graph, buckets: Sequence[PromptBatch], kept: Kept
) -> float:
    """Return the mean over all prompts of KL(clean || circuit) at the last position, in nats."""
    with torch.no_grad():
        found = circuit_logits(model, graph, buckets, kept)
    total = sum(
        kl_divergence(bucket.logits, logits).sum().item()
        for bucket, logits in zip(buckets, found, strict=True)
    )
    return total / sum(len(bucket) for bucket in buckets)
