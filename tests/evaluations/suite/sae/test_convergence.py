from __future__ import annotations

import pytest
import torch

from evaluations.suite.sae.convergence import Curve, verdict


def curve(total):
    found = Curve.empty(len(total), torch.device("cpu"))
    for step, value in enumerate(total):
        found.add(step, torch.tensor(value), torch.tensor(value / 2), torch.tensor(3.0))
    return found


def test_the_fall_is_that_of_the_last_tenth_against_the_one_before():
    assert curve([9.0] * 80 + [2.0] * 10 + [1.5] * 10).fall() == pytest.approx(25)
    assert curve([5.0] * 100).fall() == 0
    assert curve([1.0] * 90 + [2.0] * 10).fall() == pytest.approx(-100)
    assert curve([1.0] * 9).fall() is None


def test_the_curve_kept_is_means_of_stretches():
    kept = curve([float(value) for value in range(1000)]).to_dict()["curve"]
    assert len(kept["step"]) == 100
    assert kept["step"][:2] == [10, 20]
    assert kept["loss"][:2] == [4.5, 14.5]
    assert kept["mse"][0] == 2.25
    assert kept["step"][-1] == 1000
    assert curve([1.0, 3.0]).to_dict()["curve"]["loss"] == [1.0, 3.0]


def test_the_progress_line():
    found = curve([2.0] * 20)
    found.probe(9, 0.5)
    assert found.summary(9) == "loss 2, L0 3.0, CE score 0.500"


def test_the_verdict_says_what_is_wrong():
    assert verdict(2.0, 0.8) == "total loss still falling by 2 % per 10 % of training"
    assert verdict(-0.1, 0.8) == "total loss no longer falling"
    assert "explained variance 0.40, below 0.5" in verdict(1.0, 0.4)
    assert "explained variance unknown" in verdict(1.0, None)
    assert "too few steps" in verdict(None, 0.9)
