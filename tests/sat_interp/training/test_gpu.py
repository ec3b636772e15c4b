"""Training on an accelerator gives the numbers of the CPU; the same tests hold the CPU to float64.

``pytest -m gpu`` runs them on the accelerator, and skips them, with the reason, without one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.training.config import TrainConfig
from sat_interp.training.loss import LossWeights, training_loss
from sat_interp.training.train import train
from tests.sat_interp.training import compiled
from tests.sat_interp.training.test_resume import interrupted, resumed

WEIGHTS = LossWeights(1.0, 1.0, 0.1)


@pytest.fixture(params=["none", "local", "global"])
def exact(request: pytest.FixtureRequest) -> SelfAblatingTransformer:
    """A model in float64 on the CPU: the truth."""
    torch.manual_seed(3)
    shape = gpt_neo_config(
        n_layers=3, d_model=32, n_heads=4, d_vocab=97, n_ctx=40, initializer_range=0.2
    )
    shape.dtype = torch.float64
    ablation = SelfAblationConfig(variant=request.param, k_attention=3, k_neurons=5)
    return SelfAblatingTransformer(shape, ablation)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(97, (5, 41), generator=torch.Generator().manual_seed(0))


def moved(
    model: SelfAblatingTransformer, device: torch.device, dtype: torch.dtype = torch.float32
) -> SelfAblatingTransformer:
    return copy.deepcopy(model).to(dtype).to(device)


def gradients(
    model: SelfAblatingTransformer, windows: torch.Tensor, weights: LossWeights = WEIGHTS
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradient of every trained parameter, in float64 on the CPU."""
    model.zero_grad()
    total = training_loss(model, windows.to(model.W_E.device), weights).total
    total.backward()
    found = {
        name: parameter.grad.double().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return float(total.detach()), found


def test_both_streams_and_their_masks(
    exact: SelfAblatingTransformer, windows: torch.Tensor, device: torch.device
) -> None:
    own = moved(exact, device)
    with torch.no_grad():
        assert torch.allclose(
            own(windows[:, :-1].to(device)).double().cpu(), exact(windows[:, :-1]), atol=2e-4
        )
        if not exact.ablation.is_gated:
            return
        one, other = exact.dual(windows[:, :-1]), own.dual(windows[:, :-1].to(device))
    assert torch.equal(other.attention_masks.cpu().double(), one.attention_masks)
    assert torch.equal(other.neuron_masks.cpu().double(), one.neuron_masks)
    assert torch.allclose(other.ablated_logits.cpu().double(), one.ablated_logits, atol=2e-4)


def test_the_loss_and_its_gradients(
    exact: SelfAblatingTransformer, windows: torch.Tensor, device: torch.device
) -> None:
    loss, truth = gradients(exact, windows)
    own, found = gradients(moved(exact, device), windows)
    assert own == pytest.approx(loss, rel=1e-5)
    assert found.keys() == truth.keys()
    for name, gradient in truth.items():
        assert float((found[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6, name


def test_bfloat16_is_near(
    exact: SelfAblatingTransformer, windows: torch.Tensor, device: torch.device
) -> None:
    """The loss of both streams; the gradient of the clean one, whose units no near tie decides."""
    clean = LossWeights(1.0, 0.0)
    loss, _ = gradients(exact, windows)
    _, truth = gradients(exact, windows, clean)
    model = moved(exact, device)
    with torch.autocast(device.type, torch.bfloat16):
        own, _ = gradients(model, windows)
        _, found = gradients(model, windows, clean)
    assert own == pytest.approx(loss, rel=0.02)
    one, other = (torch.cat([side[name].flatten() for name in truth]) for side in (truth, found))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.99


@pytest.mark.slow
def test_the_compiler_follows_the_loss() -> None:
    """On the CPU, without code made by the compiler: the traced graph alone."""
    assert compiled.apart("cpu", "local", "aot_eager") < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["none", "local", "global"])
def test_the_compiled_loss_is_the_same(accelerator_device: torch.device, variant: str) -> None:
    assert compiled.apart(str(accelerator_device), variant, "inductor") < 1e-3


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"weight_density": 0.5}])
def test_a_run_is_that_of_the_cpu(
    tiny: Callable[..., TrainConfig],
    tmp_path: Path,
    settings: dict[str, Any],
    device: torch.device,
) -> None:
    shared = {"variant": "local", "steps": 12, "log_every": 1, **settings}
    here = tiny(**{**shared, "precision": "float32"}, out=str(tmp_path / "cpu"))
    there = tiny(**shared, device=str(device), out=str(tmp_path / "there"))
    losses = []
    for config in (here, there):
        train(config)
        lines = (Path(str(config.out)) / "log.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        losses.append([line["clean"] for line in logged if "clean" in line])
    tolerance = 0.02 if "precision" in settings else 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_an_interrupted_run_goes_on_there(
    tiny: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    settings = {"variant": "global", "device": str(device)}
    alone, broken = (tiny(out=str(tmp_path / name), **settings) for name in ("alone", "broken"))
    whole = train(alone).summary["final"]["clean_loss"]
    interrupted(broken, monkeypatch, step=10)
    again = train(resumed(dataclasses.replace(broken))).summary["final"]["clean_loss"]
    assert again == pytest.approx(whole, rel=0 if device.type == "cpu" else 1e-3)
