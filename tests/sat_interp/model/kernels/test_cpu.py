"""The compiled kernels against PyTorch in float64: values, gradients, bad numbers, no compiler."""

from __future__ import annotations

import logging
import shutil
import subprocess

import pytest
import torch
from torch.nn import functional as F

from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.model import attention
from sat_interp.model.kernels import cpu as native
from sat_interp.training.loss import LossWeights, training_loss

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def _fresh_library():
    yield
    native.library.cache_clear()


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _explicit(own, read, streams, scale):
    """Row by row, position by position, in float64."""
    rows, pos = own.shape[:2]
    past = own[: rows // streams] if read is None else read
    z = []
    for row in range(rows):
        q, own_k, own_v = own[row].unbind(1)  # (pos, heads, d_head)
        _, k, v = past[row % len(past)].unbind(1)
        for i in range(pos):
            keys = torch.cat([k[:i], own_k[i : i + 1]])
            values = torch.cat([v[:i], own_v[i : i + 1]])
            scores = torch.einsum("hd,jhd->hj", q[i], keys) * scale
            z.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), values))
    return torch.stack(z).view(rows, pos, *own.shape[3:])


@needs_compiler
def test_the_kernels_are_there_where_a_compiler_is():
    assert native.library() is not None
    assert native.takes("gelu_new", torch.zeros(1))
    assert not native.takes("gelu_new", torch.zeros(1, dtype=torch.float64))


@needs_compiler
@pytest.mark.parametrize("d_head", native.D_HEADS)
@pytest.mark.parametrize("pos", [1, 7, 8, 9, 21])
@pytest.mark.parametrize("kind", ["one stream", "two streams", "another's past"])
def test_attention_and_its_gradients(d_head, pos, kind):
    streams = 2 if kind == "two streams" else 1
    own = _random(4, pos, 3, 2, d_head)
    read = _random(2, pos, 3, 2, d_head, seed=1) if kind == "another's past" else None
    leaves = [x for x in (own, read) if x is not None]
    doubles = [x.double().requires_grad_() for x in leaves]
    singles = [x.clone().requires_grad_() for x in leaves]
    pull = _random(4, pos, 2, d_head, seed=2)
    twin = _explicit(doubles[0], doubles[1] if read is not None else None, streams, 0.7)
    twin.backward(pull.double())
    z, lse = native.attention(singles[0], singles[1] if read is not None else None, streams, 0.7)
    z.backward(pull)
    assert torch.allclose(z.double(), twin, atol=1e-5)
    assert lse.shape == (4, 2, pos)
    for ours, theirs in zip(singles, doubles, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


@needs_compiler
def test_large_scores_and_bad_numbers():
    own = _random(1, 20, 3, 2, 8)
    z, _ = native.attention(own * 100, None, 1, 1.0)
    assert torch.allclose(z.double(), _explicit((own * 100).double(), None, 1, 1.0), atol=1e-3)
    own[0, 4, 1, 0, 3] = torch.nan  # a key of head 0, seen from position 4 on
    z, _ = native.attention(own, None, 1, 1.0)
    assert z[0, 4:, 0].isnan().all()
    assert z[0, :4].isfinite().all()
    assert z[0, :, 1].isfinite().all()


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    own, pull = _random(4, 33, 3, 4, 8), _random(4, 33, 4, 8)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x = own.clone().requires_grad_()
        z, lse = native.attention(x, None, 2, 1.0)
        z.backward(pull)
        found.append((z.detach(), lse, x.grad, native.gelu_new(own)))
    torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@needs_compiler
def test_the_operators_keep_the_rules_of_operators():
    own = _random(2, 5, 3, 2, 8).requires_grad_()
    torch.library.opcheck(native.attention, (own, None, 2, 1.0))
    torch.library.opcheck(native.gelu_new, (_random(3, 5).requires_grad_(),))
    torch.library.opcheck(native.exponentials, (_random(3, 11),))
    # Its values are nobody's: only what is promised of any operator can be looked at.
    promised = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(native.empty_on_large_pages, (_random(2), [3, 5]), test_utils=promised)


@needs_compiler
@pytest.mark.parametrize("width", [1, 7, 8, 61, 10_000])
def test_exponentials_of_what_the_largest_leaves(width):
    logits = 5 * _random(6, width)
    twin = logits.double()
    ours = logits.clone()
    tops, totals = native.exponentials(ours)
    assert torch.equal(tops, logits.amax(1))
    expected = (twin - twin.amax(1, keepdim=True)).exp()
    assert torch.allclose(ours.double(), expected, rtol=5e-6, atol=1e-30)
    assert torch.allclose(totals.double(), expected.sum(1), rtol=5e-6)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 9, 16])  # in a vector, and in what is left over
def test_a_logit_that_is_no_number_shows_in_the_total(bad, where):
    logits = _random(2, 17)
    logits[1, where] = bad
    _, totals = native.exponentials(logits)
    assert totals[0].isfinite()
    assert totals[1].isnan()


@needs_compiler
def test_large_pages_hold_what_is_written_to_them():
    large = native.empty_on_large_pages(_random(1), [3_000, 1_001])
    assert large.shape == (3_000, 1_001)
    assert large.dtype == torch.float32
    assert torch.equal(large.fill_(2.5), torch.full((3_000, 1_001), 2.5))


@needs_compiler
def test_gelu_and_its_gradient_over_the_whole_range():
    x = torch.cat([torch.linspace(-30, 30, 1001), torch.tensor([0.0, -1e4, 1e4, torch.nan])])
    twin = x.double().requires_grad_()
    F.gelu(twin, approximate="tanh").sum().backward()
    ours = x.clone().requires_grad_()
    y = native.gelu_new(ours)
    y.sum().backward()
    expected = F.gelu(x.double(), approximate="tanh")
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.allclose(ours.grad.double(), twin.grad, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("d_head", [8, 12])  # 12 has no kernel: PyTorch's is taken
@pytest.mark.parametrize("variant", ["none", "local", "global"])
def test_a_training_step_is_the_same_with_and_without(variant, d_head, monkeypatch):
    shape = gpt_neo_config(n_layers=2, d_model=2 * d_head, n_heads=2, d_vocab=31, n_ctx=12)
    torch.manual_seed(0)
    model = SelfAblatingTransformer(
        shape, SelfAblationConfig(variant=variant, k_attention=2, k_neurons=2)
    )
    windows = torch.randint(31, (3, 13))

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        losses = training_loss(model, windows, LossWeights())
        losses.total.backward()
        return [losses.total.detach()] + [
            p.grad.clone() for p in model.parameters() if p.requires_grad
        ]

    with_kernels = step()
    monkeypatch.setattr(native, "library", lambda: None)
    for ours, torchs in zip(with_kernels, step(), strict=True):
        assert torch.allclose(ours, torchs, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_bfloat16_goes_through_in_float32():
    both = _random(4, 9, 3, 2, 8)
    coarse = attention.joint_attention(both.bfloat16(), 1.0)
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - attention.joint_attention(both, 1.0)).abs().max() < 0.05


def test_the_kernels_can_be_switched_off(monkeypatch):
    native.library.cache_clear()
    monkeypatch.setenv("SAT_INTERP_NATIVE", "0")
    assert not native.takes("gelu_new", torch.zeros(1))


def test_without_a_compiler_it_is_said_and_done_without(monkeypatch, caplog, tmp_path):
    native.library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert not native.takes("gelu_new", torch.zeros(1))
        assert not native.takes("gelu_new", torch.zeros(1))
    assert caplog.text.count("no C++ compiler") == 1


@needs_compiler
def test_a_compiler_that_fails_costs_speed_only(monkeypatch, caplog, tmp_path):
    native.library.cache_clear()
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-no-such-flag-at-all",))
    assert not native.takes("gelu_new", torch.zeros(1))
    assert "the CPU kernels cannot be built" in caplog.text
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_it_is_compiled_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path))
    ran, real = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: (ran.append("-o" in a[0]), real(*a, **k))[1]
    )
    for _ in range(2):
        native.library.cache_clear()
        assert native.library() is not None
    assert ran == [False, True, False]  # version, compilation; version
    assert len(list(tmp_path.rglob("kernels-*.so"))) == 1
