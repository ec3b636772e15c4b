"""The plain step that ours is timed against computes the same thing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.plain import plain_loss
from benchmarks.training import best_times, products
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.training.loss import LossWeights, training_loss


@pytest.fixture(params=["none", "local", "global"])
def model(request):
    torch.manual_seed(1)
    shape = gpt_neo_config(
        n_layers=2, d_model=16, n_heads=4, d_vocab=23, n_ctx=9, initializer_range=0.5
    )
    shape.dtype = torch.float64
    return SelfAblatingTransformer(
        shape, SelfAblationConfig(variant=request.param, k_attention=3, k_neurons=5)
    )


def test_the_plain_step_has_our_loss_and_our_gradients(model):
    windows = torch.randint(23, (3, 10))
    found = []
    for loss in (plain_loss, lambda m, w: training_loss(m, w, LossWeights()).total):
        model.zero_grad()
        total = loss(model, windows)
        total.backward()
        trained = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found.append([total.detach(), *trained])
    for plain, ours in zip(*found, strict=True):
        assert torch.allclose(plain, ours, rtol=1e-8, atol=1e-10)


def test_the_floor_counts_every_product_with_a_weight(model):
    # 2 FLOP a weight and token and stream, but for the gates, which one stream reads
    weights = {n: p.numel() for n, p in model.named_parameters() if "W_" in n and "pos" not in n}
    gates = sum(size for name, size in weights.items() if "gates" in name)
    streams = 2 if model.ablation.is_gated else 1
    tokens = 3 * 256
    counted = sum(2 * n * rows * a * b for n, rows, a, b in products(model, 3))
    assert counted == 2 * tokens * (streams * (sum(weights.values()) - gates) + gates)


def test_contestants_take_turns():
    order = []
    best_times({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0, least=3)
    assert order == ["a", "b"] * 4
