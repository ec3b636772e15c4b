"""What the ablated stream loses when its masks are not its own.

The ablated stream of a position reads the masks of that position alone (keys and values of earlier
ones come from the clean stream), so an intervention on masks acts token by token:

- ``own``: the masks as they are.
- ``shuffled``: the positions of each story in random order; the masks of all layers and of both
  sites move together, so a token receives what another one chose throughout. (A position keeps
  its own with probability 1 / length.)
- ``random``: each mask's entries in random order: k random units, or a soft mask's weights on
  random units, drawn anew for every token, layer and site.
- ``other_story``: the masks of the same position of another story, drawn among those that are at
  least as long. A story that is longer than all others has none; it is left out and counted.

Each is the mean cross-entropy of the ablated stream (nats a token); costs are paired, story by
story, with the loss under the model's own masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.core.losses import token_losses
from evaluations.core.text import Text
from evaluations.suite.gates.masks import (
    SITES,
    Batch,
    Masks,
    at_positions,
    batches,
    read_gates,
    shuffled_positions,
)
from sat_interp.model.fast import ablated_pass
from sat_interp.model.transformer import SelfAblatingTransformer

INTERVENTIONS = ("shuffled", "random", "other_story")


@dataclass(frozen=True)
class MaskLosses:
    """Summed cross-entropy of each story; nan where it is not finite, or where a story has no
    other one to borrow from.

    Attributes:
        nats: by stream or intervention: ``clean``, ``own``, ``shuffled``, ``random``,
            ``other_story``.
        tokens: of each story.
        alone: which stories have no other one to borrow from.
    """

    nats: dict[str, Float[np.ndarray, " stories"]]
    tokens: Int[np.ndarray, " stories"]
    alone: Bool[np.ndarray, " stories"]


@torch.inference_mode()
def measure_interventions(model: SelfAblatingTransformer, text: Text, seed: int) -> MaskLosses:
    """The ablated stream's loss on every story of the text, under each intervention."""
    generator = torch.Generator().manual_seed(seed)
    nats: dict[str, np.ndarray] = {}
    tokens = np.zeros(len(text), dtype=np.int64)
    partners = other_stories(text.scored(int(model.cfg.n_ctx)), seed)

    def add(name: str, states: Tensor, batch: Batch, known: np.ndarray | None = None) -> None:
        sums = token_losses(model, states, batch.targets).sum(1, dtype=torch.float64).cpu().numpy()
        kept = np.isfinite(sums) if known is None else known & np.isfinite(sums)
        every = nats.setdefault(name, np.full(len(text), np.nan))
        every[batch.stories.numpy()] = np.where(kept, sums, np.nan)

    def add_ablated(name: str, masks: Masks, batch: Batch, known: np.ndarray | None = None) -> None:
        pairs = list(zip(*(masks[site] for site in SITES), strict=True))
        add(name, ablated_pass(model, batch.clean, pairs), batch, known)

    for batch in batches(model, text, "gates: interventions"):
        tokens[batch.stories.numpy()] = batch.inputs.shape[1]
        own = batch.masks
        add("clean", batch.clean.final, batch)
        add_ablated("own", own, batch)
        moved = shuffled(own, shuffled_positions(batch.inputs, generator))
        add_ablated("shuffled", moved, batch)
        add_ablated("random", randomised(own, generator), batch)
        others = partners[batch.stories.numpy()]
        borrowed = read_gates(model, _beginnings(text, others, batch)).masks
        add_ablated("other_story", borrowed, batch, others >= 0)
    return MaskLosses(nats, tokens, partners < 0)


def shuffled(masks: Masks, order: Int[Tensor, "batch pos"]) -> Masks:
    """At each position the masks of the position that ``order`` names, in all layers and sites."""
    return {site: [at_positions(mask, order) for mask in layers] for site, layers in masks.items()}


def randomised(masks: Masks, generator: torch.Generator) -> Masks:
    """The entries of each mask in random order."""

    def permuted(mask: Tensor) -> Tensor:
        order = torch.rand(mask.shape, generator=generator).argsort(-1)
        return mask.gather(-1, order.to(mask.device))

    return {site: [permuted(mask) for mask in layers] for site, layers in masks.items()}


def other_stories(lengths: Int[np.ndarray, " stories"], seed: int) -> Int[np.ndarray, " stories"]:
    """For each story another one that is at least as long, drawn at random; -1 where none is."""
    draws = np.random.default_rng(seed)
    found = np.full(len(lengths), -1)
    for story, length in enumerate(lengths):
        longer = np.flatnonzero(lengths >= length)
        longer = longer[longer != story]
        if len(longer):
            found[story] = draws.choice(longer)
    return found


def _beginnings(text: Text, stories: np.ndarray, batch: Batch) -> Tensor:
    """The first tokens of the stories, as many as the batch has; the batch's own where there is
    no story."""
    rows = batch.inputs.clone()
    for row, story in enumerate(stories):
        if story >= 0:
            start = int(text.corpus.offsets[story])
            taken = np.asarray(text.corpus.tokens[start : start + rows.shape[1] - 1], np.int64)
            rows[row, 1:] = torch.from_numpy(taken).to(rows.device)
    return rows
