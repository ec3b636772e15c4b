"""Any configuration in the types of JSON, the same in every process, so that it can be hashed."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np


def canonical(value: Any) -> Any:
    """Return ``value`` in what JSON has; equal results mean equal configurations.

    A whole number is the same as an integer and as a float. NaN and infinities keep their names,
    so that they differ from None. Sets are sorted. Arrays keep their shape and dtype. An object of
    another class is its class and its attributes; a function is its name. Nothing depends on an
    address in memory, on the order of keys or on the process.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, complex | bytes | bytearray | range):
        return [type(value).__name__, repr(value)]
    torch = sys.modules.get("torch")  # before it is imported, nothing is a tensor
    if isinstance(value, PurePath):
        return str(value)
    if torch is not None and isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, np.ndarray):
        return _array(str(value.dtype), value.shape, value.tolist())
    if torch is not None and isinstance(value, torch.Tensor):
        return _array(str(value.dtype), tuple(value.shape), value.detach().tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical({name: getattr(value, name) for name in _fields(value)})
    if isinstance(value, Mapping):
        return {str(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, Set):
        return sorted((canonical(entry) for entry in value), key=repr)
    if isinstance(value, Sequence):
        return [canonical(entry) for entry in value]
    if isinstance(value, functools.partial):
        return ["partial", *map(canonical, (value.func, value.args, value.keywords))]
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:
        return {"class": _name(type(value)), **canonical(attributes)}
    return [_name(type(value)), re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))]


def _number(value: float) -> int | float | list[str]:
    if not math.isfinite(value):
        return ["float", repr(value)]
    return int(value) if value.is_integer() else value


def _array(dtype: str, shape: tuple[int, ...], values: Any) -> Any:
    return {"dtype": dtype, "shape": list(shape), "values": canonical(values)}


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
