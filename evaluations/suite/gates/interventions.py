"""The loss of the ablated stream under interventions on its masks.

The ablated stream at a position depends on the masks of that position only (keys and values of
earlier positions come from the clean stream). So an intervention acts on each token separately:

- ``own``: the model's own masks.
- ``shuffled``: the positions of each story in random order. The masks of all layers and both sites
  move together, so a token receives all masks of another token. (A position keeps its own masks
  with probability 1 / length.)
- ``random``: the entries of each mask in random order: k random units, or a soft mask's weights on
  random units, drawn independently for every token, layer and site.
- ``other_story``: the masks at the same position of another story, drawn from those at least as
  long. A story that is longer than all others has none; it is left out and counted.

The metric is the mean cross-entropy of the ablated stream (nats per token). Costs are differences
from the loss under the model's own masks, paired by story.
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
    Masks,
    StoryBatch,
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
    """Summed cross-entropy of each story, nan if it is not finite or there is no other story.

    Attributes:
        nats: by stream or intervention: ``clean``, ``own``, ``shuffled``, ``random``,
            ``other_story``.
        tokens: number of tokens of each story.
        alone: whether no other story is at least as long.
    """

    nats: dict[str, Float[np.ndarray, " stories"]]
    tokens: Int[np.ndarray, " stories"]
    alone: Bool[np.ndarray, " stories"]


@torch.inference_mode()
def measure_interventions(model: SelfAblatingTransformer, text: Text, seed: int) -> MaskLosses:
    """Measure the loss of the ablated stream on every story under each intervention."""
    generator = torch.Generator().manual_seed(seed)
    nats: dict[str, np.ndarray] = {}
    tokens = np.zeros(len(text), dtype=np.int64)
    partners = other_stories(text.scored(int(model.cfg.n_ctx)), seed)

    def add(name: str, states: Tensor, batch: StoryBatch, known: np.ndarray | None = None) -> None:
        sums = token_losses(model, states, batch.targets).sum(1, dtype=torch.float64).cpu().numpy()
        kept = np.isfinite(sums) if known is None else known & np.isfinite(sums)
        every = nats.setdefault(name, np.full(len(text), np.nan))
        every[batch.stories.numpy()] = np.where(kept, sums, np.nan)

    def add_ablated(
        name: str, masks: Masks, batch: StoryBatch, known: np.ndarray | None = None
    ) -> None:
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
    """Return the masks in another order of positions, the same for all layers and sites."""
    return {site: [at_positions(mask, order) for mask in layers] for site, layers in masks.items()}


def randomised(masks: Masks, generator: torch.Generator) -> Masks:
    """Return the masks with the entries of each in random order."""

    def permuted(mask: Tensor) -> Tensor:
        order = torch.rand(mask.shape, generator=generator).argsort(-1)
        return mask.gather(-1, order.to(mask.device))

    return {site: [permuted(mask) for mask in layers] for site, layers in masks.items()}


def other_stories(lengths: Int[np.ndarray, " stories"], seed: int) -> Int[np.ndarray, " stories"]:
    """Draw for each story another story at least as long; -1 if there is none."""
    draws = np.random.default_rng(seed)
    others = np.full(len(lengths), -1)
    for story, length in enumerate(lengths):
        longer = np.flatnonzero(lengths >= length)
        longer = longer[longer != story]
        if len(longer):
            others[story] = draws.choice(longer)
    return others


def _beginnings(text: Text, stories: np.ndarray, batch: StoryBatch) -> Tensor:
    """Return the first tokens of the stories, as many as the batch has.

    If there is no story (-1), the tokens of the batch are kept.
    """
    rows = batch.inputs.clone()
    for row, story in enumerate(stories):
        if story >= 0:
            start = int(text.corpus.offsets[story])
            first = np.asarray(text.corpus.tokens[start : start + rows.shape[1] - 1], np.int64)
            rows[row, 1:] = torch.from_numpy(first).to(rows.device)
    return rows
