"""Optimal constants of circuits: minima, the same budget for all, and what they are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_lbfgs import Tolerance, minimise
from evaluations.core.ablation_metric import score_direction
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


def test_the_curvature_saves_evaluations(model: HookedTransformer) -> None:
    """With as many evaluations a fit ends lower than by steps along the gradient's own scale."""
    refitter = _refitter(model, prompts((6,), 12), Budget(starts=1, evaluations=20))
    circuits = torch.stack(_circuits(refitter.graph, 6))
    ours = refitter.refit(circuits, [refitter.mean]).delta
    start = refitter.mean.expand(len(circuits), -1)
    plain = minimise(
        refitter._objective(circuits, refitter.prompts), start, Tolerance(1e-5, 1e-4, 20)
    ).value
    assert ours.mean() < plain.mean() - 1e-3


def test_draws_of_the_curvature_have_the_fisher_information_as_their_mean_square(
    model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against J' (diag q - q q') J of one prompt, the derivatives taken one logit at a time."""
    refitter = _refitter(model, prompts((6,), 1), Budget(starts=1, evaluations=1))
    kept, flat = _circuits(refitter.graph, 1)[0][None], refitter.mean[None].double()
    (batch,) = refitter.prompts

    def logits(point: Tensor) -> Tensor:
        written = refitter.space.written(point[None])
        index = torch.zeros(1, 1, dtype=torch.long)
        return refitter.rows.logits(batch, index, kept.to(point), written)[0, 0]

    rows = [torch.zeros_like(flat[0]) for _ in range(len(logits(flat[0])))]
    for number in range(len(rows)):
        point = flat[0].clone().requires_grad_()
        (rows[number],) = torch.autograd.grad(logits(point)[number], point)
    q, jacobian = logits(flat[0]).softmax(-1), torch.stack(rows)
    wanted = jacobian.T @ (q.diag() - q[:, None] * q) @ jacobian
    draws = []
    for draw in range(600):
        monkeypatch.setattr(
            "evaluations.suite.circuits.refit.score_direction",
            lambda logits, numbers, _, draw=draw: score_direction(logits, numbers + draw, 0),
        )
        draws.append(refitter._scores(kept, flat, batch, 1)[0])
    scores = torch.cat(draws)
    found = scores.T @ scores / len(scores)
    assert torch.trace(found) == pytest.approx(torch.trace(wanted).item(), rel=0.25)
    assert (found - wanted).norm() < 0.25 * wanted.norm()


def test_searches_begin_with_constants_near_the_means(model: HookedTransformer) -> None:
    """Without edges the cost is that of the constants' sum; each stays near what it writes."""
    refitter = _refitter(model, prompts((6, 9), 6), Budget(evaluations=60))
    none = torch.zeros(1, refitter.graph.n_edges, dtype=torch.bool)
    cost = [
        refitter.cost(none, flat[None], refitter.prompts)[0].item()
        for flat in (refitter.mean, refitter.empty)
    ]
    assert cost[1] < cost[0]
    written = refitter.space.written(torch.stack([refitter.mean, refitter.empty]))
    moved = written[1] - written[0]
    assert moved.norm() < written[0].norm()
    streams = [place for place, node in enumerate(refitter.graph.sources) if node.head is None]
    for place in streams[1:]:  # the sum's gradient is the same for all that write to the stream
        torch.testing.assert_close(moved[place], moved[streams[0]], atol=1e-5, rtol=1e-3)


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
