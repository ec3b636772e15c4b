"""A model's masks as the evaluation of gates reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from evaluations.text import Text
from sat_interp import progress
from sat_interp.data.batches import story_batches
from sat_interp.errors import UserError
from sat_interp.streams import DualStates
from sat_interp.transformer import SelfAblatingTransformer

BATCH_TOKENS = 4096
SITES = ("attention", "neuron")

Mask = Float[Tensor, "batch pos units"]
Rankings = dict[str, list[Tensor]]
"""For each site and layer values (batch, pos, units) whose k largest are the winners."""


class Batch(NamedTuple):
    """Stories of one length, read by both streams."""

    inputs: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    stories: Int[Tensor, " batch"]
    """Their places in the text."""
    states: DualStates
    rankings: Rankings


def gated(model: HookedTransformer) -> SelfAblatingTransformer:
    """The model, if it has gates that select anything.

    Raises:
        UserError: it has none, or dropout in their place, which keeps every unit outside training.
    """
    if not isinstance(model, SelfAblatingTransformer) or not model.ablation.is_gated:
        raise UserError("this model has no gates, so there are no masks to look at")
    if model.ablation.gates == "dropout":
        raise UserError(
            "dropout stands in for this model's gates: outside training it has no masks"
        )
    return model


def batches(model: SelfAblatingTransformer, text: Text, title: str) -> Iterator[Batch]:
    """Every story of the text once, from position 0, cut at the context, under a progress bar."""
    context = int(model.cfg.n_ctx)
    with progress.bar(total=int(text.scored(context).sum()), desc=title, unit="tok") as bar:
        for stories in story_batches(text.corpus, context, BATCH_TOKENS):
            tokens = stories.tokens.to(model.W_E.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            yield Batch(inputs, targets, stories.index, *dual_and_rankings(model, inputs))
            bar.update(inputs.numel())


def site_masks(states: DualStates, site: str) -> list[Tensor]:
    """The masks of one site, a (batch, pos, units) tensor for each layer."""
    return states.attention_masks if site == "attention" else states.neuron_masks


def kept_units(model: SelfAblatingTransformer, site: str) -> int:
    """k: how many units of the site win at each token and layer."""
    return model.ablation.k_attention if site == "attention" else model.ablation.k_neurons


def dual_and_rankings(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[DualStates, Rankings]:
    """Both streams, and what the winners are told by.

    Hard masks tell them themselves. The weights of a soft mask may be zero for winners too, where
    the k-th and the next score are close and the temperature is low: there the scores are read.
    """
    if model.ablation.forward_mask == "hard":
        states = model.dual_states(tokens)
        return states, {site: site_masks(states, site) for site in SITES}
    scores: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: HookPoint) -> None:
        scores[str(hook.name)] = value

    def is_score(name: str) -> bool:
        return ".gates." in name and name.endswith("_scores")

    with model.hooks(fwd_hooks=[(is_score, keep)]):
        states = model.dual_states(tokens)
    return states, {
        # gates that are random have masks and no scores
        site: [scores.get(f"blocks.{layer}.gates.hook_{site}_scores", mask)
               for layer, mask in enumerate(site_masks(states, site))]
        for site in SITES
    }  # fmt: skip


def winners(ranking: Mask, k: int) -> Int[Tensor, "batch pos k"]:
    """The k units that win at each position."""
    return ranking.topk(k, dim=-1).indices


def won(ranking: Mask, k: int) -> Bool[Tensor, "batch pos units"]:
    """Whether each unit is among the k winners."""
    winning = winners(ranking, k)
    return torch.zeros_like(ranking, dtype=torch.bool).scatter_(-1, winning, True)


def shuffled_positions(
    tokens: Int[Tensor, "batch pos"], generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """A random order of the positions of each story."""
    return torch.rand(tokens.shape, generator=generator).argsort(-1)


def at_positions(
    values: Float[Tensor, "batch pos units"], positions: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos units"]:
    """``values[b, positions[b, t]]`` at [b, t]."""
    index = positions.to(values.device)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)
