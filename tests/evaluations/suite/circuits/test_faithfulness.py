"""Faithfulness, CPR and CMD against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluations.core import statistics
from evaluations.suite.circuits.faithfulness import (
    SHARES,
    Point,
    area_interval,
    cmd,
    cpr,
    curve,
    faithfulness,
    mean_over_prompts,
    tau_ranking,
)
from evaluations.suite.circuits.methods.find import FoundCircuit, by_acdc
from tests.evaluations.suite.circuits.cases import outcome, tiny_case


@pytest.fixture
def case():
    """A case whose outcomes are set by hand: 4 nats whole, 1 nat empty, on average."""
    made = tiny_case()
    made.__dict__["full"] = outcome(3.0, 4.0, 5.0)
    made.__dict__["empty"] = outcome(1.0, 1.0, 1.0, kl=2.0)
    return made


def test_faithfulness_by_hand(case, monkeypatch):
    monkeypatch.setattr(statistics, "ENOUGH", 3)
    found = faithfulness(case, outcome(2.0, 2.0, 5.0), resamples=200)
    assert found.value == pytest.approx((3 - 1) / (4 - 1))
    # linearisation: residuals s - R c of gained (1, 1, 4) and whole (2, 3, 4), R = 2/3
    residuals = np.array([1 - 4 / 3, 1 - 2, 4 - 8 / 3])
    assert found.standard_error == pytest.approx(np.sqrt(1.5 * (residuals**2).sum()) / 9)
    assert found.interval.low <= found.value <= found.interval.high
    assert "over 3 prompts" in found.interval.method
    assert faithfulness(case, case.full).value == 1.0
    assert faithfulness(case, case.empty).value == 0.0


@pytest.mark.parametrize("full", [(1.0, 1.0, 1.0), (9.0, 1.0, -6.0)])
def test_faithfulness_does_not_exist_where_there_is_nothing_to_explain(case, full):
    case.__dict__["full"] = outcome(*full)
    assert faithfulness(case, outcome(2.0, 2.0, 5.0)).value is None


def test_means_are_over_prompts(monkeypatch):
    monkeypatch.setattr(statistics, "ENOUGH", 3)
    value, error, interval = mean_over_prompts(torch.tensor([1.0, 2.0, 6.0]), 100, 0)
    assert value == 3.0
    assert error == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert interval.method.startswith("percentile bootstrap over 3 prompts")


def test_areas_by_hand():
    def points(values):
        return [Point(s, 1, v, 0.0) for s, v in zip(SHARES, values, strict=True)]

    assert cpr(points([1.0] * 10)) == pytest.approx(0.999)
    assert cmd(points([1.0] * 10)) == pytest.approx(0.0)
    line = (1 - 0.001**2) / 2
    assert cpr(points(SHARES)) == pytest.approx(line)
    assert cmd(points(SHARES)) == pytest.approx(0.999 - line)
    # 2 from half of the edges on: CMD takes what is above 1 as it takes what is below
    above = points([0.0] * 8 + [2.0, 1.0])
    assert cpr(above) == pytest.approx(0.3 * 1.0 + 0.5 * 1.5)
    assert cmd(above) == pytest.approx((0.2 - 0.001) * 1.0 + 0.3 * 1.0 + 0.5 * 0.5)
    assert cpr(points([None] + [1.0] * 9)) is None
    assert cmd([]) is None


def test_the_interval_of_an_area_resamples_prompts():
    case = tiny_case(n=10)
    points = curve(case, torch.arange(case.graph.n_edges).flip(0))
    whole = (case.full.difference - case.empty.difference).numpy()
    drawn = np.random.default_rng(3).integers(20, size=(50, 20))
    expected = []
    for rows in drawn:
        values = [float(one.gained.numpy()[rows].mean() / whole[rows].mean()) for one in points]
        expected.append(np.trapezoid(np.abs(1 - np.array(values)), SHARES))
    found = area_interval(case, points, "cmd", 50, 3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert "over 20 prompts" in found.method


def test_edges_rank_by_the_tau_at_which_they_fall():
    def found(kept, scores):
        return FoundCircuit(torch.tensor(kept, dtype=torch.bool), torch.tensor(scores))

    sweep = {
        0.1: found([0, 1, 0, 0, 0], [0.0, 0.5, 0.0, 0.0, 0.05]),
        0.01: found([1, 0, 1, 0, 0], [0.02, 0.0, 0.03, -0.1, 0.005]),
    }
    # 1 is kept at 0.1, though no longer at 0.01; then 2 and 0 by step; then 4, never kept
    assert tau_ranking(sweep).tolist() == [1, 2, 0, 4, 3]
    # by size, what harms comes before what helps less
    assert tau_ranking(sweep, signed=False).tolist() == [1, 2, 0, 3, 4]
    # edges off every path are ranked as the method found them, though no circuit has them
    chosen = torch.tensor([1, 1, 0, 0, 0], dtype=torch.bool)
    off = FoundCircuit(
        torch.zeros(5, dtype=torch.bool), torch.tensor([0.2, 0.5, 0, 0, 0]), chosen=chosen
    )
    assert tau_ranking({0.1: off}).tolist() == [1, 0, 4, 3, 2]


def test_a_curve_goes_from_nothing_to_the_whole_model():
    case = tiny_case(n=10)
    sweep = {tau: by_acdc(case, tau) for tau in (0.01, 0.1)}
    order = tau_ranking(sweep)
    assert sweep[0.1].all_chosen[order[: int(sweep[0.1].all_chosen.sum())]].all()
    points = curve(case, order)
    n = case.graph.n_edges
    assert [point.edges for point in points] == [int(n * share + 1e-9) for share in SHARES]
    assert (points[0].edges, points[0].faithfulness) == (0, pytest.approx(0.0, abs=1e-9))
    assert (points[-1].edges, points[-1].faithfulness) == (n, pytest.approx(1.0))
    assert points[-1].kl == pytest.approx(0.0, abs=1e-9)
    kls = [point.kl for point in points]
    assert max(kls[-3:]) < kls[0]
