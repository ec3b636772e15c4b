"""Circuits by every method in a common form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig, Engine, Ranking
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.acdc.autocircuit import autocircuit
from evaluations.suite.circuits.methods.acdc.journal import identity
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.methods.eap import (
    attribution,
    attribution_of_prompts,
    first,
    ranking,
)
from evaluations.suite.circuits.methods.masks import (
    Distribution,
    HardConcrete,
    Price,
    TargetedConcrete,
    Ugs,
)
from evaluations.suite.circuits.methods.refine import refined
from evaluations.suite.circuits.methods.search import (
    PAPER_SLOWER,
    Schedule,
    Searched,
    identity_of,
    learning_rate,
    search,
)
from evaluations.suite.circuits.methods.selection import (
    consistent_ranking,
    live_circuit,
    positive_ranking,
)
from sat_interp._util.files import default_cache

DEMO_EDGES = 2000
"""Largest graph whose search takes seconds: it is not resumed, but repeated by default."""
SHARE = 0.05
"""Share of all edges that EAP, EAP-IG and Edge Pruning keep by default."""
OA_LOGIT = 0.5
"""Logit above which UGS and HCGS keep an edge under optimal ablation, as in their paper; 0 else."""
TARGETED_RATE = 0.8
"""Learning rate of Edge Pruning, for logits and multipliers."""
TARGETED_START = 2.0
"""Initial logit of Edge Pruning."""


@dataclass(frozen=True)
class FoundCircuit:
    """A circuit and the scores of all edges.

    Attributes:
        kept: the circuit: the chosen edges on a path from the embedding to the output
            (``graph.on_paths``).
        scores: ACDC's KL steps (0 if untested; all 0 from auto-circuit), attributions, or logits of
            masks.
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


@dataclass(frozen=True)
class Attributed:
    """Scores of all edges by EAP or EAP-IG, and the edges ranked by them, best first."""

    scores: Float[Tensor, "edge"]
    signed: Int[Tensor, "edge"]
    absolute: Int[Tensor, "edge"]

    def order(self, ranking: Ranking) -> Int[Tensor, "edge"]:
        """Return the edges by one of the rankings."""
        return self.signed if ranking == "signed" else self.absolute


def by_attribution(case: Case, config: CircuitConfig) -> FoundCircuit:
    """Find a circuit of a given size with EAP or EAP-IG."""
    found = attributed(case, config)
    return of_ranking(case.graph, found.scores, found.order(config.ranking), config.edges)


def of_ranking(
    graph: Graph, scores: Float[Tensor, "edge"], order: Int[Tensor, "edge"], edges: int | None
) -> FoundCircuit:
    """Return the circuit of the first edges of a ranking."""
    chosen = first(order, default_edges(graph, edges))
    return FoundCircuit(on_paths(graph, chosen), scores, chosen=chosen)


def attributed(case: Case, config: CircuitConfig) -> Attributed:
    """Return scores of all edges by EAP or EAP-IG, and both rankings by them."""
    graph, how = case.graph, (config.score_by, config.interpolation_steps, config.points)
    if config.selection == "consistent":
        each = attribution_of_prompts(case, *how)
        orders = [consistent_ranking(graph, each, signed, config.seed) for signed in (True, False)]
        return Attributed(each.mean(0), *orders)
    scores = attribution(case, *how)
    if config.selection == "positive":
        ratios = 1.0, config.positive_ratio
        orders = [positive_ranking(graph, scores, ratio) for ratio in ratios]
    else:
        orders = [ranking(graph, scores, config.selection, signed) for signed in (True, False)]
    return Attributed(scores, *orders)


def default_edges(graph: Graph, edges: int | None) -> int:
    """Return the number of edges to choose; by default 5 % of all."""
    return int(SHARE * graph.n_edges) if edges is None else edges


def by_masks(case: Case, config: CircuitConfig) -> FoundCircuit:
    """Find a circuit with UGS, HCGS or Edge Pruning; an interrupted search is resumed.

    The constants that were fitted alongside are a start of the circuit's own.
    """
    edges, price = config.edges, config.penalty
    if config.method == "edge-pruning":
        edges = default_edges(case.graph, edges)
        price = 1 - edges / case.graph.n_edges
    found = searched(case, config, price)
    scores = found.theta.double().cpu()
    likely = scores > likely_logit(case)
    if edges is None:
        chosen = likely
    elif config.exchanges and 0 < edges < case.graph.n_edges:
        chosen = of_size(case, [found], edges, config.exchanges)
    else:
        chosen = first(by_logit(scores), edges)
    kept = on_paths(case.graph, chosen)
    suggest(case, kept, found)
    return FoundCircuit(kept, scores, chosen=chosen)


def of_size(
    case: Case,
    searches: Sequence[Searched],
    size: int,
    exchanges: int,
    others: Sequence[Bool[Tensor, "edge"]] = (),
) -> Bool[Tensor, "edge"]:
    """Return a circuit of a given number of edges, made from searches (``methods.refine``).

    It begins from the first edges of each ranking by logit, and from the smallest circuit above
    that size among those of the searches and ``others``.

    Args:
        case: the prompts.
        searches: ends of searches on them.
        size: number of edges.
        exchanges: most exchanges of one edge for another.
        others: further circuits to begin from.
    """
    starts, larger = [], list(others)
    for found in searches:
        scores = found.theta.double().cpu()
        starts.append(live_circuit(case.graph, by_logit(scores), size))
        larger.append(on_paths(case.graph, scores > likely_logit(case)))
        for kept in (starts[-1], larger[-1]):
            suggest(case, kept, found)
    larger = sorted(
        (kept for kept in larger if int(kept.sum()) > size), key=lambda kept: kept.sum()
    )
    return refined(case, [*starts, *larger[:1]], size, exchanges)


def suggest(case: Case, kept: Bool[Tensor, "edge"], found: Searched) -> None:
    """Let a circuit's optimal constants start from those that were fitted alongside a search."""
    if case.refitter and found.constants is not None:
        case.refitter.suggest(kept, found.constants)


def likely_logit(case: Case) -> float:
    """Return the logit above which a search keeps an edge."""
    return OA_LOGIT if case.refitter else 0.0


def searched(case: Case, config: CircuitConfig, price: float) -> Searched:
    """Search once.

    Args:
        case: the prompts.
        config: its ``method`` is one of ``MASKED``.
        price: of an edge (lambda); of Edge Pruning the share of edges to remove.
    """
    schedule = Schedule.of(config, config.ablation, config.seed)
    prices = Price.of_graph(case.graph, price, case.model.W_E.dtype)
    is_slow = config.paper_schedule and config.ablation == "resample"
    rate = learning_rate(price, PAPER_SLOWER.get(config.method, 1.0) if is_slow else 1.0)
    distribution: Distribution
    if config.method == "edge-pruning":
        distribution = TargetedConcrete(price, TARGETED_RATE, _start(case, config, price))
    elif config.method == "hcgs":
        distribution = HardConcrete(prices, rate)
    else:
        distribution = Ugs(prices, rate, config.window)
    state = default_cache() / "masks" / f"{identity_of(case, distribution, schedule)[:20]}.state"
    return search(case, distribution, schedule, state)


def _start(case: Case, config: CircuitConfig, target: float) -> Float[Tensor, "edge"]:
    """Initial logits of Edge Pruning: equal, or falling with EAP-IG's ranks through the target."""
    n, dtype = case.graph.n_edges, case.model.W_E.dtype
    if not config.warm_start:
        return torch.full((n,), TARGETED_START, dtype=dtype)
    order = ranking(case.graph, attribution(case, "kl"), "top")
    ranks = torch.empty(n, dtype=dtype)
    ranks[order] = torch.arange(n, dtype=dtype)
    kept = max(1.0, (1 - min(1.0, target)) * n)  # the edge at this rank begins at 0
    return TARGETED_START * (1 - ranks / kept).clamp(min=-1)


def by_logit(scores: Float[Tensor, "edge"]) -> Int[Tensor, "edge"]:
    """Rank edges by the logits of their masks."""
    return scores.sort(descending=True, stable=True).indices
