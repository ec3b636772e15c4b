from __future__ import annotations

import pytest
import torch

from sat_interp._util import devices
from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError


@pytest.mark.parametrize("name", ["quantum", "cpu:x", "meta", "", "xla", "cpu cpu"])
def test_unknown_devices_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="try --device cpu") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "auto"])
def test_auto_is_an_accelerator_with_float64_or_the_cpu(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # meta stands for an accelerator: the CPU is the only device that is surely here
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta")
    )
    monkeypatch.setattr(devices, "_has_float64", lambda device: True)
    assert resolve_device(name).type == "meta"
    monkeypatch.setattr(devices, "_has_float64", lambda device: False)
    assert resolve_device(name).type == "cpu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert resolve_device(name).type == "cpu"


def test_what_has_no_float64_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*arguments: object, **options: object) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(UserError, match="does not support float64"):
        resolve_device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),  # nothing is known that speaks against it
    ],
)
def test_bfloat16_wants_instructions(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.has_bfloat16(torch.device("cpu")) is expected
    assert devices.has_bfloat16(torch.device("meta"))
