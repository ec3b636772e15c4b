"""Masks and winners of a model with gates, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from evaluations.core.text import Text
from evaluations.core.weights import gate_parameters
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp.data.batches import story_batches
from sat_interp.model.fast import CleanPass
from sat_interp.model.transformer import SelfAblatingTransformer

BATCH_TOKENS = 4096
SITES = ("attention", "neuron")

Mask = Float[Tensor, "batch pos units"]
Masks = dict[str, list[Tensor]]
"""For each site, the (batch, pos, units) mask of every layer."""


class GateOutputs(NamedTuple):
    """The clean stream and the masks of a batch of tokens."""

    clean: CleanPass
    masks: Masks
    rankings: Masks
    """For each site and layer, values (batch, pos, units) of which the k largest are winners."""


class StoryBatch(NamedTuple):
    """Stories of one length with their clean stream and masks."""

    inputs: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    stories: Int[Tensor, " batch"]
    """Their numbers in the text."""
    clean: CleanPass
    masks: Masks
    rankings: Masks


def gated(model: HookedTransformer) -> SelfAblatingTransformer:
    """Return the model if it has gates.

    Raises:
        UserError: it has none, or dropout instead, which keeps every unit outside training.
    """
    if not isinstance(model, SelfAblatingTransformer) or not model.ablation.is_gated:
        raise UserError("this model has no gates, so it has no masks")
    if model.ablation.gates == "dropout":
        raise UserError("this model has dropout instead of gates: outside training it has no masks")
    return model


def check_finite(model: SelfAblatingTransformer) -> None:
    """Check that gate weights are finite.

    Raises:
        UserError: gate weights are NaN or infinite.
    """
    if not all(bool(weight.isfinite().all()) for weight in gate_parameters(model).values()):
        raise UserError("this model's gates have weights that are NaN or infinite")


def batches(model: SelfAblatingTransformer, text: Text, title: str) -> Iterator[StoryBatch]:
    """Iterate once over the stories of the text, cut at the context, with a progress bar.

    Raises:
        UserError: the model's states are not finite, so its masks are not defined.
    """
    context = int(model.cfg.n_ctx)
    with progress.bar(total=int(text.scored(context).sum()), desc=title, unit="tok") as bar:
        for stories in story_batches(text.corpus, context, BATCH_TOKENS):
            tokens = stories.tokens.to(model.W_E.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            yield StoryBatch(inputs, targets, stories.index, *read_gates(model, inputs))
            bar.update(inputs.numel())


def kept_units(model: SelfAblatingTransformer, site: str) -> int:
    """Return k, the number of units of the site that win at each token and layer."""
    return model.ablation.k_attention if site == "attention" else model.ablation.k_neurons


def read_gates(model: SelfAblatingTransformer, tokens: Int[Tensor, "batch pos"]) -> GateOutputs:
    """Return the clean stream, the masks, and the values that rank the units.

    Hard masks are ranked by the mask itself. Soft masks are ranked by the gates' scores, because a
    winner's weight may be zero if the k-th and the next score are close and the temperature is low.

    Raises:
        UserError: the clean stream or the gates' scores are not finite.
    """
    scores: dict[str, Tensor] = {}
    are_finite: list[bool] = []

    def keep(value: Tensor, hook: HookPoint) -> None:
        are_finite.append(bool(value.isfinite().all()))
        if is_soft:
            scores[str(hook.name)] = value

    def is_score(name: str) -> bool:
        return ".gates." in name and name.endswith("_scores")

    is_soft = model.ablation.forward_mask == "soft"
    with model.hooks(fwd_hooks=[(is_score, keep)]):
        clean, pairs = model.clean_and_masks(tokens)
    if not clean.final.isfinite().all():
        raise UserError("the clean stream is NaN or infinite, so the masks are not defined")
    if not all(are_finite):
        raise UserError("the gates' scores are NaN or infinite, so the masks are not defined")
    masks = {site: [pair[place] for pair in pairs] for place, site in enumerate(SITES)}
    rankings = {
        # random gates have masks, but no scores
        site: [
            scores.get(f"blocks.{layer}.gates.hook_{site}_scores", mask)
            for layer, mask in enumerate(masks[site])
        ]
        for site in SITES
    }
    return GateOutputs(clean, masks, rankings)


def winners(ranking: Mask, k: int) -> Int[Tensor, "batch pos k"]:
    """Return the k units that win at each position."""
    return ranking.topk(k, dim=-1).indices


def shuffled_positions(
    tokens: Int[Tensor, "batch pos"], generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """Return a random permutation of the positions of each story."""
    return torch.rand(tokens.shape, generator=generator).argsort(-1)


def at_positions(
    values: Num[Tensor, "batch pos units"], positions: Int[Tensor, "batch pos"]
) -> Num[Tensor, "batch pos units"]:
    """Return values at other positions: ``values[b, positions[b, t]]`` at [b, t]."""
    index = positions.to(values.device)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)


def exchanged_occurrences(
    tokens: Int[Tensor, " tokens"], generator: torch.Generator
) -> Int[Tensor, " tokens"]:
    """Return for each token the index of another, random occurrence of the same token.

    The occurrences of each token are put in random order, and each is mapped to the next one, the
    last to the first. The result is a permutation; its fixed points are tokens that occur once.
    """
    order = torch.randperm(len(tokens), generator=generator).to(tokens.device)
    order = order[tokens[order].argsort(stable=True)]  # token by token, in random order
    counts = tokens[order].unique_consecutive(return_counts=True)[1]
    last = counts.cumsum(0) - 1
    following = torch.arange(1, len(tokens) + 1, device=tokens.device)
    following[last] = last - counts + 1
    exchanged = torch.empty_like(order)
    exchanged[order] = order[following]
    return exchanged
