"""Which units the gates choose: win frequencies, dead units, entropy, and how masks overlap.

A unit WINS at a token of a layer if it is one of the k that the mask keeps (for soft masks: one of
the k with the highest scores). Everything is counted per layer and site (attention units, neurons),
over every position a story has as input, the end-of-text token in front included.

- Win frequency p_u: share of tokens at which unit u wins; they sum to k.
- Dead: a unit that wins at no token of the text. Its standard error is the jackknife's over
  stories, from the units that only one story kept from being dead.
- Mask entropy: of the distribution of wins over the n units, H = - sum_u q_u log2 q_u bits, with
  q_u = p_u / k. It lies between log2 k (always the same units) and log2 n (all units alike), and
  its share is H / log2 n. It is the entropy of the marginal: it says how evenly the units are used,
  not how much one token's mask says. Estimated by plugging in frequencies, which is too low by
  about (n - 1) / (2 ln 2 * wins) bits.
- Overlap of neighbours: |S_t and S_t+1| / k for the winners S of two neighbouring positions of a
  story. Chance is the same for any two tokens of the text, averaged over all pairs of different
  ones: sum_u w_u (w_u - 1) / (k N (N - 1)) for w_u wins in N tokens, which is sum_u p_u^2 / k
  without its bias. Beside it the overlap of two random positions of one story.
- Similarity of layers: units of different layers share a number and nothing else (each layer has
  weights of its own, attention coordinates too), so shared numbers would mean nothing. Asked
  instead is whether two layers group the tokens alike: over random pairs of positions of the same
  story, the Pearson correlation of |S_t and S_t'| in the one layer with that in the other. 1 if the
  layers' masks are each other's under another numbering, 0 if independent; blind to numbering. The
  same idea as representational similarity analysis (Kriegeskorte et al. 2008), with overlap of
  masks as the similarity.

Standard errors are clustered over stories, by linearisation: see :class:`Estimate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from evaluations.core.text import Text
from evaluations.suite.gates.masks import (
    SITES,
    at_positions,
    batches,
    kept_units,
    shuffled_positions,
    winners,
)
from sat_interp.model.transformer import SelfAblatingTransformer


@dataclass
class Usage:
    """What was counted of one site, story by story.

    Attributes:
        k: winners per token.
        tokens: positions of each story.
        wins: how often each unit won.
        neighbours: summed number of winners shared by neighbouring positions.
        pairs: random pairs of different positions.
        shared: summed number of winners that those pairs shared.
        products: the same number in one layer times that in another, summed.
    """

    k: int
    tokens: Int[np.ndarray, " stories"]
    wins: Num[np.ndarray, "stories layers units"]
    neighbours: Float[np.ndarray, "stories layers"]
    pairs: Float[np.ndarray, " stories"]
    shared: Float[np.ndarray, "stories layers"]
    products: Float[np.ndarray, "stories layers layers"]

    @property
    def n_layers(self) -> int:
        return self.wins.shape[1]

    @property
    def n_units(self) -> int:
        return self.wins.shape[2]


@dataclass(frozen=True)
class Estimate:
    """A figure for each layer (or pair of layers), nan where there is none.

    Attributes:
        value: one for each.
        influence: how far each story moves it, to first order: what the errors are made of.
    """

    value: Float[np.ndarray, "*layers"]
    influence: Float[np.ndarray, "stories *layers"]

    @property
    def standard_error(self) -> Float[np.ndarray, "*layers"]:
        """Clustered over stories: sqrt(n / (n - 1) * sum of squares); nan with one story."""
        n = len(self.influence)
        if n < 2:
            return np.full(self.value.shape, np.nan)
        return np.asarray(np.sqrt(n / (n - 1) * (self.influence**2).sum(0)))

    def mean(self, chosen: Any = slice(None)) -> Estimate:
        """The mean over layers, or over those that are chosen, with its own error."""
        influence = self.influence[(slice(None), *np.index_exp[chosen])]
        return Estimate(np.asarray(self.value[chosen].mean()), influence.mean(-1))


@torch.inference_mode()
def count(model: SelfAblatingTransformer, text: Text, seed: int) -> dict[str, Usage]:
    """Stream the text once; what is kept per story does not grow with its length."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Usage] = {}
    for batch in batches(model, text, "gates: masks"):
        order = shuffled_positions(batch.inputs, generator)
        for site in SITES:
            k = kept_units(model, site)
            layers = [winners(ranking, k) for ranking in batch.rankings[site]]
            if site not in found:
                units = batch.rankings[site][0].shape[-1]
                found[site] = _empty(len(text), len(layers), units, k)
            _add(found[site], layers, batch.stories.numpy(), order)
    return found


def frequencies(usage: Usage) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Win frequency of each unit (layers, units), and its standard error."""
    wins, tokens = usage.wins.sum(0, dtype=np.float64), usage.tokens.sum()
    frequency = wins / tokens
    n = len(usage.tokens)
    squares = np.zeros_like(frequency)
    for story_wins, story_tokens in zip(usage.wins, usage.tokens, strict=True):
        squares += (story_wins - frequency * story_tokens) ** 2
    error = np.sqrt(n / (n - 1) * squares) / tokens if n > 1 else np.full_like(squares, np.nan)
    return frequency, error


def entropy(usage: Usage) -> Estimate:
    """Mask entropy of each layer, in bits."""
    total = usage.wins.sum(0, dtype=np.float64)
    share = total / total.sum(-1, keepdims=True)
    # H is the mean surprisal of a win, and what moves q itself adds up to nothing (the q sum to 1),
    # so a story moves H as it moves a mean.
    surprisal = -np.log2(np.where(share > 0, share, 1.0))
    per_story = np.einsum("slu,lu->sl", usage.wins, surprisal)
    return _mean_of(per_story, usage.tokens * usage.k)


def dead(usage: Usage) -> Estimate:
    """Share of each layer's units that never win."""
    ever = usage.wins > 0
    stories = ever.sum(0)  # in how many stories each unit wins
    n = len(usage.tokens)
    lost = (ever & (stories == 1)).mean(-1)  # that would be dead too without this story
    jackknife = (n - 1) / n * (lost - lost.mean(0))
    return Estimate((stories == 0).mean(-1), jackknife)


def neighbour_overlap(usage: Usage) -> Estimate:
    """Share of its winners that a token shares with the next one."""
    return _mean_of(usage.neighbours / usage.k, np.maximum(usage.tokens - 1, 0))


def random_pair_overlap(usage: Usage) -> Estimate:
    """Share of the winners that two random positions of one story share."""
    return _mean_of(usage.shared / usage.k, usage.pairs)


def chance_overlap(usage: Usage) -> Estimate:
    """Share of its winners that a token shares with any other one of the text."""
    wins, tokens = usage.wins.sum(0, dtype=np.float64), float(usage.tokens.sum())
    value = (wins * (wins - 1)).sum(-1) / (usage.k * tokens * max(tokens - 1, 1.0))
    frequency = wins / tokens
    slope = 2 * frequency / usage.k  # the derivative of sum p^2 / k
    moved = np.einsum("slu,lu->sl", usage.wins, slope)
    expected = usage.tokens[:, None] * (slope * frequency).sum(-1)
    return Estimate(value, (moved - expected) / tokens)


def excess_overlap(usage: Usage) -> Estimate:
    """Overlap of neighbours minus chance."""
    overlap, chance = neighbour_overlap(usage), chance_overlap(usage)
    return Estimate(overlap.value - chance.value, overlap.influence - chance.influence)


def layer_similarity(usage: Usage) -> Estimate:
    """Correlation between layers of how much two tokens' masks overlap: layers by layers.

    nan where a layer's overlap never varies (k = n), or there are no pairs.
    """
    n_pairs = usage.pairs.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = usage.shared.sum(0) / n_pairs
        second = usage.products.sum(0) / n_pairs
        variance = np.diag(second) - mean**2
        deviation = np.sqrt(np.where(variance > 1e-12, variance, np.nan))
        scale = np.outer(deviation, deviation)
        # z_a z_b summed over each story's pairs, z the standardised overlaps
        crossed = usage.shared[:, :, None] * mean
        squares = usage.pairs[:, None, None] * np.outer(mean, mean)
        product = (usage.products - crossed - crossed.transpose(0, 2, 1) + squares) / scale
        correlation = product.sum(0) / n_pairs
        # a pair moves r by z_a z_b - r (z_a^2 + z_b^2) / 2
        own = np.diagonal(product, axis1=1, axis2=2)
        both = (own[:, :, None] + own[:, None, :]) / 2
        return Estimate(correlation, (product - correlation * both) / n_pairs)


def maximum_entropy(usage: Usage) -> float:
    """log2 n: bits of all n units winning equally often."""
    return math.log2(usage.n_units)


def _empty(stories: int, layers: int, units: int, k: int) -> Usage:
    return Usage(
        k,
        np.zeros(stories, dtype=np.int64),
        np.zeros((stories, layers, units), dtype=np.int32),
        np.zeros((stories, layers)),
        np.zeros(stories),
        np.zeros((stories, layers)),
        np.zeros((stories, layers, layers)),
    )


def _add(
    usage: Usage,
    layers: list[Int[Tensor, "batch pos k"]],
    stories: np.ndarray,
    order: Int[Tensor, "batch pos"],
) -> None:
    """Count the winners of each layer in some stories."""
    n_stories, n_positions = order.shape
    differ = order != torch.arange(n_positions)
    usage.tokens[stories] = n_positions
    usage.pairs[stories] = differ.sum(1).numpy()
    shared = []
    first = usage.n_units * torch.arange(n_stories, device=layers[0].device)[:, None, None]
    for layer, winning in enumerate(layers):
        wins = torch.bincount((winning + first).flatten(), minlength=n_stories * usage.n_units)
        usage.wins[stories, layer] = wins.view(n_stories, usage.n_units).cpu().numpy()
        mask = torch.zeros(
            n_stories, n_positions, usage.n_units, dtype=torch.bool, device=winning.device
        ).scatter_(-1, winning, True)
        neighbours = mask[:, :-1].gather(-1, winning[:, 1:]).sum((1, 2))
        usage.neighbours[stories, layer] = neighbours.cpu().numpy()
        moved = at_positions(winning, order)
        shared.append(mask.gather(-1, moved).sum(-1).cpu() * differ)
    both = torch.stack(shared, dim=-1).double()  # (batch, pos, layer)
    usage.shared[stories] = both.sum(1).numpy()
    usage.products[stories] = torch.einsum("bpk,bpl->bkl", both, both).numpy()


def _mean_of(
    sums: Float[np.ndarray, "stories layers"], counts: Num[np.ndarray, " stories"]
) -> Estimate:
    """``sum(sums) / sum(counts)`` of each layer; nan where nothing was counted."""
    total = counts.sum()
    if total == 0:
        return Estimate(np.full(sums.shape[1], np.nan), np.full(sums.shape, np.nan))
    value = sums.sum(0) / total
    return Estimate(value, (sums - value * counts[:, None]) / total)
