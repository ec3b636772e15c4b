"""The circuits that frontiers are made of: those each method finds, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from evaluations.core.record import hash_of
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import (
    MASKED,
    STEPS,
    Ablation,
    CircuitConfig,
    MaskOptions,
    Method,
    ScoreBy,
)
from evaluations.suite.circuits.controls import random_circuits
from evaluations.suite.circuits.frontier.bench import Bench
from evaluations.suite.circuits.frontier.config import REFERENCE, FrontierConfig
from evaluations.suite.circuits.frontier.curves import FLOOR, chosen
from evaluations.suite.circuits.frontier.store import Store, circuit_name
from evaluations.suite.circuits.graph import on_paths
from evaluations.suite.circuits.methods.eap import attribution, first, ranking
from evaluations.suite.circuits.methods.find import (
    by_acdc,
    by_logit,
    likely_logit,
    of_size,
    searched,
    suggest,
)
from evaluations.suite.circuits.methods.refine import Judge, smaller
from evaluations.suite.circuits.methods.search import CONSTANTS_RATE, Searched
from sat_interp._util import progress

BISECTIONS = 3
"""Further thresholds of acdc between the last that leaves edges and the first that leaves none."""
NEAREST = 2
"""Searches whose rankings a circuit of a given size is made from: those nearest in size."""
Edges = list[int]
Kept = Bool[Tensor, "edge"]


@dataclass(frozen=True)
class Candidate:
    """A circuit, all of whose edges lie on paths from embedding to output.

    Attributes:
        setting: what it was found with, in words.
    """

    kept: Kept
    setting: str

    @property
    def n(self) -> int:
        """Number of edges."""
        return int(self.kept.sum())

    @property
    def key(self) -> bytes:
        """The edges, as a dictionary takes them."""
        return self.kept.numpy().tobytes()


def find_circuits(
    method: str, bench: Bench, config: FrontierConfig, ceiling: float
) -> list[Candidate]:
    """Return a method's circuits of many sizes, each once, the empty circuit first.

    ``acdc`` runs at several thresholds, which are shares of the ceiling. While the circuit of the
    largest costs at most a fifth of the ceiling where it was found, larger ones follow, each twice
    the last: E(.2) would be an upper bound. Three more lie between the last that leaves
    edges and the first that leaves none, since a search that removes a few edges too many then
    removes all. Where the smallest circuit of the frontier still costs so little, edges are removed
    from it, those first that cost least (``methods.refine``), until it costs more. The rankings of
    ``eap`` and ``eap-ig``, by signed and by absolute score, are cut at several sizes; edges on no
    path are then removed. ``ugs`` and ``hcgs`` search once for each price of an edge; the circuit
    of each search is the edges that are more likely on than off, and the ranking by logits is also
    cut at the sizes within a factor of two. ``edge-pruning`` searches once for each size. From
    these, a circuit of each size is made that further removals and exchanges make cheaper.

    Args:
        bench: the prompts, and what is known of them.
        ceiling: I of the task, in nats.
    """
    case, store = bench.case, bench.store
    found = [Candidate(torch.zeros(case.graph.n_edges, dtype=torch.bool), "no edges")]
    if method == "acdc":
        found += _by_thresholds(bench, config, ceiling, found)
    elif method in MASKED:
        found += _by_masks(method, case, config, store)
    else:
        found += _by_rankings(method, case, config, store)
    return _distinct(found)


def _by_thresholds(
    bench: Bench, config: FrontierConfig, ceiling: float, known: Sequence[Candidate]
) -> list[Candidate]:
    case, store, shares = bench.case, bench.store, config.shares_of_ceiling()
    bar = progress.bar(shares, desc="acdc", unit="tau")
    found = {share: _by_threshold(case, share * ceiling, store) for share in bar}
    # of predictions that do not depend on the prompt no circuit costs anything
    share, most = shares[-1], REFERENCE * ceiling if ceiling > FLOOR else -math.inf
    while found[share].n and _costs(bench, [*known, *found.values()])[found[share].key] <= most:
        share *= 2
        found[share] = _by_threshold(case, share * ceiling, store)
    smallest = max((share for share, one in found.items() if one.n), default=0.0)
    empty = min((share for share in found if share > smallest), default=math.inf)
    for _ in range(BISECTIONS if 0 < smallest < empty < math.inf else 0):
        middle = math.sqrt(smallest * empty)
        found[middle] = _by_threshold(case, middle * ceiling, store)
        smallest, empty = (middle, empty) if found[middle].n else (smallest, middle)
    return [*found.values(), *_by_removals(bench, [*known, *found.values()], most)]


def _by_removals(bench: Bench, found: Sequence[Candidate], most: float) -> list[Candidate]:
    """Return circuits made from the smallest of the frontier by removing edges.

    Args:
        found: all circuits so far.
        most: a cost in nats. The first circuit that costs more is the last one returned; if the
            smallest of the frontier already does, there is none.
    """
    circuits, costs = _distinct(found), list(_costs(bench, found).values())
    frontier = [circuits[place] for place in chosen([one.n for one in circuits], costs)]
    smallest = next((one for one in frontier if one.n), None)
    made: list[Candidate] = []
    while smallest and _costs(bench, [*found, *made])[smallest.key] <= most:
        name = f"smaller-{circuit_name(smallest.kept)}"
        less = _kept(bench.case, bench.store, name, "edges removed", _smaller(bench.case, smallest))
        if less.n == smallest.n:
            break
        made.append(smallest := less)
    return made


def _costs(bench: Bench, found: Sequence[Candidate]) -> dict[bytes, float]:
    """Return the cost of each circuit where it was found, by number of edges."""
    circuits = _distinct(found)
    measured = bench.measure([one.kept for one in circuits])
    fits = [math.inf if one.fit is None else one.fit for one in measured]
    return dict(zip((one.key for one in circuits), fits, strict=True))


def _smaller(case: Case, circuit: Candidate) -> Callable[[], Edges]:
    def make() -> Edges:
        judge = Judge(case)
        return _edges(smaller(judge, judge.starts([circuit.kept])[0]).kept)

    return make


def _by_threshold(case: Case, tau: float, store: Store) -> Candidate:
    tau = float(f"{tau:.4g}")
    return _kept(case, store, f"acdc-{tau}", f"tau {tau:.2g}", _acdc(case, tau))


def _acdc(case: Case, tau: float) -> Callable[[], Edges]:
    return lambda: _edges(by_acdc(case, tau).kept)


def _by_rankings(
    method: str, case: Case, config: FrontierConfig, store: Store
) -> Iterable[Candidate]:
    score_by: ScoreBy = "logit-difference" if method == "eap" else "kl"
    steps = 1 if method == "eap" else STEPS

    def scores() -> list[float]:
        found: list[float] = attribution(case, score_by, steps).tolist()
        return found

    known = torch.tensor(store.kept(f"scores-{method}", scores), dtype=torch.float64)
    for is_signed in (False, True):
        order = ranking(case.graph, known, signed=is_signed)
        for size in config.cuts(case.graph.n_edges):
            kept = on_paths(case.graph, first(order, size))
            yield Candidate(kept, f"{'signed' if is_signed else 'absolute'}, first {size}")


def _by_masks(method: str, case: Case, config: FrontierConfig, store: Store) -> Iterable[Candidate]:
    n_edges = case.graph.n_edges
    cuts = [size for size in config.cuts(n_edges) if size < n_edges]
    is_sized = method == "edge-pruning"
    prices = [1 - size / n_edges for size in cuts] if is_sized else config.penalties
    bar = progress.bar(list(prices), desc=method, unit="search")
    searches = {price: _search(method, price, case, config, store) for price in bar}
    likely = {price: found.theta > likely_logit(case) for price, found in searches.items()}
    for place, (price, found) in enumerate(searches.items()):
        sizes = [cuts[place]] if is_sized else _near(cuts, int(likely[price].sum()))
        masks = [first(by_logit(found.theta), size) for size in sizes]
        for mask in masks if is_sized else [likely[price], *masks]:
            kept = on_paths(case.graph, mask)
            suggest(case, kept, found)
            yield Candidate(kept, f"price {price:.2g}, {int(mask.sum())} edges chosen")
    if config.exchanges:
        yield from _refined(method, case, config, store, searches)


def _near(cuts: Sequence[int], n: int) -> list[int]:
    """Return the sizes within a factor of two of a number of edges."""
    return [size for size in cuts if n / 2 <= size <= 2 * n]


def _refined(
    method: str,
    case: Case,
    config: FrontierConfig,
    store: Store,
    searches: Mapping[float, Searched],
) -> Iterable[Candidate]:
    """Yield a circuit of each size up to twice the largest that a search found.

    The largest comes first: each is also made from the one before.
    """
    numbers = {
        price: int((one.theta > likely_logit(case)).sum()) for price, one in searches.items()
    }
    cuts = [size for size in config.cuts(case.graph.n_edges) if size < case.graph.n_edges]
    sizes = [size for size in cuts if size <= 2 * max(numbers.values(), default=0)]
    larger: list[Kept] = []
    for size in progress.bar(sizes[::-1], desc=f"{method}, sizes", unit="size"):
        nearest = sorted(searches, key=lambda price: abs(math.log(max(1, numbers[price]) / size)))
        own = [searches[price] for price in nearest[:NEAREST]]
        name = f"refined-{method}-{size}-{hash_of([*_settings(config), sorted(searches), cuts])}"
        make = _sized(case, own, size, config.exchanges, larger)
        found = _kept(case, store, name, f"{size} edges, edges exchanged", make)
        larger = [found.kept]
        yield found


def _sized(
    case: Case, searches: Sequence[Searched], size: int, exchanges: int, larger: Sequence[Kept]
) -> Callable[[], Edges]:
    return lambda: _edges(of_size(case, searches, size, exchanges, larger))


def _settings(config: FrontierConfig) -> list[Any]:
    """Return the options that searches by masks depend on, and the seed."""
    return [{field.name: getattr(config, field.name) for field in fields(MaskOptions)}, config.seed]


def _search(
    method: str, price: float, case: Case, config: FrontierConfig, store: Store
) -> Searched:
    """Return a search's logits, and the constants that were fitted alongside, if any."""
    options, seed = _settings(config)
    settings = CircuitConfig(
        method=cast(Method, method), ablation=cast(Ablation, case.ablation), seed=seed, **options
    )

    def make() -> list[list[float] | None]:
        found = searched(case, settings, price)
        constants = None if found.constants is None else found.constants.tolist()
        return [found.theta.tolist(), constants]

    options = {name: value for name, value in options.items() if name != "exchanges"}
    rate = [CONSTANTS_RATE] if case.refitter else []
    name = f"masks-{method}-{price:.6g}-{hash_of([options, seed, *rate])}"
    theta, constants = store.kept(name, make)
    flat = None if constants is None else torch.tensor(constants).to(case.model.W_E)
    return Searched(torch.tensor(theta, dtype=torch.float64), flat, [], config.search_steps)


def _kept(
    case: Case, store: Store, name: str, setting: str, make: Callable[[], Edges]
) -> Candidate:
    """Return a circuit from the cache, or find it."""
    return Candidate(_mask(case.graph.n_edges, store.kept(name, make)), setting)


def _mask(n_edges: int, edges: Sequence[int]) -> Kept:
    kept = torch.zeros(n_edges, dtype=torch.bool)
    kept[list(edges)] = True
    return kept


def _edges(kept: Kept) -> Edges:
    edges: Edges = kept.nonzero().flatten().tolist()
    return edges


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the circuits by number of edges, each once."""
    by_edges: dict[bytes, Candidate] = {}
    for one in candidates:
        by_edges.setdefault(one.key, one)
    return sorted(by_edges.values(), key=lambda one: one.n)


def draw_random(
    case: Case, found: Sequence[Candidate], config: FrontierConfig
) -> list[list[Candidate]]:
    """Return random circuits by number of edges, in ascending order.

    They are matched by layer with the methods' circuits that are nearest in size to each cut.
    """
    templates: dict[int, Candidate] = {}
    known = [one for one in found if one.n]
    for size in config.cuts(case.graph.n_edges):
        if known:
            nearest = min(known, key=lambda one: (abs(np.log(one.n / size)), one.n))
            templates.setdefault(nearest.n, nearest)
    return [
        [
            Candidate(kept, f"random, {n} edges")
            for kept in random_circuits(
                case.graph, templates[n].kept, config.random_circuits, config.seed
            )
        ]
        for n in sorted(templates)
    ]
