"""The fused mixed attention against the explicit one: values and every gradient."""

from __future__ import annotations

import pytest
import torch

from sat_interp.model.attention import mixed_attention, mixed_scores, mixed_values


def _inputs(pos: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(pos)
    return [
        torch.randn(2, 3, pos, 8, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(5)
    ]


def _explicit(q, ck, cv, ok, ov, scale):
    return mixed_values(mixed_scores(q, ck, ok, scale).softmax(-1), cv, ov)


@pytest.mark.parametrize("pos", [1, 2, 7, 130])
@pytest.mark.parametrize("scale", [1.0, 0.35])
def test_fused_equals_explicit(pos, scale):
    fused = [x.clone().requires_grad_() for x in _inputs(pos)]
    plain = [x.clone().requires_grad_() for x in _inputs(pos)]
    direction = torch.randn(2, 3, pos, 8, dtype=torch.float64)
    z, twin = mixed_attention(*fused, scale), _explicit(*plain, scale)
    assert torch.allclose(z, twin, atol=1e-12)
    (z * direction).sum().backward()
    (twin * direction).sum().backward()
    for ours, theirs in zip(fused, plain, strict=True):
        # A single position has no past: autograd leaves None, the fused path zeros.
        expected = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        assert torch.allclose(found, expected, atol=1e-11)


def test_strided_inputs_are_read_right():
    q, ck, cv, ok, ov = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in _inputs(6))
    assert torch.allclose(
        mixed_attention(q, ck, cv, ok, ov, 1.0), _explicit(q, ck, cv, ok, ov, 1.0), atol=1e-12
    )


def test_bfloat16_stays_near_float64():
    exact = _explicit(*_inputs(20), 1.0)
    coarse = mixed_attention(*_inputs(20, torch.bfloat16), 1.0)
    assert coarse.dtype == torch.bfloat16
    assert (coarse.double() - exact).abs().max() < 0.1


def test_extreme_scores_do_not_overflow():
    q, ck, cv, ok, ov = _inputs(5)
    z = mixed_attention(q * 1e3, ck, cv, ok, ov, 1.0)
    assert z.isfinite().all()
    assert torch.allclose(z, _explicit(q * 1e3, ck, cv, ok, ov, 1.0), atol=1e-9)
