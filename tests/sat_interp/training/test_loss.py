"""The fused cross-entropy against torch's own, and its memory bound."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sat_interp.errors import UserError
from sat_interp.training.loss import LossWeights, token_losses, unembedding_cross_entropy


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
def test_value_and_gradients_equal_cross_entropy(chunk):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    W_U = torch.randn(4, 23, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(23, (10,), generator=generator)
    total, means = unembedding_cross_entropy(states, W_U, targets, (0.5, 2.0), chunk)
    (3 * total).backward()
    ours = states.grad.clone(), W_U.grad.clone()
    states.grad = W_U.grad = None
    expected = [F.cross_entropy(stream @ W_U, targets) for stream in states]
    assert torch.allclose(means, torch.stack(expected).detach(), atol=1e-12)
    plain = 0.5 * expected[0] + 2.0 * expected[1]
    assert total.item() == pytest.approx(plain.item(), abs=1e-12)
    (3 * plain).backward()
    assert torch.allclose(ours[0], states.grad, atol=1e-12)
    assert torch.allclose(ours[1], W_U.grad, atol=1e-12)


def test_uniform_logits_cost_log_of_the_vocabulary():
    losses = token_losses(torch.zeros(7, 3), torch.randn(3, 50), torch.arange(7), chunk=2)
    assert torch.allclose(losses, torch.full((7,), 50.0).log())


def test_logits_are_never_held_beyond_the_chunk():
    """No tensor of the step has more than chunk x vocabulary elements."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    states = torch.randn(2, 64, 4, requires_grad=True)
    W_U = torch.randn(4, 300, requires_grad=True)
    with Watch():
        total, _ = unembedding_cross_entropy(
            states, W_U, torch.zeros(64, dtype=torch.long), (1.0, 1.0), 8
        )
        total.backward()
    assert largest == 8 * 300


def test_autocast_products_are_bfloat16_and_close():
    states = torch.randn(1, 40, 16, requires_grad=True)
    W_U = torch.randn(16, 60, requires_grad=True)
    targets = torch.randint(60, (40,))
    exact = F.cross_entropy(states[0] @ W_U, targets)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = unembedding_cross_entropy(states, W_U, targets, (1.0,))
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.02)
    assert states.grad.dtype == W_U.grad.dtype == torch.float32


@pytest.mark.parametrize("weights", [(-1, 1, 0), (0, 0, 0), (float("nan"), 1, 0)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(UserError, match="loss weights"):
        LossWeights(*weights)
