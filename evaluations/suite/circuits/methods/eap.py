"""EAP and EAP-IG: what an edge does, by gradients instead of by experiment.

Edge attribution patching (Syed et al. 2023, arXiv 2310.10348) estimates what replacing the edge
u -> v does to a score L: (z'_u - z_u) . dL/dx_v, with z_u the source's clean output, z'_u its
replacement, x_v the destination's input; one forward and one backward pass for all edges. EAP-IG
(Hanna et al. 2024, arXiv 2403.17806, 'inputs') averages that gradient over m runs whose embedding
lies on the way from the replacement's to the clean one's, z' + k/m (z - z'). Their equation takes
k = 1 ... m, the clean run last (``paper``); their released code (hannamw/EAP-IG,
``get_scores_eap_ig``) takes k = 0 ... m - 1, the replacement's run first and the clean run not at
all (``released``). One step of the paper's is EAP.

Scores say what the replacement of an edge costs, so that a useful edge has a positive one: by how
much the logit difference falls, or by how much KL from the clean output rises, in nats, the mean
over prompts. KL is at its minimum, zero, on the clean run: all of its gradient is zero there, so
EAP by KL would rank nothing and is refused; EAP-IG by KL works, the paper's last point adding zero.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

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
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import Bucket, forward, kl_divergence
from evaluations.tasks.pairs import PairBatch
from sat_interp._util import progress


def attribution(
    case: Case,
    score_by: ScoreBy = "logit-difference",
    steps: int = STEPS,
    points: Points = "paper",
) -> Float[Tensor, "edge"]:
    """EAP-IG's scores of all edges, in nats, float64; those of EAP with one step.

    Args:
        points: which interpolation points (:func:`interpolation`).

    Raises:
        UserError: EAP by KL, which is zero for every edge; fewer than one step; one step with the
            released code's points.
    """
    check_attribution(score_by, steps, points)
    graph = case.graph
    total = torch.zeros(graph.n_edges, dtype=torch.float64)
    with progress.bar(total=case.prompts.n, desc="attribution", unit="prompt") as bar:
        for bucket, batch in case.parts():
            found = _effects(case, bucket, batch, score_by, interpolation(steps, points))
            total += found[graph.edge_destination, graph.edge_source]
            bar.update(len(bucket))
    return total / case.prompts.n


def interpolation(steps: int, points: Points = "paper") -> list[float]:
    """Shares of the way from the replacement's embedding (0) to the clean one (1).

    ``paper``: 1/m ... 1. ``released``: 0 ... (m - 1)/m.
    """
    first = 1 if points == "paper" else 0
    return [(step + first) / steps for step in range(steps)]


def _effects(
    case: Case, bucket: Bucket, batch: PairBatch, score_by: ScoreBy, shares: list[float]
) -> Float[Tensor, "destination source"]:
    """Effects summed over the prompts of one piece, the mean over interpolation points."""
    clean = bucket.clean[0]
    start = bucket.replacement[0].expand_as(clean)
    gradient = clean.new_zeros(case.graph.n_destinations, *clean.shape)
    for share in shares:
        embedding = start + share * (clean - start)
        added = torch.zeros_like(gradient, requires_grad=True)
        with torch.enable_grad():
            logits = forward(case.model, case.graph, embedding, added=added).logits
            gradient += torch.autograd.grad(_score(logits, bucket, batch, score_by), added)[0]
    lost = bucket.clean - bucket.replacement
    return (gradient.flatten(1) @ lost.flatten(1).T).double().cpu() / len(shares)


def _score(
    logits: Float[Tensor, "batch d_vocab"], bucket: Bucket, batch: PairBatch, score_by: ScoreBy
) -> Float[Tensor, ""]:
    """What a useful edge raises, summed over prompts."""
    if score_by == "kl":
        return -kl_divergence(bucket.logits, logits).sum()
    return logit_difference(logits, batch).sum()


# Rankings: all edges, the most important first; a circuit of n edges is the first n of them. -----


def ranking(
    graph: Graph,
    scores: Float[Tensor, "edge"],
    selection: Selection = "greedy",
    signed: bool = False,
) -> Int[Tensor, "edge"]:
    """Edges by score, whatever its sign (an edge that harms belongs to the mechanism too).

    ``top``: the largest first. ``greedy``: the largest first of those that lead to the output over
    edges taken before (Hanna et al. 2024, section 3), so that every circuit is connected to the
    output. Equal scores come in ACDC's order.

    Args:
        signed: by the score with its sign, edges that harm last.
    """
    ways: dict[Selection, Callable[..., list[int]]] = {"top": _top, "greedy": _greedy}
    return torch.tensor(ways[selection](graph, (scores if signed else scores.abs()).tolist()))


def first(order: Int[Tensor, "edge"], n: int) -> Bool[Tensor, "edge"]:
    """The circuit of the first ``n`` edges of a ranking."""
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:n]] = True
    return kept


def _top(graph: Graph, sizes: list[float]) -> list[int]:
    return sorted(range(graph.n_edges), key=lambda edge: (-sizes[edge], -edge))


def _greedy(graph: Graph, sizes: list[float]) -> list[int]:
    """A node's incoming edges become candidates with its first edge towards the output."""
    into: dict[int | None, list[int]] = {}
    for edge, destination in enumerate(graph.edge_destination.tolist()):
        into.setdefault(graph.written_by(destination), []).append(edge)
    sources = graph.edge_source.tolist()
    candidates = [(-sizes[edge], -edge) for edge in into.pop(None)]
    heapq.heapify(candidates)
    order = []
    while candidates:
        edge = -heapq.heappop(candidates)[1]
        order.append(edge)
        for further in into.pop(sources[edge], []):
            heapq.heappush(candidates, (-sizes[further], -further))
    return order
