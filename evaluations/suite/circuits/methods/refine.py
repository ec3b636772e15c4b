"""Circuits of a given size, made from those of a search: edges are removed, then exchanged.

A search by masks has a price for each edge, and so finds circuits on the convex hull of cost
against number of edges. Where cost is concave in it, all edges are worth the price or none, and the
logits say nothing about the sizes between. Circuits of such a size are therefore judged by what
they cost on the prompts that circuits are found on:

- ``pruned``: from a larger circuit the edges are removed whose removal costs least, a tenth at a
  time, one at a time from small circuits.
- ``exchanged``: of all exchanges of one edge for another, those that the gradient in the masks
  promises most of are run, and the cheapest is made as long as it lowers the cost.

Under optimal ablation the constants follow: changes are run with those of the circuit they change,
and the best of them get constants of their own before they are compared.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.search import row_losses
from evaluations.suite.circuits.refit import Flat, thinned
from evaluations.suite.circuits.rows import RowPass
from sat_interp._util import progress

RUN = 48
"""Most changes of a circuit that are run."""
SAMPLE = 50
"""Prompts that they are run on, about."""
REFITTED = 400
"""Prompts, counted for each circuit, that constants are fitted on in one round."""
LITTLE = 1000
"""Up to so many prompts times edges, constants are fitted by the budget of all circuits."""
EVALUATIONS = 10
"""With more, evaluations of a fit."""
ROWS = 100
"""Rows of one pass, about."""
SHARE = 0.1
"""Share of a circuit's edges that are removed at a time."""
GAIN = 1e-6
"""Share of its cost by which an exchange must lower it."""

Circuit = Bool[Tensor, "edge"]


@dataclass(frozen=True)
class Judged:
    """A circuit, what it costs on the sample, and its constants, one set, if there are any."""

    kept: Circuit
    cost: float
    flat: Flat | None

    @property
    def n(self) -> int:
        """Number of edges."""
        return int(self.kept.sum())


def refined(case: Case, starts: Sequence[Circuit], size: int, rounds: int) -> Circuit:
    """Return a circuit of ``size`` edges, or the least number above that was found.

    Args:
        case: the prompts; its objective says what a circuit costs.
        starts: circuits of at least ``size`` edges, all of them on paths. Larger ones are pruned;
            the cheapest is improved by exchanges; of little work (``LITTLE``) every one.
        size: number of edges.
        rounds: most exchanges.
    """
    judge = Judge(case)
    found = [pruned(judge, start, size) for start in judge.starts(starts)]
    least = min(one.n for one in found)
    distinct = {tuple(one.kept.tolist()): one for one in found if one.n == least}
    best = sorted(distinct.values(), key=lambda one: one.cost)
    tried = best if judge.is_whole else best[:1]
    return min((exchanged(judge, one, rounds) for one in tried), key=lambda one: one.cost).kept


def pruned(judge: Judge, circuit: Judged, size: int) -> Judged:
    """Return a circuit of ``size`` edges after removals; more where each would leave fewer."""
    with progress.bar(total=circuit.n - size, desc="removals", unit="edge") as bar:
        while circuit.n > size:
            near = removals(judge.graph, circuit.kept, judge.slope(circuit), size)
            if not near:
                break
            before, step = circuit.n, min(int(SHARE * circuit.n), circuit.n - size)
            if step <= 1:
                circuit = judge.best(near, circuit.flat)
            else:
                less = _without(judge, circuit, near, step, size)
                circuit = judge.fitted([less], circuit.flat)[0]
            bar.update(before - circuit.n)
    return circuit


def smaller(judge: Judge, circuit: Judged) -> Judged:
    """Return a circuit without a tenth of its edges, at least one: those that cost least.

    Where every removal takes more edges off their paths, it has fewer; if no edge would be left,
    the circuit is returned as it is.
    """
    found = pruned(judge, circuit, max(1, circuit.n - max(1, int(SHARE * circuit.n))))
    if found.n < circuit.n:
        return found
    near = removals(judge.graph, circuit.kept, judge.slope(circuit), 1)
    return judge.best(near, circuit.flat) if near else circuit


def _without(
    judge: Judge, circuit: Judged, near: Sequence[Circuit], step: int, size: int
) -> Circuit:
    """Return a circuit without the edges of the cheapest removals, about ``step`` of them."""
    kept = circuit.kept
    for place in judge.costs(torch.stack(list(near)), circuit.flat).argsort().tolist():
        less = on_paths(judge.graph, kept & near[place])
        if int(less.sum()) >= size:
            kept = less
        if circuit.n - int(kept.sum()) >= step:
            break
    return kept


def exchanged(judge: Judge, circuit: Judged, rounds: int) -> Judged:
    """Return a circuit of as many edges that costs less on the sample, if there is one near.

    Where no exchange of one edge lowers the cost, two are exchanged at once.
    """
    with progress.bar(range(rounds), desc="exchanges", unit="exchange") as bar:
        for _ in bar:
            found = _cheaper(judge, circuit, 1) or _cheaper(judge, circuit, 2)
            if found is None:
                break
            circuit = found
    return circuit


def _cheaper(judge: Judge, circuit: Judged, width: int) -> Judged | None:
    near = exchanges(judge.graph, circuit.kept, judge.slope(circuit), width)
    if not near:
        return None
    found = judge.best(near, circuit.flat)
    return found if found.cost < circuit.cost * (1 - GAIN) else None


class Judge:
    """What circuits cost on a sample of the prompts that circuits are found on."""

    def __init__(self, case: Case) -> None:
        self.graph, self.refitter = case.graph, case.refitter
        self.rows = self.refitter.rows if self.refitter else RowPass(case.model, case.graph)
        self.is_whole = case.prompts.n * case.graph.n_edges <= LITTLE
        self.buckets = thinned(case.buckets, case.prompts.n if self.is_whole else SAMPLE)
        self.prompts = self.rows.prompts(self.buckets)
        self.like = case.model.W_E

    @property
    def n(self) -> int:
        """Number of prompts of the sample."""
        return sum(map(len, self.prompts))

    def starts(self, circuits: Sequence[Circuit]) -> list[Judged]:
        """Return circuits with what they cost and their constants."""
        flat = None
        if self.refitter:
            flat = torch.stack([self.refitter.start_of(kept) for kept in circuits])
        return self.fitted(circuits, flat)

    def best(self, circuits: Sequence[Circuit], flat: Flat | None) -> Judged:
        """Return the cheapest circuit: of those that cost least with these constants, fitted."""
        costs = self.costs(torch.stack(list(circuits)), flat)
        few = costs.argsort()[: max(4, REFITTED // self.n)].tolist()
        return min(self.fitted([circuits[place] for place in few], flat), key=lambda one: one.cost)

    def slope(self, circuit: Judged) -> Float[Tensor, "edge"]:
        """Return the gradient of a circuit's cost in its edges' masks, at its constants."""
        mask = circuit.kept.to(self.like)[None].requires_grad_()
        with torch.enable_grad():
            for number in range(len(self.prompts)):
                self._losses(number, mask, circuit.flat).sum().backward()
        if mask.grad is None:  # no edge is kept
            return torch.zeros(self.graph.n_edges, dtype=torch.float64)
        return mask.grad[0].double().cpu()

    def fitted(self, circuits: Sequence[Circuit], flat: Flat | None) -> list[Judged]:
        """Return circuits with what they cost; under optimal ablation their constants are fitted.

        Args:
            circuits: edges kept.
            flat: constants that fits begin from, one set for all circuits or one for each.
        """
        masks = torch.stack(list(circuits))
        if flat is not None and self.refitter:
            if self.is_whole:
                flat = torch.stack([fit.flat for fit in self.refitter.fits(circuits)])
            else:
                flat = self.refitter.briefly(masks, flat, self.prompts, EVALUATIONS)
        costs = self.costs(masks, flat).tolist()
        flats = [None] * len(masks) if flat is None else list(flat[:, None])
        return [Judged(*one) for one in zip(circuits, costs, flats, strict=True)]

    def costs(
        self, masks: Bool[Tensor, "circuit edge"], flat: Flat | None
    ) -> Float[Tensor, " circuit"]:
        """Return mean costs of circuits, with one set of constants for all or one for each."""
        total = torch.zeros(len(masks), dtype=torch.float64)
        with torch.no_grad():
            for number, prompts in enumerate(self.prompts):
                for some in torch.arange(len(masks)).split(max(1, ROWS // len(prompts))):
                    own = flat if flat is None or len(flat) == 1 else flat[some]
                    losses = self._losses(number, masks[some].to(self.like), own)
                    total[some] += losses.double().sum(1).cpu()
        return total / self.n

    def _losses(
        self, number: int, masks: Float[Tensor, "circuit edge"], flat: Flat | None
    ) -> Float[Tensor, "circuit prompt"]:
        prompts = self.prompts[number]
        constants = None
        if flat is not None and self.refitter:
            constants = self.refitter.space.written(flat)
        index = torch.arange(len(prompts), device=self.like.device).expand(len(masks), -1)
        logits = self.rows.logits(prompts, index, masks, constants)
        return row_losses(prompts, self.buckets[number], index, logits)


def removals(
    graph: Graph, kept: Circuit, slope: Float[Tensor, "edge"], size: int, most: int = RUN
) -> list[Circuit]:
    """Return a circuit without one of its edges and those that are then on no path.

    Args:
        graph: the graph.
        kept: a circuit, all of whose edges lie on paths.
        slope: gradient of its cost in the masks.
        size: fewest edges that may be left. Removals of one edge alone come first, and are the
            only ones where there are any.
        most: removals at most, those of the least rise that the gradient predicts.
    """
    edges, n = kept.nonzero().flatten(), int(kept.sum())
    found: dict[int, list[Circuit]] = {}
    for edge in edges[slope[edges].argsort(descending=True, stable=True)].tolist():
        if len(found.get(n - 1, ())) == most:
            break
        less = kept.clone()
        less[edge] = False
        less = on_paths(graph, less)
        found.setdefault(int(less.sum()), []).append(less)
    fitting = [n for n in found if n >= size]
    return found[max(fitting)][:most] if fitting else []


def exchanges(
    graph: Graph, kept: Circuit, slope: Float[Tensor, "edge"], width: int = 1, most: int = RUN
) -> list[Circuit]:
    """Return exchanges of edges for as many others that keep all edges on paths.

    Args:
        graph: the graph.
        kept: a circuit, all of whose edges lie on paths.
        slope: gradient of its cost in the masks. Exchanges are in order of the rise it predicts.
        width: number of edges that are exchanged at once. Single edges are added only where they
            then lie on a path themselves.
        most: exchanges at most, each of so many sets to add and so many to remove.
    """
    size = int(kept.sum())
    outside = joinable(graph, kept) if width == 1 else ~kept
    into = _least(outside, slope, width, most)
    out = _least(kept, -slope, width, most)
    every = sorted(itertools.product(into, out), key=lambda pair: pair[0][0] + pair[1][0])
    found: list[Circuit] = []
    for (_, added), (_, removed) in every:
        if len(found) == most:
            break
        changed = kept.clone()
        changed[list(added)], changed[list(removed)] = True, False
        if int(on_paths(graph, changed).sum()) == size:
            found.append(changed)
    return found


def _least(
    among: Circuit, rise: Float[Tensor, "edge"], width: int, most: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Return the sets of edges with the least sum of rises, and that sum."""
    edges = among.nonzero().flatten()
    edges = edges[rise[edges].argsort(stable=True)[:most]]
    rises = dict(zip(edges.tolist(), rise[edges].tolist(), strict=True))
    sets = itertools.combinations(rises, width)
    return heapq.nsmallest(most, ((sum(map(rises.__getitem__, one)), one) for one in sets))


def joinable(graph: Graph, kept: Circuit) -> Circuit:
    """Return the edges outside of a circuit that, added alone, lie on a path in it."""
    computed = torch.zeros(graph.n_sources, dtype=torch.bool)
    computed[graph.edge_source[kept]] = True
    computed[0] = True  # the embedding
    fed = map(graph.feeds, range(graph.n_destinations))
    read = torch.tensor([not nodes or bool(computed[list(nodes)].any()) for nodes in fed])
    return ~kept & computed[graph.edge_source] & read[graph.edge_destination]
