"""The search on trainings whose L0 is a known function of the coefficient."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from evaluations.suite.sae.config import PRESETS, preset
from evaluations.suite.sae.search import find_coefficient, read_search, with_coefficient
from sat_interp._util.errors import UserError


def wanted(target, **changes):
    changed = {"sparsity": None, "target_l0": target, **changes}
    return dataclasses.replace(PRESETS["demo"], **changed)


class Trainings:
    """L0 = scale / coefficient^power, a full training's ``shift`` times that of a short one."""

    def __init__(self, scale=60.0, power=0.8, shift=1.0):
        self.scale, self.power, self.shift = scale, power, shift
        self.short, self.full = [], []

    def __call__(self, configs, is_short):
        assert all(one.target_l0 is None for one in configs)
        (self.short if is_short else self.full).append([one.sparsity for one in configs])
        factor = 1.0 if is_short else self.shift
        return [self.l0(one.sparsity) * factor for one in configs]

    def l0(self, coefficient):
        return self.scale / coefficient**self.power


@pytest.mark.parametrize("target", [4.0, 16.0, 100.0, 900.0])
def test_it_finds_the_coefficient(target):
    train = Trainings()
    found = find_coefficient(wanted(target), train)
    assert found.coefficient == pytest.approx((60 / target) ** (1 / 0.8), rel=0.01)
    assert len(train.full) == 1  # the short trainings told the truth
    assert train.short[0] == pytest.approx([0.185, 0.556, 1.67, 5, 15])
    assert found.points[-1].coefficient == found.coefficient


@pytest.mark.parametrize("shift", [0.3, 0.6, 2.5])
def test_it_corrects_for_what_a_longer_training_does(shift):
    train = Trainings(shift=shift)
    found = find_coefficient(wanted(16.0), train)
    assert 1 < len(train.full) <= 3
    assert abs(math.log(train.l0(found.coefficient) * shift / 16)) <= math.log(1.15)


def test_it_looks_further_off_where_the_first_do_not_reach():
    for scale in (0.05, 5e3):
        train = Trainings(scale=scale)
        found = find_coefficient(wanted(16.0), train)
        assert found.coefficient == pytest.approx((scale / 16) ** (1 / 0.8), rel=0.01)
        assert len(train.short) > 1


def test_what_cannot_be_reached_is_said():
    with pytest.raises(UserError, match=r"gives an L0 of 16: short trainings ended at 2 to 2 "):
        find_coefficient(wanted(16.0), lambda configs, is_short: [2.0] * len(configs))


def test_short_trainings_are_a_fifth_of_the_budget():
    budgets = set()

    def train(configs, is_short):
        budgets.update((is_short, one.tokens) for one in configs)
        return [Trainings().l0(one.sparsity) for one in configs]

    find_coefficient(wanted(16.0, tokens=2_000_000), train)
    assert budgets == {(True, 400_000), (False, 2_000_000)}


def test_what_was_found_is_read_again(tmp_path):
    found = find_coefficient(wanted(16.0), Trainings())
    file = tmp_path / "search.json"
    file.write_text(json.dumps(found.to_dict()))
    assert read_search(file) == found
    several = (
        "",
        "[]",
        "[" * 100_000,
        '{"coefficient": 1}',
        '{"coefficient": "x", "points": []}',
        '{"coefficient": -1, "points": []}',
        '{"coefficient": 1, "points": [[1]]}',
    )
    for damaged in several:
        file.write_text(damaged)
        assert read_search(file) is None
    assert read_search(tmp_path / "none.json") is None


def test_the_configuration_of_a_target():
    config = wanted(16.0)
    assert config.label == "target L0 16"
    assert with_coefficient(config, 0.5).label == "L1 0.5"
    for changes, match in (
        ({"target_l0": 0.0}, "--target-l0 must be above 0"),
        ({"target_l0": math.inf}, "--target-l0 must be above 0"),
        ({"target_l0": math.nan}, "--target-l0 must be above 0"),
        ({"sparsity": 5.0}, "not both"),
        ({"architecture": "topk"}, "does not apply to topk"),
        ({"target_l0": None}, "--l1 must be at least 0"),
    ):
        with pytest.raises(UserError, match=match):
            dataclasses.replace(config, **changes)
    assert preset("demo").target_l0 is None
