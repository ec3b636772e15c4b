"""EAP and EAP-IG: gradient estimates of the effect of ablating each edge.

Edge attribution patching (Syed et al. 2023, arXiv 2310.10348) estimates what replacing the edge
u -> v does to a score L: (z'_u - z_u) . dL/dx_v, with z_u the source's clean output, z'_u its
replacement, x_v the destination's input. One forward and one backward pass serve all edges. EAP-IG
(Hanna et al. 2024, arXiv 2403.17806, 'inputs') averages that gradient over m runs with interpolated
embeddings z' + k/m (z - z'). Their equation takes k = 1 ... m, ending at the clean run (``paper``);
their released code (hannamw/EAP-IG, ``get_scores_eap_ig``) takes k = 0 ... m - 1, starting at the
replacement's run and without the clean run (``released``). One step of the paper's is EAP.

A score is the cost of ablating an edge, so useful edges have positive scores: the decrease of the
logit difference, or the increase of KL from the clean output, in nats, averaged over prompts. KL
has its minimum, zero, on the clean run, so its gradient is zero there. EAP by KL would be zero for
every edge and is refused; EAP-IG by KL works, although the paper's last point contributes zero.
"""

from __future__ import annotations

import heapq

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.suite.circuits.case import Case, logit_difference
from evaluations.suite.circuits.config import (
    STEPS,
    Points,
    ScoreBy,
    Selection,
    check_attribution,
)
from evaluations.suite.circuits.forward import forward
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import PromptBatch, kl_divergence
from evaluations.tasks.pairs import PairBatch
from sat_interp._util import progress


def attribution(
    case: Case,
    score_by: ScoreBy = "logit-difference",
    steps: int = STEPS,
    points: Points = "paper",
) -> Float[Tensor, "edge"]:
    """Return EAP-IG scores of all edges in nats, float64; with one step those of EAP.

    Args:
        case: the model and the prompts.
        score_by: the score whose change is attributed.
        steps: number of interpolation points.
        points: position of the interpolation points (:func:`interpolation`).

    Raises:
        UserError: EAP by KL, which is zero for every edge; fewer than one step; one step with the
            released code's points.
    """
    check_attribution(score_by, steps, points)
    graph = case.graph
    total = torch.zeros(graph.n_edges, dtype=torch.float64)
    with progress.bar(total=case.prompts.n, desc="attribution", unit="prompt") as bar:
        for bucket, batch in case.parts():
            effects = _effects(case, bucket, batch, score_by, interpolation(steps, points))
            total += effects[graph.edge_destination, graph.edge_source]
            bar.update(len(bucket))
    return total / case.prompts.n


def attribution_of_prompts(
    case: Case,
    score_by: ScoreBy = "logit-difference",
    steps: int = STEPS,
    points: Points = "paper",
) -> Float[Tensor, "prompt edge"]:
    """Return each prompt's scores of all edges; their mean is :func:`attribution`.

    Raises:
        UserError: as there.
    """
    check_attribution(score_by, steps, points)
    graph, found = case.graph, []
    with progress.bar(total=case.prompts.n, desc="attribution", unit="prompt") as bar:
        for bucket, batch in case.parts():
            total = _gradients(case, bucket, batch, score_by, interpolation(steps, points))
            lost = bucket.clean - bucket.replacement
            effects = torch.einsum("dbpm,sbpm->bds", total, lost).double().cpu() / steps
            found.append(effects[:, graph.edge_destination, graph.edge_source])
            bar.update(len(bucket))
    return torch.cat(found)


def interpolation(steps: int, points: Points = "paper") -> list[float]:
    """Return interpolation points from the replacement's embedding (0) to the clean one (1).

    ``paper``: 1/m ... 1. ``released``: 0 ... (m - 1)/m.
    """
    first = 1 if points == "paper" else 0
    return [(step + first) / steps for step in range(steps)]


def _effects(
    case: Case, bucket: PromptBatch, batch: PairBatch, score_by: ScoreBy, shares: list[float]
) -> Float[Tensor, "destination source"]:
    """Return effects summed over the prompts of one part, averaged over interpolation points."""
    total = _gradients(case, bucket, batch, score_by, shares)
    lost = bucket.clean - bucket.replacement
    return (total.flatten(1) @ lost.flatten(1).T).double().cpu() / len(shares)


def _gradients(
    case: Case, bucket: PromptBatch, batch: PairBatch, score_by: ScoreBy, shares: list[float]
) -> Float[Tensor, "destination batch pos d_model"]:
    """Return gradients of the score in all destinations' inputs, summed over the points."""
    clean = bucket.clean[0]
    start = bucket.replacement[0].expand_as(clean)
    total = clean.new_zeros(case.graph.n_destinations, *clean.shape)

    def watch(first: int, gradient: Tensor) -> None:
        total[first : first + len(gradient)] += gradient

    for share in shares:
        embedding = start + share * (clean - start)
        with torch.enable_grad():
            logits = forward(case.model, case.graph, embedding, watch=watch)
            _score(logits, bucket, batch, score_by).backward()
    return total


def _score(
    logits: Float[Tensor, "batch d_vocab"], bucket: PromptBatch, batch: PairBatch, score_by: ScoreBy
) -> Float[Tensor, ""]:
    """Return the score that useful edges increase, summed over prompts."""
    if score_by == "kl":
        return -kl_divergence(bucket.logits, logits).sum()
    return logit_difference(logits, batch).sum()


# Rankings of all edges, most important first; the first n are the circuit of n edges. -----------


def ranking(
    graph: Graph,
    scores: Float[Tensor, "edge"],
    selection: Selection = "greedy",
    signed: bool = False,
) -> Int[Tensor, "edge"]:
    """Rank edges by absolute score (edges with a negative effect belong to the mechanism too).

    ``top``: largest first. ``greedy``: largest first among the edges that are connected to the
    output by edges already taken (Hanna et al. 2024, section 3), so that every circuit is connected
    to the output. Ties are broken by ACDC's visiting order.

    Args:
        graph: the graph.
        scores: score of each edge.
        selection: ``top`` or ``greedy``.
        signed: rank by signed score, edges with a negative effect last.
    """
    rank = _top if selection == "top" else _greedy
    return torch.tensor(rank(graph, (scores if signed else scores.abs()).tolist()))


def first(order: Int[Tensor, "edge"], n: int) -> Bool[Tensor, "edge"]:
    """Return the circuit of the first ``n`` edges of a ranking."""
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:n]] = True
    return kept


def _top(graph: Graph, sizes: list[float]) -> list[int]:
    return sorted(range(graph.n_edges), key=lambda edge: (-sizes[edge], -edge))


def _greedy(graph: Graph, sizes: list[float]) -> list[int]:
    """Rank edges; a node's incoming edges become candidates after its first outgoing edge."""
    into = {
        destination: range(start, start + graph.n_read[destination])
        for destination, start in enumerate(graph.first_edge[:-1])
    }
    sources = graph.edge_source.tolist()
    candidates = [(-sizes[edge], -edge) for edge in into.pop(graph.n_destinations - 1)]
    heapq.heapify(candidates)
    order = []
    while candidates:
        edge = -heapq.heappop(candidates)[1]
        order.append(edge)
        for destination in graph.fed_by[sources[edge]]:
            for further in into.pop(destination, ()):
                heapq.heappush(candidates, (-sizes[further], -further))
    return order
