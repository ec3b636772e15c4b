"""One circuit by any of the methods, from what a configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import (
    STEPS,
    Engine,
    Method,
    Points,
    ScoreBy,
    Selection,
    steps_of,
)
from evaluations.suite.circuits.methods.acdc.autocircuit import autocircuit
from evaluations.suite.circuits.methods.acdc.journal import identity
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.methods.eap import attribution, first, ranking
from evaluations.suite.circuits.paths import on_paths
from sat_interp._util.files import default_cache

DEMO_EDGES = 2000
"""Graphs up to this size are searched in seconds: nothing to resume, and resampling is cheap."""
SHARE = 0.05
"""Of all edges, what EAP and EAP-IG keep unless told how many."""


@dataclass(frozen=True)
class Found:
    """A circuit, and what its method says of each edge.

    Attributes:
        kept: the circuit: the edges the method chose that lie on a path from the embedding to the
            output (``paths.on_paths``).
        scores: ACDC's KL steps (0 where untested; all 0 from auto-circuit), or attributions.
        margin: ACDC's smallest |KL step - tau|; None where there is no such thing.
        tested: how many edges were tested by experiment; None where none, or unknown.
        chosen: every edge the method chose, those off every path included; ``kept`` by default.
    """

    kept: Bool[Tensor, "edge"]
    scores: Float[Tensor, "edge"]
    margin: float | None = None
    tested: int | None = None
    chosen: Bool[Tensor, "edge"] | None = None

    @property
    def n(self) -> int:
        """Number of edges of the circuit."""
        return int(self.kept.sum())

    @property
    def all_chosen(self) -> Bool[Tensor, "edge"]:
        """Every edge the method chose, on a path or not."""
        return self.kept if self.chosen is None else self.chosen


Find = Callable[[Case], Found]


def by_acdc(
    case: Case, tau: float, engine: Engine = "fast", order: Int[Tensor, "edge"] | None = None
) -> Found:
    """ACDC's circuit; an interrupted search of a large graph goes on where it was."""
    graph = case.graph
    if engine == "auto-circuit":
        kept = autocircuit(case.model, graph, case.prompts.batches, tau, order)
        scores = torch.zeros(graph.n_edges, dtype=torch.float64)
        return Found(on_paths(graph, kept), scores, chosen=kept)
    state = None
    if graph.n_edges > DEMO_EDGES:
        visited = graph.order() if order is None else order
        digest = identity(graph, case.buckets, tau, visited)
        state = default_cache() / "acdc" / f"{digest[:20]}.jsonl"
    result = acdc(case.model, graph, case.buckets, tau, order, state=state)
    kept = on_paths(graph, result.kept)
    return Found(kept, result.steps, result.margin, result.n_tested, result.kept)


def by_attribution(
    case: Case,
    method: Method,
    score_by: ScoreBy,
    selection: Selection,
    edges: int | None,
    steps: int = STEPS,
    points: Points = "paper",
) -> Found:
    """EAP's or EAP-IG's circuit of a given size.

    Args:
        edges: how many edges to choose; by default 5 % of all. Those off every path are no part of
            the circuit.
        steps, points: of EAP-IG (``attribution.attribution``).
    """
    scores = attribution(case, score_by, steps_of(method, steps), points)
    n = int(SHARE * case.graph.n_edges) if edges is None else edges
    chosen = first(ranking(case.graph, scores, selection), n)
    return Found(on_paths(case.graph, chosen), scores, chosen=chosen)
