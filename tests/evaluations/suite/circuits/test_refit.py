"""Optimal constants of circuits: minima, the same budget for all, and what they are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.forward import forward
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.patched import PromptBatch, Prompts, kl_divergence, prepare
from evaluations.suite.circuits.refit import Budget, ConstantSpace, Refitter
from tests.evaluations.suite.circuits.tiny import prompts, tiny_model

ENOUGH = Budget(sample=100, first=40, evaluations=150)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model(n_layers=1, n_heads=2)


def _refitter(model: HookedTransformer, batches: list[Prompts], budget: Budget) -> Refitter:
    graph = Graph.of(model)
    return Refitter(model, graph, prepare(model, graph, batches, "mean"), budget)


def _cost(
    model: HookedTransformer, graph: Graph, bucket: PromptBatch, kept: Tensor, constants: Tensor
) -> Tensor:
    own = bucket.with_constants(constants)
    logits = forward(model, graph, own.clean[0], kept, own.replacement)
    return kl_divergence(own.logits, logits).mean()


def _circuits(graph: Graph, n: int, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [on_paths(graph, torch.rand(graph.n_edges) < 0.6) for _ in range(n)]


def test_constants_end_where_the_reference_has_no_slope(model: HookedTransformer) -> None:
    graph = Graph.of(model)
    (batch,) = prompts((6,), 8)
    refitter = _refitter(model, [batch], ENOUGH)
    (bucket,) = prepare(model, graph, [batch], "mean")
    circuits = _circuits(graph, 4)
    for kept, fit in zip(circuits, refitter.fits(circuits), strict=True):
        flat = fit.flat.clone().requires_grad_()
        cost = _cost(model, graph, bucket, kept, refitter.space.written(flat[None])[0])
        assert cost.item() == pytest.approx(fit.delta, abs=1e-9)
        (slope,) = torch.autograd.grad(cost, flat)
        assert slope.abs().max() < 1e-4
        zeros = torch.zeros(graph.n_sources, 16, dtype=torch.float64)
        means = refitter.space.written(refitter.mean[None])[0]
        for other in (zeros, means, refitter.constants(torch.zeros_like(kept))):
            assert fit.delta <= _cost(model, graph, bucket, kept, other).item() + 1e-6


def test_the_whole_model_needs_no_constants_and_an_empty_circuit_has_some(
    model: HookedTransformer,
) -> None:
    """With no edge the prediction is the same for all prompts, so it costs at least the prior."""
    graph, batches = Graph.of(model), prompts((6, 9), 6)
    refitter = _refitter(model, batches, ENOUGH)
    none = torch.zeros(graph.n_edges, dtype=torch.bool)
    whole, empty = refitter.fits([~none, none])
    assert whole.delta == pytest.approx(0, abs=1e-9)
    assert whole.converged
    logits = torch.cat([bucket.logits for bucket in prepare(model, graph, batches, "mean")])
    prior = logits.softmax(-1).mean(0).log()
    bound = kl_divergence(logits, prior.expand_as(logits)).mean().item()
    assert bound - 1e-9 <= empty.delta < 5 * bound


def test_every_circuit_is_fitted_once_from_as_many_starts(
    model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refitter = _refitter(model, prompts((6,)), Budget(starts=3, first=4, evaluations=6))
    circuits = _circuits(refitter.graph, 3)
    calls: list[tuple[int, int]] = []
    refit = refitter.refit

    def counted(kept: Tensor, starts: list[Tensor]) -> object:
        calls.append((len(kept), len(starts)))
        return refit(kept, starts)

    monkeypatch.setattr(refitter, "refit", counted)
    fits = refitter.fits(circuits)
    again = refitter.fits([circuits[1], *circuits])
    assert again[0] is fits[1]
    assert calls == [(3, 3)]


def test_constants_that_a_search_found_are_a_start(model: HookedTransformer) -> None:
    kept = _circuits(Graph.of(model), 1)[0]
    best = _refitter(model, prompts((6,)), ENOUGH).fits([kept])[0]
    refitter = _refitter(model, prompts((6,)), Budget(first=1, evaluations=1))
    without = _refitter(model, prompts((6,)), Budget(first=1, evaluations=1)).fits([kept])[0]
    refitter.suggest(kept, best.flat)
    assert refitter.fits([kept])[0].delta == pytest.approx(best.delta, abs=1e-9)
    assert without.delta > best.delta + 1e-3
    assert not without.converged


def test_fitting_parts_and_lengths_apart_changes_nothing(
    model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = prompts((6, 9), 4)
    together = _refitter(model, batches, Budget(first=4, evaluations=8))
    monkeypatch.setattr("evaluations.suite.circuits.refit.MEMORY", 1)
    apart = _refitter(model, batches, Budget(first=4, evaluations=8))
    circuits = _circuits(together.graph, 3)
    for one, other in zip(together.fits(circuits), apart.fits(circuits), strict=True):
        assert one.delta == pytest.approx(other.delta, abs=1e-9)


def test_constants_of_heads_are_of_z() -> None:
    model = tiny_model("gpt-2")
    space = ConstantSpace(model, Graph.of(model))
    assert space.size == 16 + 2 * (4 * 4 + 16)
    flat = torch.randn(1, space.size, dtype=torch.float64)
    written = space.written(flat)[0]
    at = 16 + 4  # the second head's
    expected = flat[0, at : at + 4] @ model.blocks[0].attn.W_O[1]
    torch.testing.assert_close(written[2], expected)
    torch.testing.assert_close(space.flat(written), flat[0])
