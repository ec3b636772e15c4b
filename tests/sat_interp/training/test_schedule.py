"""Schedules of a loss weight: values by hand, one spelling each, one clear line for a bad one."""

from __future__ import annotations

import math

import pytest

from sat_interp._util.errors import UserError
from sat_interp.training.config import TrainConfig
from sat_interp.training.schedule import read_schedule


def test_a_ramp_is_constant_then_linear_then_constant():
    schedule = read_schedule("w", "0.03@0.65:1.0@0.95")
    assert [schedule.at(share) for share in (0.0, 0.5, 0.65)] == [0.03] * 3
    assert schedule.at(0.8) == pytest.approx((0.03 + 1.0) / 2)
    assert schedule.at(0.95) == schedule.at(1.0) == 1.0


def test_a_schedule_is_settled_from_its_last_point_on():
    ramp = read_schedule("w", "0.03@0.65:1.0@0.95")
    assert [ramp.is_settled(share) for share in (0, 0.94, 0.95, 1)] == [False, False, True, True]
    assert read_schedule("w", 0.3).is_settled(0)


def test_several_points_and_falling_weights():
    schedule = read_schedule("w", "1@0:0@.5:2@1")
    assert [schedule.at(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.5, 0, 1, 2]
    assert schedule.lowest == 0


@pytest.mark.parametrize("value", [0.3, "0.3", "3e-1", 1, 0])
def test_a_number_is_a_constant(value):
    schedule = read_schedule("w", value)
    assert schedule.is_constant
    assert schedule.canonical() == schedule.at(0.7) == float(value)


def test_one_schedule_has_one_identity():
    same = [TrainConfig(ablated_weight=w) for w in ("0.03@0.65:1@0.95", " 3e-2@.65:1.0@.950")]
    assert same[0].ablated_weight == "0.03@0.65:1.0@0.95"
    assert same[0].hash() == same[1].hash() != TrainConfig(ablated_weight="0.03@0.65:1@0.9").hash()
    assert TrainConfig(ablated_weight="0.5").hash() == TrainConfig(ablated_weight=0.5).hash()
    assert same[0].to_dict()["ablated_weight"] == "0.03@0.65:1.0@0.95"


def test_shares_are_of_the_steps_of_the_run():
    config = TrainConfig(steps=20, ablated_weight="0@0.5:1@1.0")
    found = [config.ablated_weight_at(step) for step in (0, 10, 15, 19)]
    assert found == pytest.approx([0, 0, 0.5, 0.9])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "1@",
        "@0.5",
        "1@x:2@0.5",
        "1@0.5",
        "1@0.5:2@0.5",
        "1@0.6:2@0.5",
        "1@-0.1:2@0.5",
        "1@0.5:2@1.1",
        "1@nan:2@0.5",
        "nan@0:1@1",
        "-1@0:1@1",
        "1@0:inf@1",
        "1@0::2@1",
        "1@0:2@1:",
        "1@0@1:2@1",
        -1,
        "-1",
        math.nan,
        math.inf,
        True,
        None,
        [1],
        {"a": 1},
        1j,
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(value):
    with pytest.raises(UserError, match="ablated_weight") as caught:
        read_schedule("ablated_weight", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, "0@0.5:1@1"])
def test_a_loss_that_is_nothing_is_refused_before_training(weight):
    with pytest.raises(UserError, match="must not all be 0"):
        TrainConfig(clean_weight=0.0, ablated_weight=weight)
