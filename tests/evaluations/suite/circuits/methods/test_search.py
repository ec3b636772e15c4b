"""Searches by gradients of random masks: their steps, ends, resumption and edge cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.forward import forward
from evaluations.suite.circuits.graph import on_paths
from evaluations.suite.circuits.methods import find
from evaluations.suite.circuits.methods.find import by_masks, searched
from evaluations.suite.circuits.methods.masks import (
    HardConcrete,
    Price,
    Ugs,
    probability_above_zero,
)
from evaluations.suite.circuits.methods.search import (
    Schedule,
    _Loop,
    edge_families,
    learning_rate,
    search,
)
from evaluations.suite.circuits.refit import Budget
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.cases import doable, task
from tests.evaluations.suite.circuits.tiny import tiny_model

SMALL = Budget(starts=2, first=5, evaluations=10)
SHORT = Schedule(steps=12, prompts=4, masks=3)
METHODS = ("ugs", "hcgs", "edge-pruning")


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model(n_layers=1, n_heads=2)


@pytest.fixture(autouse=True)
def _states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "default_cache", lambda: tmp_path)


def _case(model: HookedTransformer, ablation: Any = "resample", **settings: Any) -> Case:
    prompts = doable(model, task((5, 7), n=6))
    return Case.of(model, prompts, ablation, budget=SMALL, **settings)


def _ugs(case: Case, price: float = 1e-2, **settings: bool) -> Ugs:
    return Ugs(Price.of_graph(case.graph, price, torch.float64), 0.1, **settings)


def _config(method: str, **settings: Any) -> CircuitConfig:
    few = {"search_steps": 30, "search_prompts": 4, "search_masks": 4, "exchanges": 1}
    return CircuitConfig(method=method, **{**few, **settings})


@pytest.mark.parametrize("ablation", ["resample", "zero", "oa"])
def test_a_step_is_the_gradient_of_the_mean_loss_and_the_price(
    model: HookedTransformer, ablation: str
) -> None:
    """The reference pass, one row at a time, with the same masks."""
    case = _case(model, ablation)
    loop = _Loop(case, _ugs(case), SHORT)
    generator = torch.Generator().manual_seed(0)
    number, index = loop._draw(generator)
    u = torch.rand(len(index), case.graph.n_edges, generator=generator, dtype=torch.float64)
    masks = loop.distribution.sample(u)
    own = torch.stack([mask * on_paths(case.graph, mask > 0) for mask in masks])
    found = loop._loss(number, index, own)
    bucket = case.buckets[number]
    if loop.constants is not None and case.refitter is not None:
        bucket = bucket.with_constants(case.refitter.space.written(loop.constants.detach())[0])
    for row, mask, value in zip(index, own, found, strict=True):
        one = bucket[int(row) : int(row) + 1]
        logits = forward(model, case.graph, one.clean[0], mask, one.replacement)
        p = one.logits.log_softmax(-1)
        wanted = (p.exp() * (p - logits.log_softmax(-1))).sum()
        assert value.item() == pytest.approx(wanted.item(), abs=1e-9)


def test_an_interrupted_search_is_resumed_to_the_same_end(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluations.suite.circuits.methods.search.SAVED_EVERY", 5)
    case, state = _case(model, "oa"), tmp_path / "search.state"
    whole = search(case, _ugs(case, dynamic=True), SHORT)
    step = _Loop.step

    def interrupted(self: _Loop, number: int) -> None:
        if number == 8:
            raise KeyboardInterrupt
        step(self, number)

    monkeypatch.setattr(_Loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(case, _ugs(case, dynamic=True), SHORT, state)
    done: list[int] = []
    monkeypatch.setattr(_Loop, "step", lambda self, n: (done.append(n), step(self, n)))
    resumed = search(case, _ugs(case, dynamic=True), SHORT, state)
    assert done == list(range(5, 12))
    assert torch.equal(resumed.theta, whole.theta)
    assert resumed.constants is not None
    assert whole.constants is not None
    assert torch.equal(resumed.constants, whole.constants)
    assert resumed.losses == whole.losses
    assert not state.exists()


def test_the_state_of_another_search_or_a_broken_one_is_not_taken_up(
    model: HookedTransformer, tmp_path: Path
) -> None:
    case, state = _case(model), tmp_path / "search.state"
    loop = _Loop(case, _ugs(case), SHORT)
    for step in range(5):
        loop.step(step)
    loop.save(state, 5)
    assert _Loop(case, _ugs(case), SHORT).load(state) == 5
    others = (
        _Loop(case, _ugs(case, 2e-2), SHORT),
        _Loop(case, _ugs(case, dynamic=True), SHORT),
        _Loop(case, _ugs(case), dataclasses.replace(SHORT, seed=1)),
        _Loop(_case(model, "zero"), _ugs(case), SHORT),
        _Loop(case, HardConcrete(_ugs(case).prices, 0.1), SHORT),
    )
    assert [other.load(state) for other in others] == [0] * len(others)
    state.write_bytes(state.read_bytes()[:40])
    assert _Loop(case, _ugs(case), SHORT).load(state) == 0
    assert _Loop(case, _ugs(case), SHORT).load(tmp_path / "none") == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ablation", ["resample", "oa"])
def test_every_method_finds_a_circuit_on_paths(
    model: HookedTransformer, method: str, ablation: str
) -> None:
    case = _case(model, ablation)
    config = _config(method, ablation=ablation, edges=6)
    circuit = by_masks(case, config)
    assert int(circuit.all_chosen.sum()) == 6
    assert torch.equal(circuit.kept, on_paths(case.graph, circuit.all_chosen))
    assert torch.equal(by_masks(case, config).scores, circuit.scores)  # a seed decides
    other = by_masks(case, dataclasses.replace(config, seed=1))
    assert not torch.equal(other.scores, circuit.scores)


@pytest.mark.parametrize("method", ["ugs", "hcgs"])
def test_a_price_that_no_edge_is_worth_leaves_an_empty_circuit(
    model: HookedTransformer, method: str
) -> None:
    case = _case(model)
    circuit = by_masks(case, _config(method, penalty=50.0, search_steps=120))
    assert circuit.n == 0
    assert torch.equal(case.outcome(circuit.kept).kl, case.empty.kl)


@pytest.mark.parametrize("method", ["ugs", "hcgs"])
def test_edges_that_are_free_are_kept_where_they_help(
    model: HookedTransformer, method: str
) -> None:
    case = _case(model)
    circuit = by_masks(case, _config(method, penalty=0.0, search_steps=60))
    assert circuit.n > case.graph.n_edges / 2
    assert case.outcome(circuit.kept).kl.mean() < case.empty.kl.mean() / 4


def test_saturated_logits_stay_where_they_are(model: HookedTransformer) -> None:
    """No mask of a step leaves them undecided, so that only their price could move them."""
    case = _case(model)
    ugs = _ugs(case, 0.0)
    ugs.theta.data.fill_(900.0)
    found = search(case, ugs, SHORT)
    assert found.theta.tolist() == [900.0] * case.graph.n_edges
    assert found.losses == pytest.approx([0.0] * SHORT.steps, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_one_edge(method: str) -> None:
    model = tiny_model(n_layers=0, n_heads=1)
    case = Case.of(model, doable(model, task((5,), n=4)), "zero")
    assert case.graph.n_edges == 1
    circuit = by_masks(case, _config(method, edges=1, search_steps=5))
    assert circuit.n == 1
    assert case.outcome(circuit.kept).kl.max() < 1e-9


def test_edge_pruning_removes_the_share_it_is_to_remove(model: HookedTransformer) -> None:
    case = _case(model)
    n = case.graph.n_edges
    found = searched(case, _config("edge-pruning", search_steps=300), 1 - 6 / n)
    kept = probability_above_zero(found.theta, 2 / 3).sum().item()
    assert kept == pytest.approx(6, abs=2.5)


def test_a_warm_start_follows_the_ranks_of_eap_ig(model: HookedTransformer) -> None:
    case = _case(model)
    config = _config("edge-pruning", warm_start=True)
    start = find._start(case, config, 1 - 6 / case.graph.n_edges)
    scores = find.attribution(case, "kl").abs()
    assert torch.equal(
        start.argsort(descending=True, stable=True)[:6].sort().values,
        scores.topk(6).indices.sort().values,
    )
    assert (start > 0).sum() == 6
    cold = find._start(case, _config("edge-pruning"), 0.5)
    assert cold.unique().tolist() == [find.TARGETED_START]


def test_the_logit_difference_is_an_objective(model: HookedTransformer) -> None:
    case = _case(model, objective="logit-difference")
    loop = _Loop(case, _ugs(case), SHORT)
    number, index = loop._draw(torch.Generator().manual_seed(0))
    none = torch.zeros(len(index), case.graph.n_edges, dtype=torch.float64)
    found = loop._loss(number, index, none)[:, 0]
    whole, empty = case.full.difference, case.empty.difference
    first = sum(len(batch) for batch in case.prompts.batches[:number])
    wanted = (empty - whole).abs()[first + index[:, 0]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_constants_are_fitted_alongside_and_suggested(model: HookedTransformer) -> None:
    case = _case(model, "oa")
    found = searched(case, _config("ugs", ablation="oa"), 1e-2)
    assert case.refitter is not None
    assert found.constants is not None
    assert not torch.equal(found.constants, case.refitter.mean)
    circuit = by_masks(case, _config("ugs", ablation="oa", edges=5))
    assert circuit.kept.numpy().tobytes() in case.refitter._suggested


def test_a_search_whose_loss_is_not_finite_says_so(model: HookedTransformer) -> None:
    case = _case(model)
    case.buckets[0].logits.fill_(torch.nan)
    case.buckets[1].logits.fill_(torch.nan)
    with pytest.raises(UserError, match="the search's loss is nan at step 1: not finite"):
        search(case, _ugs(case), SHORT)


def test_rates_and_schedules_are_the_papers_where_asked() -> None:
    assert [learning_rate(price) for price in (1e-4, 5e-4, 6e-4)] == [0.15, 0.10, 0.05]
    assert learning_rate(1e-4, 5) == pytest.approx(0.03)
    paper = CircuitConfig(method="ugs", paper_schedule=True)
    assert Schedule.of(paper, "oa", 3) == Schedule(6000, 5, 12, 3, 2e-3)
    assert Schedule.of(paper, "resample", 0).steps == 3000
    assert Schedule.of(CircuitConfig(), "oa", 0) == Schedule(400, 8, 6, 0, 0.02)


def test_families_of_edges_partition_the_graph(model: HookedTransformer) -> None:
    case = _case(model)
    families = edge_families(case.graph)
    assert sorted(torch.cat(families).tolist()) == list(range(case.graph.n_edges))
    kinds = {
        (
            case.graph.edge_name(int(edge))[0].startswith("a"),
            case.graph.edge_name(int(edge))[1].startswith("a"),
        )
        for family in families
        for edge in family[:1]
    }
    assert len(kinds) == len(families) == 3  # no head reads from a head in one layer
