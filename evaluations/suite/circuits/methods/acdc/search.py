"""ACDC: automatic circuit discovery (Conmy et al. 2023, arXiv 2304.14997, algorithm 1).

Destinations are visited from the output towards the input, and of each its sources, latest first.
An edge's *step* is how much the mean KL divergence from the clean output, at the last position,
rises over the last accepted state when the edge's replacement is put in its place; if it is less
than tau the edge stays removed and the reference moves, else the edge is kept. The order is total
and comes with the result, which hangs on it (``Graph.order``).

The loop runs ahead of itself: the states in which candidates 1..i of a destination are gone, for
many i, are one batch. The first wrong guess decides where the next batch starts, and what lies
behind it says which of the rest will be kept, so the result is the sequential algorithm's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.config import check_tau
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.engine import Lane
from evaluations.suite.circuits.methods.acdc.folded import Folded
from evaluations.suite.circuits.methods.acdc.journal import Journal, identity
from evaluations.suite.circuits.methods.acdc.plan import Circuit, Plan
from evaluations.suite.circuits.methods.acdc.speculation import settle
from evaluations.suite.circuits.patched import Bucket
from sat_interp._util.progress import bar

MAX_BYTES = 64 * 2**20
"""Working memory of one batch of states; more gains nothing, the processor's caches are smaller."""


@dataclass(frozen=True)
class AcdcResult:
    """A circuit, and how it came about.

    Attributes:
        kept: the circuit.
        steps: each edge's KL step in nats when it was visited; 0 where it was not tested.
        tested: edges whose step was measured; the rest leads to no kept edge, so its step is 0.
        kl: the circuit's own mean KL from the clean output, in nats.
        margin: the smallest |step - tau| of the tested edges: how near this circuit is to another.
        order: the edges as they were visited.
        n_states: circuits evaluated, failed guesses included.
    """

    graph: Graph
    tau: float
    kept: Bool[Tensor, "edge"]
    steps: Float[Tensor, "edge"]
    tested: Bool[Tensor, "edge"]
    kl: float
    margin: float
    order: Int[Tensor, "edge"]
    n_states: int

    @property
    def n_kept(self) -> int:
        return int(self.kept.sum())

    @property
    def n_tested(self) -> int:
        return int(self.tested.sum())


def acdc(
    model: HookedTransformer,
    graph: Graph,
    buckets: Sequence[Bucket],
    tau: float,
    order: Int[Tensor, "edge"] | None = None,
    max_bytes: int = MAX_BYTES,
    state: Path | None = None,
) -> AcdcResult:
    """Find a circuit.

    Args:
        buckets: the prompts and what replaces an edge (``patched.prepare``); a sweep over tau
            hands in the same ones again.
        tau: an edge whose KL step is below it is removed, in nats: a lower tau keeps more edges.
        order: all edges in the order they are visited, destination by destination from the output;
            ``graph.order()`` by default.
        max_bytes: working memory beside the activations of ``buckets``.
        state: a file that an interrupted run resumes from, written after each destination and
            removed at the end.

    Raises:
        UserError: tau is not a positive number.
        ValueError: the order is not one that ACDC may visit edges in.
    """
    check_tau(tau)
    order = graph.order() if order is None else order
    visits = _visits(graph, order)
    with torch.no_grad():
        search = _Search(model, graph, buckets, tau, max_bytes)
        journal = Journal(state, identity(graph, buckets, tau, order))
        for line in journal.read():
            search.replay(line["destination"], visits, line)
        with bar(total=graph.n_edges, desc="acdc", unit="edge") as progress:
            for destination, sources in visits.items():
                if destination not in search.done:
                    line = search.visit(destination, sources)
                    journal.write(line)
                _show(progress, graph, destination, search)
    journal.remove()
    return search.result(order)


def _visits(graph: Graph, order: Int[Tensor, "edge"]) -> dict[int, list[int]]:
    """Destinations in visiting order, with their sources in visiting order."""
    if not torch.equal(order.sort().values, torch.arange(graph.n_edges)):
        raise ValueError("an order names every edge once")
    visits: dict[int, list[int]] = {}
    last = None
    for destination, source in zip(
        graph.edge_destination[order].tolist(), graph.edge_source[order].tolist(), strict=True
    ):
        if destination != last and destination in visits:
            raise ValueError("an order visits the edges of a destination one after another")
        visits.setdefault(destination, []).append(source)
        last = destination
    seen: set[int] = set()
    for destination in visits:
        node = graph.written_by(destination)
        if node is not None and any(
            node < graph.n_read[other] for other in range(graph.n_destinations) if other not in seen
        ):
            raise ValueError("an order visits what reads a node before what the node reads")
        seen.add(destination)
    return visits


def _show(progress: tqdm, graph: Graph, destination: int, search: _Search) -> None:
    layer = graph.destinations[destination].layer
    where = "output" if layer == graph.n_layers else f"layer {layer}"
    tested, kept = int(search.tested.sum()), int(search.circuit.kept.sum())
    progress.set_postfix_str(f"{where}, {tested:,} tested, {kept:,} kept", refresh=False)
    progress.update(graph.n_read[destination])


class _Search:
    """The state of one run: what is decided, and the KL of the last accepted state."""

    def __init__(
        self,
        model: HookedTransformer,
        graph: Graph,
        buckets: Sequence[Bucket],
        tau: float,
        max_bytes: int,
    ) -> None:
        self.graph, self.tau, self.max_bytes = graph, tau, max_bytes
        self.circuit = Circuit(graph)
        folded = Folded.of(model)
        self.lanes = [Lane(graph, folded, part) for b in buckets for part in _split(b, max_bytes)]
        self.n_prompts = sum(len(bucket) for bucket in buckets)
        self.steps = torch.zeros(graph.n_edges, dtype=torch.float64)
        self.tested = torch.zeros(graph.n_edges, dtype=torch.bool)
        self.done: set[int] = set()
        self.kl = 0.0
        self.margin = math.inf
        self.n_states = 0
        self.run_length = 32.0  # candidates between two wrong guesses, lately

    def visit(self, destination: int, sources: list[int]) -> dict[str, object]:
        """Decide every edge into a destination."""
        kept: list[int] = []
        steps: list[float] = []
        if self.circuit.matters(destination):
            plan = self.circuit.plan(destination)
            kept, steps = self._decide(plan, sources)
            self._accept(plan, [source for source in sources if source not in set(kept)])
        return self._close(destination, sources, kept, steps)

    def replay(self, destination: int, visits: dict[int, list[int]], line: dict) -> None:
        """Take over the decisions of an earlier run."""
        sources, kept, steps = visits[destination], line["kept"], line["steps"]
        if self.circuit.matters(destination):
            plan = self.circuit.plan(destination)
            self._accept(plan, [source for source in sources if source not in set(kept)])
        self._close(destination, sources, kept, steps)

    def _close(
        self, destination: int, sources: list[int], kept: list[int], steps: list[float]
    ) -> dict[str, object]:
        self.circuit.decide(destination, kept)
        self.done.add(destination)
        if steps:
            edges = self.graph.first_edge[destination] + torch.tensor(sources)
            found = torch.tensor(steps, dtype=torch.float64)
            self.steps[edges], self.tested[edges] = found, True
            distance = (found - self.tau).abs()
            self.margin = min(self.margin, float(distance.nan_to_num(math.inf).min()))
        return {"destination": destination, "kept": kept, "steps": steps}

    def _accept(self, plan: Plan, removed: list[int]) -> None:
        """Make the decided input of a destination the circuit's own."""
        total = 0.0
        for lane in self.lanes:
            start = lane.clean_input(plan)
            for source in removed:  # one by one: the sums of the search, to the last bit
                start = lane.states(start, [source], [True])[0]
            total += lane.kl(plan, start[None], accept=True).item()
        self.kl = total / self.n_prompts

    def _decide(self, plan: Plan, sources: list[int]) -> tuple[list[int], list[float]]:
        """Kept sources, and every source's KL step."""
        inputs = [lane.clean_input(plan) for lane in self.lanes]
        most = max(1, min(self.max_bytes // lane.bytes_per_state(plan) for lane in self.lanes))
        removable: dict[int, bool] = {}  # what failed batches say of candidates yet to come
        kept: list[int] = []
        steps: list[float] = []
        while len(steps) < len(sources):
            rest = sources[len(steps) :]
            size = min(most, max(2, int(2 * self.run_length)), len(rest))
            batch = rest[:size]
            guesses = [removable.get(source, True) for source in batch]
            states = [
                lane.states(start, batch, guesses)
                for lane, start in zip(self.lanes, inputs, strict=True)
            ]
            kls = sum(lane.kl(plan, rows) for lane, rows in zip(self.lanes, states, strict=True))
            assert isinstance(kls, Tensor)
            self.n_states += size
            found = settle(self.kl, (kls / self.n_prompts).tolist(), guesses, self.tau)
            n = len(found.steps)
            steps += found.steps
            kept += [s for s, step in zip(batch, found.steps, strict=False) if not step < self.tau]
            self.kl = found.kl
            if found.accepted is not None:
                inputs = [rows[found.accepted] for rows in states]
            removable = dict(zip(batch[n:], found.outlook, strict=True))
            self.run_length += 0.2 * (n * (2 if n == size else 1) - self.run_length)
        return kept, steps

    def result(self, order: Int[Tensor, "edge"]) -> AcdcResult:
        kept = torch.from_numpy(self.circuit.kept)
        kept = kept[self.graph.edge_destination, self.graph.edge_source]
        return AcdcResult(
            self.graph, self.tau, kept, self.steps, self.tested, self.kl, self.margin, order,
            self.n_states,
        )  # fmt: skip


def _split(bucket: Bucket, max_bytes: int) -> Iterator[Bucket]:
    """Parts of a bucket of which one state, everything changing, stays within the memory."""
    _, n_prompts, n_positions, width = bucket.clean.shape
    per_prompt = 2 * len(bucket.clean) * n_positions * width * bucket.clean.element_size()
    size = max(1, max_bytes // per_prompt)
    for start in range(0, n_prompts, size):
        part = slice(start, start + size)
        varies = bucket.replacement.shape[1] > 1
        yield Bucket(
            bucket.clean[:, part],
            bucket.replacement[:, part] if varies else bucket.replacement,
            bucket.logits[part],
            bucket.first,
        )
