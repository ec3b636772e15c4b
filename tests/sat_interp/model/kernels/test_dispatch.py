"""The choice of a kernel: by device, by operator, by what a module takes."""

from __future__ import annotations

import types

import pytest
import torch

from sat_interp.model import kernels
from sat_interp.model.attention import causal_attention
from sat_interp.model.kernels import kernel


def first() -> None: ...


def second() -> None: ...


def module(**operators: object) -> types.ModuleType:
    """Kernels that take half precision only."""
    made = types.ModuleType("made")
    made.takes = lambda name, tensor: tensor.dtype == torch.float16  # type: ignore[attr-defined]
    vars(made).update(operators)
    return made


def test_a_module_is_asked_for_its_own_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.MODULES, "meta", (module(gelu_new=first),))
    half = torch.zeros(1, dtype=torch.float16)
    assert kernel("gelu_new", half.to("meta")) is first
    assert kernel("gelu_new", half) is not first


def test_what_a_module_lacks_or_refuses_goes_to_the_next_one_or_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = (module(gelu_new=first), module(gelu_new=second, exponentials=second))
    monkeypatch.setitem(kernels.MODULES, "meta", modules)
    half = torch.zeros(1, dtype=torch.float16, device="meta")
    assert kernel("gelu_new", half) is first
    assert kernel("exponentials", half) is second
    assert kernel("k_winners", half) is None
    assert kernel("gelu_new", half.float()) is None


def test_the_model_computes_by_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(own, read, streams, scale):
        return own[:, :, 2] * 0 + 7, None

    monkeypatch.setitem(kernels.MODULES, "cpu", (module(attention=attention),))
    projections = torch.randn(2, 5, 3, 2, 4)
    assert (causal_attention(projections.half(), 1.0) == 7).all()
    monkeypatch.setitem(kernels.MODULES, "cpu", ())
    plain = causal_attention(projections, 1.0)
    monkeypatch.undo()
    torch.testing.assert_close(causal_attention(projections, 1.0), plain)
