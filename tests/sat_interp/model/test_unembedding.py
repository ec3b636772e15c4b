"""Logits and cross-entropy in blocks, against torch's own, and the memory they hold."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sat_interp._util.errors import UserError
from sat_interp.model import unembedding
from sat_interp.model.unembedding import (
    cross_entropy,
    log_normaliser,
    logits,
    rows_of_a_chunk,
    token_losses,
)


@pytest.fixture(params=[4, 7, 23, 1000])
def block(request, monkeypatch) -> int:
    monkeypatch.setattr(unembedding, "BLOCK", request.param)
    return request.param


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_equal_cross_entropy(chunk, block, tied, dtype):
    states = _random(2, 10, 4, dtype=dtype).requires_grad_()
    W_U = (_random(23, 4, dtype=dtype).T if tied else _random(4, 23, dtype=dtype)).requires_grad_()
    targets = torch.randint(23, (10,), generator=torch.Generator().manual_seed(0))
    total, means = cross_entropy(states, W_U, targets, (0.5, 2.0), chunk)
    (3 * total).backward()
    ours = states.grad.clone(), W_U.grad.clone()
    states.grad = W_U.grad = None
    expected = [F.cross_entropy(stream @ W_U, targets) for stream in states]
    close = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.allclose(means, torch.stack(expected).detach(), atol=close)
    plain = 0.5 * expected[0] + 2.0 * expected[1]
    assert total.item() == pytest.approx(plain.item(), abs=close)
    (3 * plain).backward()
    assert torch.allclose(ours[0], states.grad, atol=close)
    assert torch.allclose(ours[1], W_U.grad, atol=close)


def test_blocks_far_apart_in_size_neither_overflow_nor_vanish(block):
    """Logits of -2,000 to 2,000: every block's own largest keeps its exponentials in range."""
    states = torch.tensor([[[1.0], [-1.0], [0.001]]], requires_grad=True)
    W_U = torch.linspace(-2000, 2000, 23)[None].requires_grad_()
    targets = torch.tensor([0, 0, 11])
    total, _ = cross_entropy(states, W_U, targets, (1.0,))
    total.backward()
    twin, twin_W_U = (x.detach().double().requires_grad_() for x in (states, W_U))
    expected = F.cross_entropy(twin[0] @ twin_W_U, targets)
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(states.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)
    assert torch.allclose(W_U.grad.double(), twin_W_U.grad, atol=1e-6)
    found = token_losses(states.detach()[0], W_U.detach(), targets)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_block_without_a_finite_logit_counts_for_nothing(block):
    """As of a padded vocabulary, whose last entries a bias of -inf takes out."""
    for dtype in (torch.float32, torch.float64):  # the kernel, and PyTorch's operators
        states, W_U, targets = (
            _random(6, 4, dtype=dtype),
            _random(4, 23, dtype=dtype),
            torch.arange(6),
        )
        b_U = torch.zeros(23, dtype=dtype)
        b_U[7:] = -torch.inf
        expected = F.cross_entropy(states @ W_U + b_U, targets, reduction="none")
        assert torch.allclose(token_losses(states, W_U, targets, b_U), expected, atol=1e-5)


def test_the_bias_counts_in_training_too(block):
    states, W_U, b_U = _random(1, 10, 4).requires_grad_(), _random(4, 23), _random(23)
    targets = torch.arange(10)
    total, _ = cross_entropy(states, W_U, targets, (1.0,), 3, b_U)
    total.backward()
    ours, states.grad = states.grad.clone(), None
    expected = F.cross_entropy(states[0] @ W_U + b_U, targets)
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.allclose(ours, states.grad, atol=1e-12)


@pytest.mark.parametrize("offset", [100.0, -10_000.0])
def test_an_offset_common_to_all_logits_costs_no_digits(block, offset):
    states, W_U, targets = torch.zeros(6, 4), _random(4, 23, dtype=torch.float32), torch.arange(6)
    states[:, 0] = 1
    b_U = torch.full((23,), offset)
    whole = (states @ W_U + b_U).double()  # the logits' own rounding is not at issue
    expected = F.cross_entropy(whole, targets, reduction="none")
    found = token_losses(states, W_U, targets, b_U)
    assert torch.allclose(found.double(), expected, atol=2e-6)


@pytest.mark.parametrize("wrong", [-1, -100, 23])
def test_a_target_outside_the_vocabulary_is_refused(wrong):
    targets = torch.tensor([0, wrong])
    with pytest.raises(UserError, match=f"token number {wrong} is not in the vocabulary of 23"):
        token_losses(torch.randn(2, 4), torch.randn(4, 23), targets)
    with pytest.raises(UserError, match=f"token number {wrong} is not in the vocabulary of 23"):
        cross_entropy(torch.randn(1, 2, 4), torch.randn(4, 23), targets, (1.0,))


def test_there_is_no_second_derivative():
    states = torch.randn(1, 2, 4, requires_grad=True)
    total, _ = cross_entropy(states, torch.randn(4, 23), torch.tensor([0, 1]), (1.0,))
    (grad,) = torch.autograd.grad(total, states, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
def test_token_losses_with_bias_and_soft_cap(block, soft_cap, monkeypatch):
    monkeypatch.setattr(unembedding, "CHUNK", 3)
    states, W_U, b_U, targets = _random(10, 4), _random(4, 23), _random(23), torch.arange(10)
    whole = states @ W_U + b_U
    whole = soft_cap * torch.tanh(whole / soft_cap) if soft_cap else whole
    expected = F.cross_entropy(whole, targets, reduction="none")
    found = token_losses(states, W_U, targets, b_U, soft_cap)
    assert torch.allclose(found, expected, atol=1e-12)


def test_uniform_logits_cost_log_of_the_vocabulary(block):
    losses = token_losses(torch.zeros(7, 3), torch.randn(3, 50), torch.arange(7))
    assert torch.allclose(losses, torch.full((7,), 50.0).log())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_no_number_shows_in_its_own_loss_alone(block, bad):
    states = torch.ones(3, 4)
    states[1, 2] = bad
    losses = token_losses(states, _random(4, 23, dtype=torch.float32), torch.arange(3))
    assert losses.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("rows", [(5,), (2, 3), (2, 1, 4)])
def test_logits_equal_one_product(block, rows, monkeypatch):
    monkeypatch.setattr(unembedding, "CHUNK", 2)
    states, W_U, b_U = _random(*rows, 4), _random(4, 23), _random(23)
    assert torch.allclose(logits(states, W_U, b_U), states @ W_U + b_U, atol=1e-12)
    leaf = states.clone().requires_grad_()
    logits(leaf, W_U, b_U).sum().backward()
    assert torch.allclose(leaf.grad, W_U.sum(1).expand_as(leaf), atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (0, 5, 4), (2, 0, 4)])
def test_logits_of_one_state_and_of_none(block, shape):
    states, W_U, b_U = _random(*shape), _random(4, 23), _random(23).requires_grad_()
    for bias in (b_U, b_U.detach()):  # with and without a gradient
        assert torch.allclose(logits(states, W_U, bias), states @ W_U + b_U, atol=1e-12)


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor any operation has made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_logits_are_never_held_beyond_the_chunk(block):
    """No tensor of the step has more than chunk x vocabulary elements."""
    states = torch.randn(2, 64, 4, requires_grad=True)
    W_U = torch.randn(4, 300, requires_grad=True)
    with _Largest() as largest:
        total, _ = cross_entropy(states, W_U, torch.zeros(64, dtype=torch.long), (1.0, 1.0), 8)
        total.backward()
    assert largest.elements == 8 * 300


def test_losses_without_gradient_hold_one_block(block, monkeypatch):
    monkeypatch.setattr(unembedding, "CHUNK", 8)
    states, W_U = torch.randn(64, 4), torch.randn(4, 300)
    with _Largest() as largest:
        token_losses(states, W_U, torch.zeros(64, dtype=torch.long))
    assert largest.elements <= max(8 * min(block, 300), W_U.numel())


@pytest.mark.parametrize("size", [0.3, 3.0])  # a loss near log 60, and one near 0
def test_autocast_products_are_bfloat16_and_close(block, size):
    W_U = (size * _random(16, 60, dtype=torch.float32)).requires_grad_()
    targets = torch.randint(60, (40,), generator=torch.Generator().manual_seed(0))
    states = W_U.detach().T[targets][None] * min(size, 1)  # each points to its target
    states.requires_grad_()
    exact = F.cross_entropy(states[0] @ W_U, targets)
    exact.backward()
    twin = [x.grad.clone() for x in (states, W_U)]
    states.grad = W_U.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = cross_entropy(states, W_U, targets, (1.0,))
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.02, abs=1e-4)
    for ours, theirs in zip((states, W_U), twin, strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs).norm() < 0.03 * theirs.norm() + 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("d_vocab", [7, 2500])
def test_the_log_normaliser_and_its_gradient(dtype, tolerance, d_vocab):
    generator = torch.Generator().manual_seed(0)
    states, W_U, b_U = (
        3 * torch.randn(shape, generator=generator, dtype=dtype)
        for shape in ((700, 12), (12, d_vocab), (d_vocab,))
    )
    states.requires_grad_()
    weights = torch.randn(700, generator=generator, dtype=dtype)
    found = log_normaliser(states, W_U, b_U)
    (gradient,) = torch.autograd.grad((weights * found).sum(), states)
    wanted = (states @ W_U + b_U).logsumexp(-1)
    (wanted_gradient,) = torch.autograd.grad((weights * wanted).sum(), states)
    assert torch.allclose(found, wanted, atol=tolerance)
    assert torch.allclose(gradient, wanted_gradient, atol=10 * tolerance)
    assert log_normaliser(states.detach()[:0], W_U, b_U).shape == (0,)


def test_an_accelerator_holds_a_gigabyte_of_logits_and_a_cpu_512_rows():
    W_U = torch.empty(2, 50_257)
    assert rows_of_a_chunk(W_U) == 512
    there = W_U.to("meta")
    assert rows_of_a_chunk(there) == 2**30 // (4 * 50_257) == 5341
    assert 256 * 255 / rows_of_a_chunk(there) < 13  # chunks of the paper's shape, batches of 256
    assert rows_of_a_chunk(torch.empty(2, 10**6, device="meta")) == 512
