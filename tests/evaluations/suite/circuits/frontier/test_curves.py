"""E(s), the area and the bootstrap: worked by hand, and against plain loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from evaluations.suite.circuits.frontier import curves
from evaluations.suite.circuits.frontier.curves import Estimate

EDGES = np.array([0, 10, 100])
COSTS = np.array([3.0, 1.0, 0.01])


def test_between_two_circuits_the_cost_is_linear_in_logarithms():
    # 0.1 is half-way from 1 to 0.01 in logarithms, and so is sqrt(1000) from 10 to 100
    assert curves.edges_at_cost(EDGES, COSTS, 0.1) == pytest.approx(math.sqrt(1000))
    assert curves.edges_at_cost(EDGES, COSTS, 0.01) == pytest.approx(100)
    assert curves.edges_at_cost(EDGES, COSTS, 1.0) == 10


def test_nothing_is_interpolated_before_the_first_edge():
    assert curves.edges_at_cost(EDGES, COSTS, 2.0) == 10
    assert curves.edges_at_cost(EDGES, COSTS, 3.0) == 0


def test_what_never_gets_there_has_no_number():
    assert np.isnan(curves.edges_at_cost(EDGES, COSTS, 0.009))
    assert np.isnan(curves.edges_at_cost(EDGES[:1], COSTS[:1], 1.0))


def test_the_first_crossing_counts_where_a_curve_rises_again():
    edges, costs = np.array([1, 10, 20, 40]), np.array([1.0, 0.1, 0.9, 0.05])
    assert curves.edges_at_cost(edges, costs, 0.1) == pytest.approx(10)


def test_faithfulness_is_linear_in_the_logarithm_of_the_edges():
    shares = np.array([0.0, 0.4, 1.2])
    assert curves.edges_at_faithfulness(EDGES, shares, 0.8) == pytest.approx(math.sqrt(1000))
    assert np.isnan(curves.edges_at_faithfulness(EDGES, shares, 1.3))


def test_costs_of_zero_count_as_the_floor():
    edges, costs = np.array([0, 10, 1000]), np.array([1.0, 1.0, 0.0])
    # from 1 to 1e-6: 1e-3 is half-way
    assert curves.edges_at_cost(edges, costs, 1e-3) == pytest.approx(100)


def test_the_area_by_hand():
    # over [1, 1000]: 3 nats up to 10 edges, from 1 down to 0.01 up to 100, 0.01 from there on
    logs = [math.log(3), (math.log(1) + math.log(0.01)) / 2, math.log(0.01)]
    assert curves.area(EDGES, COSTS, (1, 1000), 1.0) == pytest.approx(sum(logs) / 3)
    # divided by I in every place
    ten = curves.area(EDGES, COSTS, (1, 1000), 10.0)
    assert ten == pytest.approx(sum(logs) / 3 - math.log(10))
    # ends between two circuits: linear, so that the mean is that of both ends
    logs = [math.log10(edges / 10) * math.log(0.01) for edges in (20, 50)]
    assert curves.area(EDGES, COSTS, (20, 50), 1.0) == pytest.approx(sum(logs) / 2)


def test_the_area_of_the_empty_circuit_alone():
    assert curves.area(np.array([0]), np.array([2.0]), (5, 50), 4.0) == pytest.approx(math.log(0.5))


def _cost_at(x: float, edges: list[int], costs: list[float]) -> float:
    """ln Delta at ln edges = x, by walking along the curve."""
    if x < math.log(edges[1]):
        return math.log(costs[0])
    for i in range(1, len(edges) - 1):
        a, b = math.log(edges[i]), math.log(edges[i + 1])
        if x <= b:
            t = (x - a) / (b - a)
            return (1 - t) * math.log(costs[i]) + t * math.log(costs[i + 1])
    return math.log(costs[-1])


@pytest.mark.parametrize("seed", range(8))
def test_figures_against_a_walk_along_the_curve(seed):
    draws = random.Random(seed)
    edges = [0, *sorted(draws.sample(range(1, 400), draws.randint(2, 7)))]
    costs = [draws.uniform(0.01, 3) for _ in edges]
    low, high, ceiling = 4, 300, 2.5
    steps = 40_000
    xs = [
        math.log(low) + (i + 0.5) * (math.log(high) - math.log(low)) / steps for i in range(steps)
    ]
    heights = [_cost_at(x, edges, costs) for x in xs]
    wanted = sum(heights) / steps - math.log(ceiling)
    found = curves.area(np.array(edges), np.array(costs), (low, high), ceiling)
    assert found == pytest.approx(wanted, abs=1e-3)

    level = draws.uniform(0.05, 1.5)
    found = float(curves.edges_at_cost(np.array(edges), np.array(costs), level))
    grid = np.exp(np.linspace(math.log(edges[1]), math.log(edges[-1]), steps))
    reached = [e for e in grid if _cost_at(math.log(e), edges, costs) <= math.log(level)]
    if costs[0] <= level:
        assert found == 0
    elif reached:
        assert found == pytest.approx(reached[0], rel=1e-3)
    elif costs[-1] > level:
        assert math.isnan(found)


def test_chosen_circuits_are_those_that_no_other_dominates():
    edges, costs = [5, 3, 3, 9, 0, 7], [1.0, 2.0, 1.5, 1.2, 3.0, 0.5]
    assert [edges[i] for i in curves.chosen(edges, costs)] == [0, 3, 5, 7]
    assert curves.chosen([2, 2], [1.0, 1.0]) == [0]
    assert curves.chosen([], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_chosen_circuits_against_all_pairs(seed):
    draws = np.random.default_rng(seed)
    edges, costs = draws.integers(0, 12, 30).tolist(), draws.random(30).round(1).tolist()
    chosen = {(edges[i], costs[i]) for i in curves.chosen(edges, costs)}
    every = set(zip(edges, costs, strict=True))
    wanted = {
        (e, c)
        for e, c in every
        if not any(f <= e and d <= c and (f, d) != (e, c) for f, d in every)
    }
    assert chosen == wanted


def test_many_curves_at_once_are_each_of_them_alone():
    draws = np.random.default_rng(0).random((50, 3)) + 0.01
    found = curves.edges_at_cost(EDGES, draws, 0.4)
    alone = [float(curves.edges_at_cost(EDGES, row, 0.4)) for row in draws]
    np.testing.assert_allclose(found, alone)
    areas = curves.area(EDGES, draws, (2, 90), 3.0)
    np.testing.assert_allclose(areas, [curves.area(EDGES, row, (2, 90), 3.0) for row in draws])


def test_resampled_means_against_drawn_prompts():
    values = np.random.default_rng(1).random((3, 40))
    found = curves.resampled_means(values, 4000, 0)
    assert found.shape == (4000, 3)
    np.testing.assert_allclose(found.mean(0), values.mean(1), atol=0.01)
    plain = np.random.default_rng(2)
    drawn = np.array([values[:, plain.integers(40, size=40)].mean(1) for _ in range(4000)])
    np.testing.assert_allclose(found.std(0), drawn.std(0), rtol=0.05)
    # the prompts of a draw are the same for every circuit
    same = curves.resampled_means(np.stack([values[0], 2 * values[0]]), 50, 0)
    np.testing.assert_allclose(same[:, 1], 2 * same[:, 0])


def test_an_estimate_is_the_figure_of_the_mean_with_a_percentile_interval():
    draws = np.linspace(0, 1, 1001)[:, None]
    found = curves.estimate(lambda rows: rows[..., 0], np.array([0.5]), draws, 10)
    assert found.value == 0.5
    assert (found.low, found.high) == (pytest.approx(0.025), pytest.approx(0.975))
    assert found.missed == 0


def test_resamples_that_never_get_there_leave_the_interval_open():
    draws = np.array([[1.0]] * 90 + [[np.nan]] * 10)
    found = curves.estimate(lambda rows: rows[..., 0], np.array([1.0]), draws, 10)
    assert found == Estimate(1.0, 1.0, None, 0.1)
    few = np.array([[1.0]] * 99 + [[np.nan]])
    found = curves.estimate(lambda rows: rows[..., 0], np.array([1.0]), few, 10)
    assert (found.high, found.missed) == (1.0, 0.01)


def test_few_prompts_have_no_interval_and_missing_figures_no_value():
    one = np.ones((10, 1))
    assert curves.estimate(lambda rows: rows[..., 0], one[0], one, 4) == Estimate(1.0)
    assert curves.estimate(lambda rows: rows[..., 0] * np.nan, one[0], one, 9) == Estimate(None)
