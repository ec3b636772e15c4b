"""Circuits by ACDC, EAP and EAP-IG in a common form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig, Engine
from evaluations.suite.circuits.graph import on_paths
from evaluations.suite.circuits.methods.acdc.autocircuit import autocircuit
from evaluations.suite.circuits.methods.acdc.journal import identity
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.methods.eap import attribution, first, ranking
from sat_interp._util.files import default_cache

DEMO_EDGES = 2000
"""Largest graph whose search takes seconds: it is not resumed, but repeated by default."""
SHARE = 0.05
"""Share of all edges that EAP and EAP-IG keep by default."""


@dataclass(frozen=True)
class FoundCircuit:
    """A circuit and the scores of all edges.

    Attributes:
        kept: the circuit: the chosen edges on a path from the embedding to the output
            (``graph.on_paths``).
        scores: ACDC's KL steps (0 if untested; all 0 from auto-circuit), or attributions.
        margin: ACDC's smallest |KL step - tau|; None for other methods.
        tested: number of edges tested by ablation; None for other methods, or if unknown.
        chosen: all edges the method chose, on a path or not; ``kept`` by default.
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
        """All edges the method chose, on a path or not."""
        return self.kept if self.chosen is None else self.chosen


CircuitFinder = Callable[[Case], FoundCircuit]


def by_acdc(
    case: Case, tau: float, engine: Engine = "fast", order: Int[Tensor, "edge"] | None = None
) -> FoundCircuit:
    """Find a circuit with ACDC; an interrupted search of a large graph is resumed."""
    graph = case.graph
    if engine == "auto-circuit":
        kept = autocircuit(case.model, graph, case.prompts.batches, tau, order)
        scores = torch.zeros(graph.n_edges, dtype=torch.float64)
        return FoundCircuit(on_paths(graph, kept), scores, chosen=kept)
    state = None
    if graph.n_edges > DEMO_EDGES:
        visited = graph.order() if order is None else order
        digest = identity(graph, case.buckets, tau, visited)
        state = default_cache() / "acdc" / f"{digest[:20]}.jsonl"
    result = acdc(case.model, graph, case.buckets, tau, order, state=state)
    kept = on_paths(graph, result.kept)
    return FoundCircuit(kept, result.steps, result.margin, result.n_tested, result.kept)


def by_attribution(case: Case, config: CircuitConfig) -> FoundCircuit:
    """Find a circuit of a given size with EAP or EAP-IG."""
    scores = attribution(case, config.score_by, config.interpolation_steps, config.points)
    n = int(SHARE * case.graph.n_edges) if config.edges is None else config.edges
    chosen = first(ranking(case.graph, scores, config.selection), n)
    return FoundCircuit(on_paths(case.graph, chosen), scores, chosen=chosen)
