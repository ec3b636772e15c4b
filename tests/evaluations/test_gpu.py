"""Every evaluation on an accelerator: the CPU's figures, within what float32 allows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluations.core.spec import Measurement
from tests.evaluations.test_devices import MEASURES, TIMES


def differences(here: Measurement, there: Measurement, tolerance: float) -> list[str]:
    """The metrics that differ, each with both values."""
    found = []
    for one, other in zip(here.metrics, there.metrics, strict=True):
        assert one.name == other.name
        if one.name in TIMES:
            continue
        is_same = (
            one.value is None and other.value is None
            if one.value is None or other.value is None
            else other.value == pytest.approx(one.value, rel=tolerance, abs=tolerance)
        )
        if not is_same:
            found.append(f"{one.name}: {one.value} on the CPU, {other.value} there")
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("name", list(MEASURES))
def test_every_evaluation_gives_the_figures_of_the_cpu(
    name: str,
    variant: str,
    make_model: Any,
    text: Any,
    tmp_path: Path,
    accelerator_device: torch.device,
) -> None:
    model = make_model(variant)
    here = MEASURES[name](copy.deepcopy(model), text, tmp_path / "cpu")
    there = MEASURES[name](copy.deepcopy(model).to(accelerator_device), text, tmp_path / "there")
    assert differences(here, there, 1e-2) == []


def test_a_difference_is_named(make_model: Any, text: Any, tmp_path: Path) -> None:
    model = make_model("local")
    here = MEASURES["lm"](model, text, tmp_path / "one")
    assert differences(here, here, 0.0) == []
    with torch.no_grad():
        model.W_E.mul_(1.5)
    other = MEASURES["lm"](model, text, tmp_path / "other")
    assert any(line.startswith("perplexity: ") for line in differences(here, other, 1e-2))
