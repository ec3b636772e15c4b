"""Fused kernels, chosen in one place by the device of a tensor.

A module of kernels offers operators by name, and ``takes(name, tensor)`` says whether it computes
one for a tensor. ``MODULES`` registers the modules of each kind of device, in the order in which
they are asked; where none takes a tensor, the callers use PyTorch's own operators. An accelerator's
kernels (attention over clean and own keys, compiled) are a module beside ``cpu.py`` and an entry in
``MODULES``, and may offer any part of the operators:

- ``attention``: z of one stream, or of the clean and the ablated one;
- ``mixed_attention``: z of the ablated stream from queries, clean and own keys and values;
- ``gelu_new``, ``masked_gelu_backward``: the activation, and its gradient under a mask;
- ``k_winners``: the mask of the k largest scores, with its gradient;
- ``winners_product``, ``winners_outer``: products with a mask of few ones;
- ``exponentials``: exponentials of logits less their row's largest, in place;
- ``empty_on_large_pages``: uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from sat_interp.model.kernels import cpu, flash

MODULES: dict[str, tuple[ModuleType, ...]] = {"cpu": (cpu, flash)}
"""Modules of kernels by kind of device (``torch.device.type``)."""


def kernel(name: str, tensor: Tensor) -> Callable[..., Any] | None:
    """The fused operator of this name for a tensor's device and type; None where there is none."""
    for module in MODULES.get(tensor.device.type, ()):
        if hasattr(module, name) and module.takes(name, tensor):
            operator: Callable[..., Any] = getattr(module, name)
            return operator
    return None
