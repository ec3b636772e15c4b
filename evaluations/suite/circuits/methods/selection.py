"""Selections of edges beyond the largest scores: live circuits, and those of arXiv 2510.25786.

Attribution scores are noisy means over few prompts, and the largest absolute scores mix edges that
help with edges that harm.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.core.statistics import TAILS
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.eap import first, ranking

RESAMPLES = 500
"""Bootstrap samples of the prompts."""


def live_circuit(graph: Graph, order: Int[Tensor, "edge"], n: int) -> Bool[Tensor, "edge"]:
    """Return a circuit of ``n`` edges, all of them on paths, of the first edges of a ranking.

    The first edges of a ranking often lie on no path, and the next one may put several on paths at
    once. So the shortest beginning of the ranking with at least ``n`` edges on paths is taken; then
    the last-ranked edges without which at least ``n`` are left are removed, one by one. Where no
    removal leaves ``n``, the circuit has more; where the graph has fewer on paths, it has those.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        enough = int(on_paths(graph, first(order, middle)).sum()) >= n
        low, high = (low, middle) if enough else (middle + 1, high)
    kept = on_paths(graph, first(order, low))
    last = order[:low].flip(0).tolist()
    while int(kept.sum()) > n:
        for edge in last:
            if not kept[edge]:
                continue
            less = kept.clone()
            less[edge] = False
            less = on_paths(graph, less)
            if int(less.sum()) >= n:
                kept = less
                break
        else:
            return kept
    return kept


def consistency(
    scores: Float[Tensor, "prompt edge"], seed: int = 0, resamples: int = RESAMPLES
) -> Float[Tensor, "edge"]:
    """Return the share of bootstrap samples of the prompts in which a score has its own sign.

    The score of an edge is its mean over prompts; where it is exactly 0 the share is 0.
    """
    n = len(scores)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    means = torch.from_numpy(draws).to(scores) @ scores / n
    own = scores.mean(0).sign()
    share: Tensor = ((means.sign() == own) & (own != 0)).to(scores.dtype).mean(0)
    return share


def consistent_ranking(
    graph: Graph, scores: Float[Tensor, "prompt edge"], signed: bool = False, seed: int = 0
) -> Int[Tensor, "edge"]:
    """Rank edges whose sign is consistent before all others, each by their mean score.

    Consistent: the sign of the mean in at least 97.5 % of the bootstrap samples, so that the
    two-sided 95 % interval of the mean does not contain 0. Within both groups edges are ranked as
    in ``eap.ranking`` with ``top``.
    """
    order = ranking(graph, scores.mean(0), "top", signed)
    is_consistent = consistency(scores, seed)[order] >= TAILS[1]
    return torch.cat([order[is_consistent], order[~is_consistent]])


def positive_ranking(
    graph: Graph, scores: Float[Tensor, "edge"], ratio: float
) -> Int[Tensor, "edge"]:
    """Rank edges so that of the first k about ``ratio * k`` are the best by signed score.

    The others are the best remaining ones by absolute score. A ratio of 1 ranks by signed scores, 0
    by absolute ones.
    """
    signed = ranking(graph, scores, "top", True).tolist()
    absolute = ranking(graph, scores, "top", False).tolist()
    order: list[int] = []
    taken: set[int] = set()
    places = {True: iter(signed), False: iter(absolute)}
    n_signed = 0
    while len(order) < len(signed):
        by_sign = n_signed < ratio * (len(order) + 1)
        edge = next(edge for edge in places[by_sign] if edge not in taken)
        n_signed += by_sign
        order.append(edge)
        taken.add(edge)
    return torch.tensor(order)
