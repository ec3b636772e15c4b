"""Usage of units by the masks: win frequencies, dead units, entropy, and overlap of masks.

A unit WINS at a token of a layer if it is one of the k units that the mask keeps (for soft masks:
one of the k with the highest scores). All metrics are computed per layer and site (attention units,
neurons), over all input positions of the stories, including the end-of-text token at the start.

- Win frequency p_u: share of tokens at which unit u wins. The frequencies sum to k.
- Dead: a unit that wins at no token of the text. The standard error is the jackknife's over
  stories, from the units that win in a single story.
- Mask entropy: entropy of the distribution of wins over the n units, H = - sum_u q_u log2 q_u bits,
  with q_u = p_u / k. It lies between log2 k (always the same units) and log2 n (all units equally
  often); the normalised entropy is H / log2 n. It is the entropy of the marginal distribution: it
  measures how evenly units are used, not the information in one token's mask. It is the plug-in
  estimate, which is biased downwards by about (n - 1) / (2 ln 2 * wins) bits.
- Overlap of neighbours: |S_t and S_t+1| / k for the winners S of two neighbouring positions of a
  story. Chance overlap is the same for any two tokens of the text, averaged over all pairs of
  different tokens: sum_u w_u (w_u - 1) / (k N (N - 1)) for w_u wins in N tokens, an unbiased
  estimate of sum_u p_u^2 / k. The overlap of two random positions of the same story is also
  recorded.
- Similarity of layers: units of different layers are not aligned (each layer has its own weights,
  also for attention coordinates), so their indices cannot be compared. The metric is whether two
  layers group tokens alike: the Pearson correlation between layers of |S_t and S_t'|, over random
  pairs of positions of the same story. It is 1 if the masks of the layers are equal up to a
  permutation of units, and 0 if they are independent. It is representational similarity analysis
  (Kriegeskorte et al. 2008) with overlap of masks as the similarity.

Standard errors are clustered over stories, by linearisation (:class:`LayerEstimate`).
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
    """Counts of one site for each story.

    Attributes:
        k: winners per token.
        tokens: number of positions.
        wins: number of wins of each unit.
        neighbours: number of shared winners, summed over neighbouring positions.
        pairs: number of random pairs of different positions.
        shared: number of shared winners, summed over these pairs.
        products: product of the number of shared winners in two layers, summed over these pairs.
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
        """Number of layers."""
        return int(self.wins.shape[1])

    @property
    def n_units(self) -> int:
        """Number of units of a layer."""
        return int(self.wins.shape[2])


@dataclass(frozen=True)
class LayerEstimate:
    """A metric of each layer (or pair of layers), nan where it is undefined.

    Attributes:
        value: the values.
        influence: first-order influence of each story on the values, for standard errors.
    """

    value: Float[np.ndarray, "*layers"]
    influence: Float[np.ndarray, "stories *layers"]

    @property
    def standard_error(self) -> Float[np.ndarray, "*layers"]:
        """Standard error clustered over stories: sqrt(n / (n - 1) * sum of influence^2)."""
        n = len(self.influence)
        if n < 2:
            return np.full(self.value.shape, np.nan)
        return np.asarray(np.sqrt(n / (n - 1) * (self.influence**2).sum(0)))

    def mean(self, chosen: Any = slice(None)) -> LayerEstimate:
        """Return the mean over all or the chosen layers, with its standard error."""
        influence = self.influence[(slice(None), *np.index_exp[chosen])]
        return LayerEstimate(np.asarray(self.value[chosen].mean()), influence.mean(-1))


@torch.inference_mode()
def count(model: SelfAblatingTransformer, text: Text, seed: int) -> dict[str, Usage]:
    """Count wins and overlaps of each site in one pass over the text."""
    generator = torch.Generator().manual_seed(seed)
    usage: dict[str, Usage] = {}
    for batch in batches(model, text, "gates: masks"):
        order = shuffled_positions(batch.inputs, generator)
        for site in SITES:
            k = kept_units(model, site)
            layers = [winners(ranking, k) for ranking in batch.rankings[site]]
            if site not in usage:
                units = batch.rankings[site][0].shape[-1]
                usage[site] = _empty(len(text), len(layers), units, k)
            _add(usage[site], layers, batch.stories.numpy(), order)
    return usage


def frequencies(usage: Usage) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Return the win frequency of each unit (layers, units), and its standard error."""
    wins, tokens = usage.wins.sum(0, dtype=np.float64), usage.tokens.sum()
    frequency = wins / tokens
    n = len(usage.tokens)
    squares = np.zeros_like(frequency)
    for story_wins, story_tokens in zip(usage.wins, usage.tokens, strict=True):
        squares += (story_wins - frequency * story_tokens) ** 2
    error = np.sqrt(n / (n - 1) * squares) / tokens if n > 1 else np.full_like(squares, np.nan)
    return frequency, error


def entropy(usage: Usage) -> LayerEstimate:
    """Return the mask entropy of each layer, in bits."""
    total = usage.wins.sum(0, dtype=np.float64)
    share = total / total.sum(-1, keepdims=True)
    # H is the mean surprisal of a win. Changes of q cancel to first order, since the q sum to 1, so
    # the influence of a story is that on a mean.
    surprisal = -np.log2(np.where(share > 0, share, 1.0))
    per_story = np.einsum("slu,lu->sl", usage.wins, surprisal)
    return _mean_of(per_story, usage.tokens * usage.k)


def dead(usage: Usage) -> LayerEstimate:
    """Return the share of each layer's units that never win."""
    ever = usage.wins > 0
    stories = ever.sum(0)  # number of stories in which each unit wins
    n = len(usage.tokens)
    lost = (ever & (stories == 1)).mean(-1)  # share that would be dead without the story
    jackknife = (n - 1) / n * (lost - lost.mean(0))
    return LayerEstimate((stories == 0).mean(-1), jackknife)


def neighbour_overlap(usage: Usage) -> LayerEstimate:
    """Return the share of winners that a token shares with the next token."""
    return _mean_of(usage.neighbours / usage.k, np.maximum(usage.tokens - 1, 0))


def random_pair_overlap(usage: Usage) -> LayerEstimate:
    """Return the share of winners that two random positions of a story share."""
    return _mean_of(usage.shared / usage.k, usage.pairs)


def chance_overlap(usage: Usage) -> LayerEstimate:
    """Return the share of winners that two random tokens of the text share."""
    wins, tokens = usage.wins.sum(0, dtype=np.float64), float(usage.tokens.sum())
    value = (wins * (wins - 1)).sum(-1) / (usage.k * tokens * max(tokens - 1, 1.0))
    frequency = wins / tokens
    slope = 2 * frequency / usage.k  # the derivative of sum p^2 / k
    moved = np.einsum("slu,lu->sl", usage.wins, slope)
    expected = usage.tokens[:, None] * (slope * frequency).sum(-1)
    return LayerEstimate(value, (moved - expected) / tokens)


def excess_overlap(usage: Usage) -> LayerEstimate:
    """Return the overlap of neighbours minus the chance overlap."""
    overlap, chance = neighbour_overlap(usage), chance_overlap(usage)
    return LayerEstimate(overlap.value - chance.value, overlap.influence - chance.influence)


def layer_similarity(usage: Usage) -> LayerEstimate:
    """Return the correlation between layers of the overlap of two tokens' masks.

    The result is a matrix of layers by layers. It is nan if a layer's overlap is constant (k = n),
    or there are no pairs.
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
        return LayerEstimate(correlation, (product - correlation * both) / n_pairs)


def maximum_entropy(usage: Usage) -> float:
    """Return log2 n, the entropy if all n units win equally often."""
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
    """Add the winners of each layer in a batch of stories."""
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
) -> LayerEstimate:
    """Return ``sum(sums) / sum(counts)`` of each layer; nan if the counts are 0."""
    total = counts.sum()
    if total == 0:
        return LayerEstimate(np.full(sums.shape[1], np.nan), np.full(sums.shape, np.nan))
    value = sums.sum(0) / total
    return LayerEstimate(value, (sums - value * counts[:, None]) / total)
