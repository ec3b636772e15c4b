"""ACDC: automatic circuit discovery (Conmy et al. 2023, arXiv 2304.14997, algorithm 1).

Destinations are visited from output to input, and the sources of each destination from last to
first. An edge's *step* is the increase of the mean KL divergence from the clean output, at the last
position, when the edge is replaced in the last accepted state. If it is below tau, the edge stays
removed and the new state is accepted; otherwise the edge is kept. The result depends on the
visiting order, which is returned with it (``Graph.order``).

The search is speculative: a batch contains, for many i, the state in which the candidates 1..i of a
destination are removed or kept as guessed. All states up to the first wrong guess are those that
the sequential algorithm would have evaluated, so the result is the same. The states after it
predict the decisions for the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.config import check_tau
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.engine import BatchState
from evaluations.suite.circuits.methods.acdc.folded import Folded
from evaluations.suite.circuits.methods.acdc.journal import Journal, identity
from evaluations.suite.circuits.methods.acdc.plan import PartialCircuit, Plan
from evaluations.suite.circuits.patched import PromptBatch
from sat_interp._util.progress import bar

MAX_BYTES = 64 * 2**20
"""Working memory of one batch of states; larger batches do not fit the processor's cache."""


@dataclass(frozen=True)
class AcdcResult:
    """A circuit and the KL steps of its edges.

    Attributes:
        graph: the graph.
        tau: the threshold in nats.
        kept: the circuit.
        steps: KL step of each edge in nats; 0 if it was not tested.
        tested: edges whose step was measured; other edges lead to no kept edge, so their step is 0.
        kl: the circuit's mean KL from the clean output, in nats.
        margin: smallest |step - tau| of the tested edges.
        order: the edges in visiting order.
        n_states: number of states evaluated, wrong guesses included.
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
        """Number of kept edges."""
        return int(self.kept.sum())

    @property
    def n_tested(self) -> int:
        """Number of tested edges."""
        return int(self.tested.sum())


def acdc(
    model: HookedTransformer,
    graph: Graph,
    buckets: Sequence[PromptBatch],
    tau: float,
    order: Int[Tensor, "edge"] | None = None,
    max_bytes: int = MAX_BYTES,
    state: Path | None = None,
) -> AcdcResult:
    """Find a circuit.

    Args:
        model: the model.
        graph: its graph.
        buckets: the prompts and the replacements of edges (``patched.prepare``).
        tau: threshold in nats: an edge with a smaller KL step is removed.
        order: all edges in visiting order, destination by destination from the output; by default
            ``graph.order()``.
        max_bytes: working memory in addition to the activations of ``buckets``.
        state: a file from which an interrupted search resumes, written after each destination and
            removed at the end.

    Raises:
        UserError: tau is not a positive number.
        ValueError: the order is not a valid visiting order.
    """
    check_tau(tau)
    order = graph.order() if order is None else order
    visits = _visits(graph, order)
    with torch.no_grad():
        search = _Search(model, graph, buckets, tau, max_bytes)
        journal = Journal(state, identity(graph, buckets, tau, order) if state else "")
        for line in journal.read():
            search.replay(line["destination"], visits, line)
        with bar(total=graph.n_edges, desc="acdc", unit="edge") as progress:
            for destination, sources in visits.items():
                if destination not in search.done:
                    line = search.visit(destination, sources)
                    journal.write(line)
                progress.set_postfix_str(search.status(destination), refresh=False)
                progress.update(graph.n_read[destination])
    journal.remove()
    return search.result(order)


def _visits(graph: Graph, order: Int[Tensor, "edge"]) -> dict[int, list[int]]:
    """Return destinations in visiting order, with their sources in visiting order."""
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
        nodes = graph.feeds(destination)
        if nodes and any(
            min(nodes) < graph.n_read[other]
            for other in range(graph.n_destinations)
            if other not in seen
        ):
            raise ValueError("an order visits what reads a node before what the node reads")
        seen.add(destination)
    return visits


class _Search:
    """The state of a search: the decisions so far, and the KL of the last accepted state."""

    def __init__(
        self,
        model: HookedTransformer,
        graph: Graph,
        buckets: Sequence[PromptBatch],
        tau: float,
        max_bytes: int,
    ) -> None:
        self.graph, self.tau, self.max_bytes = graph, tau, max_bytes
        self.circuit = PartialCircuit(graph)
        folded = Folded.of(model)
        self.batches = [
            BatchState(graph, folded, part) for b in buckets for part in _split(b, max_bytes)
        ]
        self.n_prompts = sum(len(bucket) for bucket in buckets)
        self.steps = torch.zeros(graph.n_edges, dtype=torch.float64)
        self.tested = torch.zeros(graph.n_edges, dtype=torch.bool)
        self.done: set[int] = set()
        self.kl = 0.0
        self.margin = math.inf
        self.n_states = 0
        self.run_length = 32.0  # moving average of the candidates between two wrong guesses

    def visit(self, destination: int, sources: list[int]) -> dict[str, object]:
        """Decide every edge into a destination."""
        kept: list[int] = []
        steps: list[float] = []
        if self.circuit.matters(destination):
            plan = self.circuit.plan(destination)
            kept, steps = self._decide(plan, sources)
            self._accept(plan, [source for source in sources if source not in set(kept)])
        return self._close(destination, sources, kept, steps)

    def replay(self, destination: int, visits: dict[int, list[int]], line: dict[str, Any]) -> None:
        """Apply the decisions of an earlier run."""
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
            measured = torch.tensor(steps, dtype=torch.float64)
            self.steps[edges], self.tested[edges] = measured, True
            distance = (measured - self.tau).abs()
            self.margin = min(self.margin, float(distance.nan_to_num(math.inf).min()))
        return {"destination": destination, "kept": kept, "steps": steps}

    def _accept(self, plan: Plan, removed: list[int]) -> None:
        """Set the input of a destination in the circuit to its decided input."""
        total = 0.0
        for cached in self.batches:
            start = cached.clean_input(plan)
            for source in removed:  # one at a time, for sums bit-identical to the search's
                start = cached.states(start, [source], [True])[0]
            total += cached.kl(plan, start[None], accept=True).item()
        self.kl = total / self.n_prompts

    def _decide(self, plan: Plan, sources: list[int]) -> tuple[list[int], list[float]]:
        """Return the kept sources, and the KL step of every source."""
        inputs = [cached.clean_input(plan) for cached in self.batches]
        most = max(
            1, min(self.max_bytes // cached.bytes_per_state(plan) for cached in self.batches)
        )
        removable: dict[int, bool] = {}  # predictions for candidates, from earlier batches
        kept: list[int] = []
        steps: list[float] = []
        while len(steps) < len(sources):
            rest = sources[len(steps) :]
            size = min(most, max(2, int(2 * self.run_length)), len(rest))
            batch = rest[:size]
            guesses = [removable.get(source, True) for source in batch]
            states = [
                cached.states(start, batch, guesses)
                for cached, start in zip(self.batches, inputs, strict=True)
            ]
            kls = sum(
                cached.kl(plan, rows) for cached, rows in zip(self.batches, states, strict=True)
            )
            assert isinstance(kls, Tensor)
            self.n_states += size
            result = settle(self.kl, (kls / self.n_prompts).tolist(), guesses, self.tau)
            n = len(result.steps)
            steps += result.steps
            kept += [s for s, step in zip(batch, result.steps, strict=False) if not step < self.tau]
            self.kl = result.kl
            if result.accepted is not None:
                inputs = [rows[result.accepted] for rows in states]
            removable = dict(zip(batch[n:], result.predictions, strict=True))
            self.run_length += 0.2 * (n * (2 if n == size else 1) - self.run_length)
        return kept, steps

    def status(self, destination: int) -> str:
        """Describe the progress of the search, for its progress bar."""
        layer = self.graph.destinations[destination].layer
        place = "output" if layer == self.graph.n_layers else f"layer {layer}"
        tested, kept = int(self.tested.sum()), int(self.circuit.kept.sum())
        return f"{place}, {tested:,} tested, {kept:,} kept"

    def result(self, order: Int[Tensor, "edge"]) -> AcdcResult:
        """Return the result of a finished search."""
        kept = torch.from_numpy(self.circuit.kept)
        return AcdcResult(
            graph=self.graph,
            tau=self.tau,
            kept=kept[self.graph.edge_destination, self.graph.edge_source],
            steps=self.steps,
            tested=self.tested,
            kl=self.kl,
            margin=self.margin,
            order=order,
            n_states=self.n_states,
        )


def _split(bucket: PromptBatch, max_bytes: int) -> Iterator[PromptBatch]:
    """Split prompts into parts whose state fits into the memory even if everything changes."""
    _, _, n_positions, width = bucket.clean.shape
    per_prompt = 2 * len(bucket.clean) * n_positions * width * bucket.clean.element_size()
    size = max(1, max_bytes // per_prompt)
    for start in range(0, len(bucket), size):
        yield bucket[start : start + size]


@dataclass(frozen=True)
class Settled:
    """The decisions that follow from a batch of states.

    Attributes:
        steps: KL steps of the candidates up to and including the first wrong guess.
        accepted: index of the state that is the circuit now; None if the circuit has not changed.
        kl: KL of the circuit.
        predictions: for every later candidate, whether it is expected to be removed.
    """

    steps: list[float]
    accepted: int | None
    kl: float
    predictions: list[bool]


def settle(kl: float, kls: list[float], guesses: list[bool], tau: float) -> Settled:
    """Compare guesses (True: removed) with the KL steps, up to the first wrong guess.

    Args:
        kl: KL of the circuit so far.
        kls: KL of each state.
        guesses: the guesses on which the states are based.
        tau: the threshold.
    """
    steps: list[float] = []
    accepted = None
    for index, (candidate, guess) in enumerate(zip(kls, guesses, strict=True)):
        steps.append(candidate - kl)
        removed = steps[-1] < tau
        reference = candidate if guess else kl  # of the states that follow
        if removed:
            accepted, kl = index, candidate
        if removed != guess:
            later = _predict(reference, kls[index + 1 :], guesses[index + 1 :], tau)
            return Settled(steps, accepted, kl, later)
    return Settled(steps, accepted, kl, [])


def _predict(reference: float, kls: list[float], guesses: list[bool], tau: float) -> list[bool]:
    """Predict removals of later candidates from the steps between states after a wrong guess."""
    predictions = []
    for candidate, guess in zip(kls, guesses, strict=True):
        predictions.append(candidate - reference < tau)
        if guess:
            reference = candidate
    return predictions
