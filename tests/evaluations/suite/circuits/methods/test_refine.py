"""Circuits of a given size: every change of a circuit, and tiny graphs whose best is known."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods import find, refine
from evaluations.suite.circuits.methods.find import by_logit, by_masks, of_size, searched
from evaluations.suite.circuits.methods.refine import (
    Judge,
    exchanged,
    exchanges,
    joinable,
    pruned,
    refined,
    removals,
    smaller,
)
from evaluations.suite.circuits.methods.search import Searched
from evaluations.suite.circuits.methods.selection import live_circuit
from evaluations.suite.circuits.refit import Budget
from tests.evaluations.suite.circuits.cases import doable, task
from tests.evaluations.suite.circuits.tiny import tiny_model

SMALL = Budget(starts=2, first=10, evaluations=20)
PRICES = (0.01, 0.03, 0.1)


@pytest.fixture(autouse=True)
def _states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "default_cache", lambda: tmp_path)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model(n_layers=1, n_heads=2)


def _case(model: HookedTransformer, ablation: Any, n: int = 3, **settings: Any) -> Case:
    return Case.of(model, doable(model, task((5, 7), n=n)), ablation, **settings)


def _random_circuits(graph: Graph, n: int = 30) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        share = torch.rand(1, generator=generator)
        kept = on_paths(graph, torch.rand(graph.n_edges, generator=generator) < share)
        if kept.any():
            yield kept


def _keys(circuits: list[Tensor]) -> set[bytes]:
    return {kept.numpy().tobytes() for kept in circuits}


def test_edges_that_can_join_are_those_that_then_lie_on_a_path(model: HookedTransformer) -> None:
    graph = Graph.of(tiny_model(n_layers=2, n_heads=2))
    for kept in _random_circuits(graph):
        wanted = torch.zeros_like(kept)
        for edge in (~kept).nonzero().flatten().tolist():
            more = kept.clone()
            more[edge] = True
            wanted[edge] = bool(on_paths(graph, more)[edge])
        assert torch.equal(joinable(graph, kept), wanted)


def test_exchanges_are_all_of_one_edge_or_of_two(model: HookedTransformer) -> None:
    """Every circuit of as many edges that differs in so many, where all are wanted."""
    graph = Graph.of(tiny_model(n_layers=1, n_heads=1))
    number = torch.arange(2**graph.n_edges)[:, None]
    every = (number >> torch.arange(graph.n_edges) & 1).bool()
    circuits = torch.stack([kept for kept in every if torch.equal(on_paths(graph, kept), kept)])
    slope = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(0))
    for kept in _random_circuits(graph, 10):
        for width in (1, 2):
            apart = (circuits & ~kept).sum(1)
            near = circuits[(circuits.sum(1) == kept.sum()) & (apart == width)]
            found = exchanges(graph, kept, slope, width, most=10_000)
            assert len(found) == len(_keys(found))
            assert _keys(found) == _keys(list(near))


def test_exchanges_and_removals_come_in_the_order_that_the_gradient_predicts(
    model: HookedTransformer,
) -> None:
    graph = Graph.of(model)
    slope = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(1))
    for kept in _random_circuits(graph, 10):
        rises = [
            float(slope[one & ~kept].sum() - slope[kept & ~one].sum())
            for one in exchanges(graph, kept, slope, most=9)
        ]
        assert len(rises) <= 9
        assert rises == sorted(rises)
        size = int(kept.sum())
        less = removals(graph, kept, slope, size - 1)
        assert all(int(one.sum()) == size - 1 and bool((one <= kept).all()) for one in less)
        lost = [-float(slope[kept & ~one].sum()) for one in less]
        assert lost == sorted(lost)


def test_no_removal_leaves_fewer_edges_than_wanted(model: HookedTransformer) -> None:
    """A path of two edges: without one of them, none is left."""
    graph = Graph.of(model)
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[[graph.edge_named("embed", "m0"), graph.edge_named("m0", "resid_final")]] = True
    assert removals(graph, kept, torch.zeros(graph.n_edges), 1) == []
    (empty,) = removals(graph, kept, torch.zeros(graph.n_edges), 0, most=1)
    assert not empty.any()
    judge = Judge(_case(model, "zero"))
    assert pruned(judge, judge.starts([kept])[0], 1).n == 2


def test_the_smaller_circuit_is_the_cheapest_of_all_that_lack_one_edge(
    model: HookedTransformer,
) -> None:
    """Of those with the most edges left; a single path is returned as it is."""
    judge = Judge(_case(model, "resample"))
    graph, tried = judge.graph, 0
    for kept in _random_circuits(graph):
        circuit = judge.starts([kept])[0]
        near = []
        for edge in kept.nonzero().flatten().tolist():
            less = kept.clone()
            less[edge] = False
            near.append(on_paths(graph, less))
        most = max(int(less.sum()) for less in near)
        found = smaller(judge, circuit)
        if most == 0:
            assert torch.equal(found.kept, kept)
        elif circuit.n < 20:  # a tenth is one edge
            costs = judge.costs(
                torch.stack([less for less in near if int(less.sum()) == most]), None
            )
            assert found.n == most
            assert found.cost == pytest.approx(float(costs.min()))
            tried += 1
        else:
            assert circuit.n - 2 >= found.n >= circuit.n - 3
    assert tried > 5


def test_a_smaller_circuit_lacks_two_edges_where_one_leaves_the_other_without_a_path(
    model: HookedTransformer,
) -> None:
    """The path of the embedding alone stays, or that through the MLP: the cheaper one."""
    judge = Judge(_case(model, "resample"))
    graph = judge.graph
    names = ("embed", "m0"), ("m0", "resid_final"), ("embed", "resid_final")
    edges = [graph.edge_named(*one) for one in names]
    both = torch.zeros(graph.n_edges, dtype=torch.bool)
    both[edges[:2]] = True
    assert smaller(judge, judge.starts([both])[0]).n == 2  # a single path: no edge would be left
    both[edges] = True
    assert smaller(judge, judge.starts([both])[0]).n == 2  # without the direct edge


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("ablation", ["resample", "oa"])
def test_a_circuit_of_a_size_costs_no_more_than_what_it_began_with(
    model: HookedTransformer, ablation: str, is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants are fitted in full on few prompts and edges, else briefly on a sample."""
    if not is_whole:
        monkeypatch.setattr(refine, "LITTLE", 0)
        monkeypatch.setattr(refine, "SAMPLE", 4)
    case = _case(model, ablation, budget=Budget(starts=1, first=2, evaluations=5))
    graph = case.graph
    start = live_circuit(graph, torch.arange(graph.n_edges).flip(0), 6)
    judge = Judge(case)
    assert judge.is_whole == is_whole
    assert judge.n == (6 if is_whole else 4)
    (before,) = judge.starts([start])
    copy = None if before.flat is None else before.flat.clone()
    after = exchanged(judge, before, 2)
    assert after.n == before.n == 6
    assert after.cost < before.cost
    assert torch.equal(on_paths(graph, after.kept), after.kept)
    if copy is not None and before.flat is not None:
        assert torch.equal(before.flat, copy)  # fits change no start
    whole = torch.ones(graph.n_edges, dtype=torch.bool)
    assert int(refined(case, [whole], 6, 1).sum()) == 6


@pytest.mark.parametrize("objective", ["kl", "logit-difference"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_costs_and_slopes_are_those_of_the_objective(
    model: HookedTransformer, ablation: str, objective: str
) -> None:
    case = _case(model, ablation, objective=objective)
    judge = Judge(case)
    kept = live_circuit(case.graph, torch.arange(case.graph.n_edges).flip(0), 8)
    outcome, whole = case.outcome(kept), case.full.difference
    away = (outcome.difference - whole).abs() if objective != "kl" else outcome.kl
    (one,) = judge.starts([kept])
    assert one.cost == pytest.approx(float(away.mean()), abs=1e-9)
    mask = kept.double()[None].requires_grad_()
    losses = [judge._losses(number, mask, None).sum() for number in range(len(judge.prompts))]
    (slope,) = torch.autograd.grad(torch.stack(losses).sum(), mask)
    torch.testing.assert_close(judge.slope(one), slope[0])


def test_the_number_of_edges_that_is_asked_for(model: HookedTransformer) -> None:
    few = {"search_steps": 20, "search_prompts": 4, "search_masks": 4}
    case = _case(model, "zero")
    config = CircuitConfig(method="ugs", ablation="zero", edges=6, **few)
    found = by_masks(case, config)
    assert found.n == int(found.all_chosen.sum()) == 6
    plain = by_masks(case, CircuitConfig(method="ugs", edges=6, exchanges=0, **few))
    assert torch.equal(plain.all_chosen, find.first(by_logit(plain.scores), 6))
    for edges in (0, case.graph.n_edges):
        config = CircuitConfig(method="ugs", ablation="zero", edges=edges, **few)
        assert int(by_masks(case, config).all_chosen.sum()) == edges


# Graphs all of whose circuits are measured -------------------------------------------------------


def _regrets(
    costs: dict[bytes, float], found: dict[int, list[Tensor]], least: int = 10
) -> dict[int, float]:
    """(cost - best) / (median - best) of the best circuit of each size with ten or more of them."""
    regrets = {}
    for size, circuits in found.items():
        own = [cost for kept, cost in costs.items() if sum(kept) == size]
        if len(own) >= least:
            cost = min(costs[kept.numpy().tobytes()] for kept in circuits)
            regrets[size] = (cost - min(own)) / (statistics.median(own) - min(own))
    return regrets


def _every_cost(case: Case) -> dict[bytes, float]:
    graph = case.graph
    every = torch.arange(2**graph.n_edges)[:, None] >> torch.arange(graph.n_edges) & 1
    circuits = [row for row in every.bool() if torch.equal(on_paths(graph, row), row)]
    if case.refitter:
        costs = [fit.delta for fit in case.refitter.fits(circuits)]
    else:
        costs = Judge(case).costs(torch.stack(circuits), None).tolist()
    return {kept.numpy().tobytes(): cost for kept, cost in zip(circuits, costs, strict=True)}


def _searches(case: Case, seed: int = 0) -> list[Searched]:
    config = CircuitConfig(
        method="ugs", seed=seed, search_steps=80, search_prompts=4, search_masks=4
    )
    return [searched(case, config, price) for price in PRICES]


@pytest.mark.parametrize(
    ("ablation", "seed", "is_hard"),
    [("zero", 4, False), ("zero", 11, True), ("oa", 3, False)],
)
def test_ugs_comes_close_to_the_best_circuit_of_every_size(
    ablation: Any, seed: int, is_hard: bool
) -> None:
    """On some of these graphs rankings by logit alone are no better than chance."""
    model = tiny_model(n_layers=1, n_heads=1, d_model=8, d_mlp=16, seed=seed)
    case = Case.of(model, doable(model, task((5,), n=10, seed=seed)), ablation, budget=SMALL)
    costs, searches = _every_cost(case), _searches(case)
    found: dict[int, list[Tensor]] = {}
    plain: dict[int, list[Tensor]] = {}
    larger: list[Tensor] = []
    for size in range(case.graph.n_edges - 1, 0, -1):
        larger = [of_size(case, searches, size, 6, larger)]
        found[int(larger[0].sum())] = larger
        orders = [by_logit(one.theta) for one in searches]
        plain[size] = [live_circuit(case.graph, order, size) for order in orders]
    regrets = _regrets(costs, found)
    assert len(regrets) >= 3
    assert max(regrets.values()) <= 0.25
    assert (max(_regrets(costs, plain).values()) > 0.25) == is_hard
