"""Distributions of masks: shares, estimators of gradients and prices against their definitions."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.masks import (
    HardConcrete,
    Price,
    TargetedConcrete,
    Ugs,
    hard_concrete_masks,
    head_ends,
    node_penalty,
    probability_above_zero,
    uniform_gradient_masks,
    window_scale,
)
from tests.evaluations.suite.circuits.tiny import tiny_model

THETA = torch.tensor([-1.5, 0.0, 0.4, 2.0], dtype=torch.float64)


def _grid(n: int = 20_001) -> Tensor:
    """The midpoints of (0, 1), the same for every edge."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None].expand(-1, len(THETA))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_ugs_is_on_off_or_undecided_with_the_stated_probabilities(scale: float) -> None:
    p = THETA.sigmoid()
    window = scale * p * (1 - p)
    masks = uniform_gradient_masks(THETA, _grid(), scale)
    close = {"rtol": 0, "atol": 2e-4}
    torch.testing.assert_close((masks == 1).double().mean(0), p - window / 2, **close)
    torch.testing.assert_close((masks == 0).double().mean(0), 1 - p - window / 2, **close)
    torch.testing.assert_close(masks.mean(0), p, **close)
    torch.testing.assert_close(masks.var(0), p * (1 - p) - window / 6, **close)


def test_the_ugs_estimate_is_the_mean_over_undecided_rows() -> None:
    theta = THETA.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(12, 4, generator=generator, dtype=torch.float64)
    slopes = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    masks = uniform_gradient_masks(theta, u)
    (masks * slopes).sum(1).mean().backward()
    p = THETA.sigmoid()
    for edge in range(4):
        inside = (masks[:, edge] > 0) & (masks[:, edge] < 1)
        assert 0 < inside.sum() < 12
        expected = p[edge] * (1 - p[edge]) * slopes[inside, edge].mean()
        assert theta.grad is not None
        assert theta.grad[edge] == pytest.approx(expected.item(), abs=1e-12)


def test_the_ugs_estimate_of_a_linear_loss_is_that_of_independent_coins() -> None:
    """For L = sum_k w_k alpha_k the gradient of E L is w p (1 - p), whatever the window."""
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    theta = THETA.clone().requires_grad_()
    (uniform_gradient_masks(theta, _grid(101)) @ weights).mean().backward()
    p = THETA.sigmoid()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, weights * p * (1 - p))


def test_an_edge_that_is_never_undecided_has_no_gradient() -> None:
    """Saturated logits, and draws that miss the window."""
    theta = torch.tensor([60.0, -60.0, 0.0, 800.0], dtype=torch.float64).requires_grad_()
    u = torch.tensor([[0.3, 0.3, 0.99, 0.5], [0.6, 0.6, 0.01, 0.5]], dtype=torch.float64)
    masks = uniform_gradient_masks(theta, u)
    assert masks.tolist() == [[1, 0, 0, 1], [1, 0, 1, 1]]
    masks.sum().backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [0, 0, 0, 0]


def test_the_dynamic_window_follows_the_second_moment_within_bounds() -> None:
    second = torch.tensor([1.0, 4.0, 9.0, 1e6, 0.0])
    root = second.sqrt()
    mean = root.clamp(max=torch.quantile(root, 0.99)).mean()
    torch.testing.assert_close(window_scale(second), (root / mean).clamp(0.5, 2))
    assert window_scale(torch.zeros(3)).tolist() == [0.5] * 3
    assert window_scale(torch.ones(3)).tolist() == [1.0] * 3


def test_hard_concrete_shares_and_gradient() -> None:
    beta = 2 / 3
    grid = _grid()
    masks = hard_concrete_masks(THETA, beta, grid)
    above = probability_above_zero(THETA, beta)
    torch.testing.assert_close((masks > 0).double().mean(0), above, rtol=0, atol=2e-4)
    assert above[1] == pytest.approx(1 / (1 + math.exp(beta * math.log(1 / 11))))
    theta = THETA.clone().requires_grad_()
    hard_concrete_masks(theta, beta, grid).mean(0).sum().backward()
    step = 1e-3
    up = hard_concrete_masks(THETA + step, beta, grid).mean(0)
    down = hard_concrete_masks(THETA - step, beta, grid).mean(0)
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, (up - down) / (2 * step), rtol=1e-3, atol=1e-5)


def test_the_released_concrete_masks_start_and_end_elsewhere() -> None:
    """0 up to c = 0.1 in place of 1/12, 1 from 14/15 in place of 11/12, as in the released code."""
    beta, grid = 2 / 3, _grid()[:, :1]
    own = hard_concrete_masks(torch.zeros(1), beta, grid)
    released = hard_concrete_masks(torch.zeros(1), beta, grid, released=True)
    concrete = ((grid.log() - (-grid).log1p()) / beta).sigmoid()
    assert concrete[own == 0].max() == pytest.approx(1 / 12, abs=1e-3)
    assert concrete[released == 0].max() == pytest.approx(0.1, abs=3e-3)
    assert concrete[own == 1].min() == pytest.approx(11 / 12, abs=1e-3)
    assert concrete[released == 1].min() == pytest.approx(14 / 15, abs=3e-3)


def test_a_node_costs_what_its_edges_make_of_it() -> None:
    """Worked by hand: head 0 has p 0.5 + 0.25, head 1 0.25 + 1, the last edge touches no head."""
    p = torch.tensor([0.5, 0.25, 1.0, 0.7], dtype=torch.float64)
    ends = torch.tensor([[-1, 0], [0, 1], [1, -1], [-1, -1]])
    n = 8
    expected = 4 * (math.tanh(2 * 0.75 / n) + math.tanh(2 * 1.25 / n))
    assert node_penalty(p, ends, n).item() == pytest.approx(expected)
    price = Price(1e-4, ends, n, torch.float64)
    assert price.of(p).item() == pytest.approx(1e-4 * 2.45 + 0.5e-4 * expected)
    assert Price(0.1, ends, n).of(p).item() == pytest.approx(0.245 + 2e-4 * expected)
    assert Price(0.0, ends, n).of(p).item() == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_the_heads_at_the_ends_of_edges(grouped: bool) -> None:
    """A shared key or value is an end of every head that reads it: here two of four."""
    graph = Graph.of(tiny_model("grouped"), grouped)
    ends = head_ends(graph)
    for edge in range(graph.n_edges):
        source, destination = graph.edge_name(edge)
        expected = _heads_named(source), _heads_named(destination)
        assert (ends[edge, :1].tolist(), ends[edge, 1:].tolist()) == (
            expected[0] or [-1],
            expected[1] + [-1] * (ends.shape[1] - 1 - len(expected[1])),
        )
    p = torch.linspace(0, 1, graph.n_edges, dtype=torch.float64)
    total = [0.0] * 8
    for edge in range(graph.n_edges):
        for head in [one for name in graph.edge_name(edge) for one in _heads_named(name)]:
            total[head] += p[edge].item()
    expected_price = sum(4 * math.tanh(2 * one / 8) for one in total)
    assert node_penalty(p, ends, 8).item() == pytest.approx(expected_price)


def _heads_named(node: str) -> list[int]:
    """Heads of a node's name in a model of four heads, two a group: a1.h2.q, a1.g0.k (0 and 1)."""
    layer, kind, number = re.fullmatch(r"a(\d)\.(h|g)(\d).*|.*", node).groups()  # type: ignore[union-attr]
    if kind is None:
        return []
    own = [int(number)] if kind == "h" else [2 * int(number), 2 * int(number) + 1]
    return [4 * int(layer) + head for head in own]


def test_edge_prunings_price_is_zero_at_its_target() -> None:
    theta = torch.linspace(-3, 3, 50, dtype=torch.float64)
    removed = 1 - probability_above_zero(theta, 2 / 3).mean().item()
    pruning = TargetedConcrete(removed, 0.8, theta)
    pruning.multipliers.data = torch.tensor([2.0, 5.0], dtype=torch.float64)
    assert pruning.price(1.0).item() == pytest.approx(0, abs=1e-12)
    half = removed / 2 - removed
    assert pruning.price(5 / 12).item() == pytest.approx(2 * half + 5 * half**2)
    pruning.price(0.0).backward()
    assert pruning.multipliers.grad is not None
    assert pruning.multipliers.grad.tolist() == pytest.approx([-removed, removed**2])
    theta_group, multipliers = pruning.parameters()
    assert multipliers["maximize"]
    assert "maximize" not in theta_group


def test_distributions_begin_where_the_papers_do() -> None:
    price = Price(1e-3, torch.full((3, 2), -1), 1, torch.float64)
    ugs, concrete = Ugs(price, 0.1), HardConcrete(price, 0.1)
    assert ugs.theta.tolist() == [1.0] * 3
    assert concrete.theta.tolist() == [0.0] * 3
    assert concrete.beta.tolist() == pytest.approx([2 / 3] * 3)
    assert ugs.price(0).item() == pytest.approx(3e-3 / (1 + math.exp(-1)))
    above = 1 / (1 + math.exp(2 / 3 * math.log(1 / 11)))
    assert concrete.price(0).item() == pytest.approx(3e-3 * above)
