"""A stand-in for an accelerator: tensors that say they lie elsewhere and compute on the CPU.

A ``StandIn`` tensor reports the device ``meta`` and holds an ordinary tensor. Within
``accelerator()`` whatever is made on ``meta`` or moved there is one, and an operation on one of
them together with an ordinary tensor raises what an accelerator raises. As there, tensors of no
dimension may be mixed, an index may lie on the CPU, and ``copy_`` and ``to`` cross over.

Kernels written for the CPU are not met: whoever asks a tensor for its device gets ``meta``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
# Operations for which PyTorch takes tensors of two devices.
CROSSING = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# PyTorch makes an empty tensor of any data that is to lie on ``meta``.
FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
# What crosses to the CPU by itself, and PyTorch refuses tensors of a class of their own.
READING = {Tensor.tolist, Tensor.__format__}


class StandIn(Tensor):
    """A tensor that says it lies on ``meta``; ``held`` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> StandIn:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            held.stride(),
            held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"StandIn({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return dispatched(func, args, kwargs or {})


def dispatched(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what is asked of stand-ins, having checked where its tensors lie."""
    wanted = kwargs.get("device")
    if _is_there(wanted):
        kwargs = {**kwargs, "device": CPU}
    elsewhere = _check(func, args, kwargs)
    plain_args, plain_kwargs = tree_map(_held, (tuple(args), kwargs))
    found = func(*plain_args, **plain_kwargs)
    if not (elsewhere if wanted is None else _is_there(wanted)):
        return found
    wrapped = tree_map(lambda one: StandIn(one) if type(one) is Tensor else one, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if elsewhere else wrapped


def _check(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a stand-in takes part; refuse one together with an ordinary tensor."""
    given = (args[0], kwargs) if func in INDEXING and not _is_put(func) else (args, kwargs)
    if func in INDEXING and _is_put(func):
        given = ((args[0], *args[2:]), kwargs)
    tensors = [one for one in tree_flatten(given)[0] if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, StandIn)]
    here = [one for one in tensors if not isinstance(one, StandIn) and one.dim()]
    if there and here and func not in CROSSING:
        shapes = [tuple(one.shape) for one in tensors]
        raise RuntimeError(f"{func}: tensors of two devices, meta and cpu (shapes {shapes})")
    if not there and any(isinstance(one, StandIn) for one in tree_flatten((args, kwargs))[0]):
        raise RuntimeError(f"{func}: an index on meta, what is indexed on the CPU")
    return bool(there)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _is_put(func: Any) -> bool:
    return "put" in str(func)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, StandIn) else value


class _Factories(TorchDispatchMode):
    """What is made on ``meta`` or moved there is a stand-in."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_there(kwargs.get("device")):
            return dispatched(func, args, kwargs)
        return func(*args, **kwargs)


class _Data(TorchFunctionMode):
    """``torch.tensor([1, 2], device="meta")`` is made on the CPU and moved."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return func(args[0], _listed(args[1]), *args[2:])
        if func in READING and isinstance(args[0], StandIn):
            return func(args[0].held, *args[1:])
        if func not in FROM_DATA:
            return func(*args, **kwargs)
        wanted = kwargs.get("device")
        inherits = func is Tensor.new_tensor and isinstance(args[0], StandIn) and wanted is None
        if not inherits and not _is_there(wanted):
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            kwargs.setdefault("dtype", args[0].dtype)
            func, args = torch.tensor, args[1:]
        made = func(*args, **{**kwargs, "device": CPU})
        return made.to(DEVICE)


def _listed(index: Any) -> Any:
    """An index whose lists are tensors: PyTorch would make them, empty, on ``meta``."""
    if isinstance(index, list):
        return torch.tensor(index) if index else torch.empty(0, dtype=torch.long)
    return tuple(map(_listed, index)) if isinstance(index, tuple) else index


@contextmanager
def accelerator() -> Iterator[None]:
    """Let ``meta`` be a device that computes.

    Inference mode becomes ``no_grad``: tensors of a class of their own cannot be made in it.
    """
    kind = torch.inference_mode
    entered, left = patch.object(kind, "__enter__", _enter), patch.object(kind, "__exit__", _leave)
    asked = patch.object(torch, "is_autocast_enabled", _is_autocast_enabled)
    fused = patch("torch.optim.optimizer._get_fused_kernels_supported_devices", _fused)
    read = patch("sae_lens.loading.pretrained_sae_loaders.safe_open", _Opened)
    with _Data(), _Factories(), entered, left, asked, fused, read:
        yield


def _fused() -> list[str]:
    return ["cpu", DEVICE.type]


class _Opened:
    """``safetensors.safe_open`` that reads onto the CPU and moves what it reads."""

    def __init__(self, path: Any, framework: str, device: Any = "cpu") -> None:
        self.file, self.device = safe_open(path, framework=framework, device="cpu"), device

    def __enter__(self) -> _Opened:
        self.file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def keys(self) -> Any:
        return self.file.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self.file.get_tensor(name).to(self.device)


def _is_autocast_enabled(device: str | None = None, ask: Any = torch.is_autocast_enabled) -> bool:
    return False if _is_there(device) else bool(ask(*([] if device is None else [device])))


def _enter(self: Any) -> None:
    self.had_grad = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _leave(self: Any, *error: object) -> None:
    torch.set_grad_enabled(self.had_grad)


def moved(model: nn.Module) -> Any:
    """A copy of a model that lies on the stand-in's device."""
    made = copy.deepcopy(model)
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    for module in made.modules():
        _replace(module._parameters, lambda one: nn.Parameter(StandIn(one.data), False), shared)
        _replace(module._buffers, StandIn, shared)
        if (cfg := getattr(module, "cfg", None)) is not None and hasattr(cfg, "device"):
            cfg.device = str(DEVICE)
    return made.requires_grad_(False)


def _replace(
    tensors: dict[str, Any],
    wrap: Callable[[Tensor], Tensor],
    shared: dict[int, tuple[Tensor, Tensor]],
) -> None:
    """Replace tensors; ``shared`` keeps each beside its stand-in, so that no id comes twice."""
    for name, tensor in tensors.items():
        if tensor is not None:
            tensors[name] = shared.setdefault(id(tensor), (tensor, wrap(tensor)))[1]
