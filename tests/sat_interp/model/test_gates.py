"""k-winners-take-all: values by hand, gradients by a plain twin, bounds at ties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.gates import (
    MIN_SPREAD,
    TEMPERATURE_FLOOR,
    GateScores,
    jacobian_bound,
    k_winners,
    random_winners,
    soft_weights,
)
from sat_interp.model.shape import gpt_neo_config
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.loss import LossWeights, training_loss
from tests.sat_interp.model.plain import plain_mask


def test_softmax_weights_by_hand():
    # k = 2: gamma = (2 + 1) / 2, T = 2 - 1 = 1, so w is softmax([3, 2, 1, 0]).
    w, mask = soft_weights(torch.tensor([3.0, 0.0, 2.0, 1.0], dtype=torch.float64), 2)
    e = [math.exp(x) for x in (3, 0, 2, 1)]
    assert torch.allclose(w, torch.tensor([x / sum(e) for x in e], dtype=torch.float64))
    assert mask.tolist() == [1, 0, 1, 0]


def test_sigmoid_weights_by_hand():
    # k = 1, temperature 0.5: gamma = 3, T = 0.5 * 2 = 1; s = sigmoid(1, -1, -2), sum rescaled to 1.
    w, _ = soft_weights(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), 1, "sigmoid", 0.5)
    s = [1 / (1 + math.exp(-x)) for x in (1, -1, -2)]
    assert torch.allclose(w, torch.tensor([x / sum(s) for x in s], dtype=torch.float64))


@pytest.mark.parametrize("soft", ["softmax", "sigmoid"])
@pytest.mark.parametrize("forward_mask", ["hard", "soft"])
@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_value_and_gradient_equal_the_plain_form(soft, forward_mask, k):
    config = SelfAblationConfig(soft=soft, forward_mask=forward_mask, temperature=0.7)
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    direction = torch.randn(5, 7, dtype=torch.float64)
    result = k_winners(ours, k, config)
    twin = torch.stack([plain_mask(row, k, config) for row in plain])
    assert torch.allclose(result, twin, atol=1e-12)
    if k == 7:
        assert not result.requires_grad  # nothing is ablated, nothing to learn
        return
    (result * direction).sum().backward()
    (twin * direction).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-10)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_hard_masks_hold_exactly_k_ones_even_at_ties(units, k, seed):
    k = min(k, units)
    scores = torch.randint(0, 3, (4, units), generator=torch.Generator().manual_seed(seed))
    scores = scores.float().requires_grad_()  # three values: ties everywhere
    mask = k_winners(scores, k, SelfAblationConfig())
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum(-1) == k).all()
    lowest_kept = scores.masked_fill(mask == 0, math.inf).amin(-1)
    assert (scores <= lowest_kept[:, None])[mask == 0].all()


PULL = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def near_tie(k, gap):
    """40 scores from -2 to 2, shuffled, the k-th and (k+1)-th ``gap`` apart."""
    x = torch.linspace(2, -2, 40, dtype=torch.float64)
    x[k] = x[k - 1] - gap
    return x[torch.randperm(40, generator=torch.Generator().manual_seed(k))]


def equations(x, k, soft, temperature):
    """Equations 1 to 3, and the released code's sigmoid, without any floor."""
    ordered = x.sort(descending=True).values
    gamma = (ordered[k - 1] + ordered[k]) / 2
    T = temperature * (ordered[k - 1] - ordered[k])
    if soft == "softmax":
        return F.softmax((x - gamma) / T, dim=0)
    s = torch.sigmoid((x - gamma) / T)
    return k * s / s.sum()


def gradient(weights, scores, pull):
    leaf = scores.clone().requires_grad_()
    (weights(leaf) * pull).sum().backward()
    return leaf.grad.double()


@pytest.mark.parametrize("soft", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("gap", [1e-2, 5e-3, 2e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 0.0])
def test_near_ties_have_the_gradient_of_the_equations(soft, temperature, k, gap):
    scores, pull = near_tie(k, gap), PULL
    ours = gradient(lambda x: soft_weights(x, k, soft, temperature)[0], scores, pull)
    settings = SelfAblationConfig(soft=soft, temperature=temperature)
    in_float32 = gradient(lambda x: k_winners(x, k, settings), scores.float(), pull.float())
    is_held = temperature * gap < 4 * TEMPERATURE_FLOOR  # the scores' spread is 4
    if gap:
        paper = gradient(lambda x: equations(x, k, soft, temperature), scores, pull)
        rounding = max(1e-8, 1e-15 / gap**2)  # the equations' own in float64
        assert torch.allclose(ours, paper, rtol=1e-6, atol=rounding)
    if gap >= 1e-5:  # scores in float32 still differ; the kernel, where there is one
        rounded = scores.float().double()
        paper = gradient(lambda x: equations(x, k, soft, temperature), rounded, pull)
        assert torch.allclose(in_float32, paper, rtol=1e-3, atol=2e-3)
    if is_held:
        assert not ours.any()
        assert not in_float32.any()


def test_a_detached_floor_gives_near_ties_the_gradient_of_a_constant_temperature():
    scores, pull = near_tie(1, 1e-4), PULL
    old = gradient(lambda x: soft_weights(x, 1, near_ties="detached_floor")[0], scores, pull)
    assert torch.allclose(old, gradient(lambda x: F.softmax(x / 4e-4, dim=0), scores, pull))
    assert old.norm() > 10


@pytest.mark.parametrize("near_ties", ["no_gradient", "detached_floor"])
@pytest.mark.parametrize("soft", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["all tied", "k and k+1 tied", "nearly tied", "apart"])
def test_jacobian_stays_under_its_stated_bound(soft, scale, kind, near_ties):
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = {
        "all tied": torch.zeros_like(x),
        "k and k+1 tied": x.sort().values.index_fill(0, torch.tensor([8, 7]), 0.9),
        "nearly tied": torch.cat([x[:8].abs() + 1, x[8:].abs() * 1e-9]),
        "apart": torch.arange(12, dtype=torch.float64),
    }[kind] * scale
    jacobian = torch.func.jacrev(lambda s: soft_weights(s, 4, soft, 1.3, near_ties)[0])(x)
    assert jacobian.isfinite().all()
    ordered = x.sort(descending=True).values
    floor = TEMPERATURE_FLOOR * max(float(x.max() - x.min()), MIN_SPREAD)
    T = max(1.3 * float(ordered[3] - ordered[4]), floor)
    norm = float(torch.linalg.matrix_norm(jacobian, ord=2))
    assert norm <= jacobian_bound(12, 1.3, soft, T)
    if near_ties == "no_gradient" and kind in ("all tied", "k and k+1 tied"):
        assert norm == 0


def test_random_winners_are_uniform_k_subsets():
    torch.manual_seed(0)
    mask = random_winners(torch.ones(20_000, 5), 2)
    assert (mask.sum(-1) == 2).all()
    # Each unit wins with probability 2/5: five standard deviations of a share over 20,000 draws.
    assert (mask.mean(0) - 0.4).abs().max() < 5 * math.sqrt(0.4 * 0.6 / 20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_in_full_precision_under_autocast(dtype):
    torch.manual_seed(0)
    scores = GateScores(16, 16, 40, SelfAblationConfig(variant="local"), dtype)
    for weight in scores.parameters():
        torch.nn.init.normal_(weight)
    state = torch.randn(2, 5, 16, dtype=dtype)
    plain = scores(state)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(state)
        from_half = scores(state.bfloat16())
    for expected, ours, half in zip(plain, found, from_half, strict=True):
        assert ours.dtype == half.dtype == dtype
        assert torch.equal(ours, expected)


def gradient_of_gates(variant, seed, is_half):
    torch.manual_seed(seed)
    cfg = gpt_neo_config(
        n_layers=2, d_model=32, n_heads=4, d_mlp=128, d_vocab=61, n_ctx=32, initializer_range=0.1
    )
    ablation = SelfAblationConfig(variant=variant, k_attention=4, k_neurons=4)
    model = SelfAblatingTransformer(cfg, ablation)
    windows = torch.randint(61, (16, 33))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        loss = training_loss(model, windows, LossWeights()).total
    loss.backward()
    gates = [
        p.grad
        for name, p in model.named_parameters()
        if "W_attention" in name or "W_neurons" in name
    ]
    return torch.cat([grad.flatten() for grad in gates]).norm().item()


@pytest.mark.parametrize("variant", ["local", "global"])
def test_autocast_leaves_the_gradient_of_the_gates_its_size(variant):
    # One batch's norm hangs on its nearest tie, which any rounding of the stream moves: hence the
    # geometric mean over several. Scores in bfloat16 make it 1.5 (global) and 1.8 (local).
    ratios = [
        gradient_of_gates(variant, seed, True) / gradient_of_gates(variant, seed, False)
        for seed in range(8)
    ]
    assert 1 / 1.3 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.3
