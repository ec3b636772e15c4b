"""Random circuits against enumeration, paths against networkx, resampling by hand."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import networkx as nx
import numpy as np
import pytest
import torch

from evaluations.suite.circuits import controls
from evaluations.suite.circuits.controls import (
    Spread,
    bootstrap_spread,
    jaccard,
    order_spread,
    random_circuits,
    spread,
)
from evaluations.suite.circuits.export import to_networkx
from evaluations.suite.circuits.graph import Graph, circuit_to_dict, on_paths
from evaluations.suite.circuits.methods.find import FoundCircuit, by_acdc
from evaluations.suite.circuits.metrics import spread_metrics, standard_deviation
from tests.evaluations.suite.circuits.cases import tiny_case


def _mask(graph: Graph, edges) -> torch.Tensor:
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[list(edges)] = True
    return kept


def _per_layer(graph: Graph, kept: torch.Tensor) -> Counter[int]:
    return Counter(graph.destinations[d].layer for d in graph.edge_destination[kept].tolist())


@pytest.mark.parametrize("seed", range(6))
def test_edges_on_paths_are_those_networkx_finds(seed):
    graph = Graph(3, 2, parallel=seed % 2 == 1, groups=1 if seed > 3 else None)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(graph.n_edges, generator=generator) < 0.12
    known = to_networkx(circuit_to_dict(graph, kept))
    known.add_nodes_from(["embed", "resid_final"])
    reached = nx.descendants(known, "embed") | {"embed"}
    leading = nx.ancestors(known, "resid_final") | {"resid_final"}
    expected = set()
    for edge in kept.nonzero().flatten().tolist():
        source, _ = graph.edge_name(edge)
        fed = graph.feeds(int(graph.edge_destination[edge]))
        nodes = {graph.sources[index].name for index in fed} or {"resid_final"}
        if source in reached and nodes & leading:
            expected.add(edge)
    assert set(on_paths(graph, kept).nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(
    "graph",
    [Graph(3, 4), Graph(2, 3, parallel=True), Graph(3, 3, mlps=False), Graph(3, 4, groups=2)],
    ids=str,
)
def test_random_circuits_are_connected_and_have_as_many_edges_in_every_layer(graph):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(graph.n_edges, generator=generator) < 0.2
    kept[graph.edge_destination == graph.n_destinations - 1] = True
    live = on_paths(graph, kept)
    assert live.sum() > 10
    found = random_circuits(graph, kept, 12, seed=0)
    assert len(found) == 12
    for circuit in found:
        assert torch.equal(on_paths(graph, circuit), circuit)
        assert _per_layer(graph, circuit) == _per_layer(graph, live)
    assert len({tuple(circuit.tolist()) for circuit in found}) > 10
    again = random_circuits(graph, kept, 12, seed=0)
    assert all(map(torch.equal, found, again))
    assert not all(map(torch.equal, found, random_circuits(graph, kept, 12, seed=1)))


def test_random_circuits_are_uniform_over_all_there_are(monkeypatch):
    monkeypatch.setattr(controls, "LEAST", 400)  # enough for four edges
    graph = Graph(2, 1)
    chain = ["embed", "a0.h0.v", "a0.h0", "m0", "m0", "a1.h0.q", "a1.h0", "resid_final"]
    named = zip(chain[::2], chain[1::2], strict=True)
    kept = _mask(graph, [graph.edge_named(*edge) for edge in named])
    layers = [
        [
            e
            for e in range(graph.n_edges)
            if graph.destinations[int(graph.edge_destination[e])].layer == layer
        ]
        for layer in range(3)
    ]
    choices = product(combinations(layers[0], 2), layers[1], layers[2])
    every = {
        frozenset((*low, middle, top))
        for low, middle, top in choices
        if on_paths(graph, _mask(graph, (*low, middle, top))).sum() == 4
    }
    n = 15 * len(every)
    found = Counter(
        frozenset(circuit.nonzero().flatten().tolist())
        for circuit in random_circuits(graph, kept, n, seed=0)
    )
    assert set(found) == every
    chi_square = sum((found[circuit] - 15) ** 2 / 15 for circuit in every)
    free = len(every) - 1
    assert chi_square < free + 4 * (2 * free) ** 0.5


def test_a_circuit_that_connects_nothing_has_no_random_ones():
    graph = Graph(2, 2)
    kept = _mask(graph, [graph.edge_named("embed", "a0.h0.q")])
    assert random_circuits(graph, kept, 20, seed=0) == []


def test_overlap_by_hand():
    a, b = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1.0
    nothing = torch.zeros(3, dtype=torch.bool)
    assert jaccard(nothing, nothing) is None
    found = spread(a, [FoundCircuit(b, torch.zeros(3)), FoundCircuit(nothing, torch.zeros(3))])
    assert (found.edges, found.failed) == ([2, 0], {})
    assert found.jaccard == pytest.approx([1 / 3, 0.0])
    failed = spread(nothing, [FoundCircuit(nothing, torch.zeros(3))] * 2)
    assert failed == Spread([0, 0], [], {"both circuits are empty": 2})


def test_a_standard_deviation_takes_five_draws_and_has_the_chi_square_interval():
    counts = [33.0, 30.0, 28.0, 37.0, 31.0]
    value, interval = standard_deviation(counts)
    assert value == pytest.approx(np.std(counts, ddof=1))
    # chi-square with 4 degrees: 0.4844 and 11.1433 are its 2.5 and 97.5 % points
    assert interval.low == pytest.approx(value * np.sqrt(4 / 11.1433), rel=1e-4)
    assert interval.high == pytest.approx(np.sqrt((value**2 + 1 / 12) * 4 / 0.4844), rel=1e-3)
    assert standard_deviation(counts[:4]) == (None, None)
    assert standard_deviation([3.0] * 5)[1].high == pytest.approx(
        np.sqrt(4 / 12 / 0.4844), rel=1e-3
    )


def test_the_interval_of_a_standard_deviation_holds_it_nineteen_times_in_twenty():
    draws = np.random.default_rng(0).normal(40, 3, size=(2000, 6))
    found = [standard_deviation(row)[1] for row in draws.tolist()]
    assert np.mean([one.low <= 3 <= one.high for one in found]) == pytest.approx(0.95, abs=0.015)


def test_too_few_draws_have_no_standard_deviation_and_say_how_many_it_takes():
    few = {
        metric.name: metric
        for metric in spread_metrics("bootstrap", Spread([30, 33], [0.5, 0.6]), 31, "why")
    }
    assert few["bootstrap_sd"].value is None
    assert few["bootstrap_sd"].reasons == {"takes at least 5: --bootstrap 5": 1}
    assert few["bootstrap_edges"].value == 31.5
    none = spread_metrics("orders", Spread(), 31, "no order")
    assert {tuple(metric.reasons) for metric in none} == {("no order",)}


def test_bootstrap_finds_the_circuit_on_other_prompts_and_orders_in_other_orders():
    case = tiny_case()
    circuit = by_acdc(case, 0.002).kept
    contents = []

    def find(other):
        contents.append(other.prompts.content)
        return by_acdc(other, 0.002)

    found = bootstrap_spread(case, circuit, find, 3, seed=5)
    assert contents == [case.prompts.bootstrap(5 + i).content for i in range(3)]
    assert len(found.edges) == 3
    orders = order_spread(
        circuit, lambda order: by_acdc(case, 0.002, order=order), case.graph, 3, seed=5
    )
    first = by_acdc(case, 0.002, order=case.graph.order(5))
    assert orders.edges[0] == first.n
    assert orders.jaccard[0] == jaccard(circuit, first.kept)
