"""Devices by name, on this machine."""

from __future__ import annotations

import math

import torch

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.settings import machine_bytes

_UNKNOWN_BYTES = float(8 << 30)


def resolve_device(name: str | None) -> torch.device:
    """The device called ``name``; ``"auto"`` or None: the accelerator, else the CPU.

    ``auto`` does not use an accelerator without float64 (Apple's MPS), since losses and metrics
    are summed in float64.

    Raises:
        UserError: an unknown device, one this machine does not have, one without float64, or
            ``meta``.
    """
    if name is None or name == "auto":
        best = torch.accelerator.current_accelerator(check_available=True)
        if best is not None and _has_float64(best):
            return best
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        reason = first_line(error)
        if reason.startswith("Expected one of"):
            reason = "unknown kind of device"
        raise UserError(
            f"device {name!r} cannot be used here ({reason}): try --device cpu"
        ) from error
    if device.type == "meta":
        raise UserError("device 'meta' computes nothing: try --device cpu")
    if not _has_float64(device):
        raise UserError(
            f"device {name!r} does not support float64, in which losses are summed: "
            "try --device cpu"
        )
    return device


def memory_of(device: torch.device) -> float:
    """Bytes of memory of a device; of the CPU those of the machine, and 8 GiB if unknown."""
    module = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    if module is not None and hasattr(module, "mem_get_info"):
        return float(module.mem_get_info(device)[1])
    known = machine_bytes()
    return known if math.isfinite(known) else _UNKNOWN_BYTES


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are worth it there: False on an x86 CPU without instructions.

    There they are emulated, and take many times as long as in float32.
    """
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    instructions = ("avx512_bf16", "amx_bf16", "avx10_2")
    return capabilities.get("architecture") != "x86_64" or any(
        capabilities.get(name) for name in instructions
    )


def _has_float64(device: torch.device) -> bool:
    try:
        torch.ones(2, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        return False
    return True
