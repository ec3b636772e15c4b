"""Canonical form of configurations in JSON types, the same in every process, for hashing."""

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
    """Convert ``value`` to JSON types; equal results mean equal configurations.

    A whole number is the same as integer and as float. NaN and infinities are named, so that they
    differ from None. Sets are sorted. Arrays are represented with shape and dtype, other objects by
    class and attributes, functions by name. The result does not depend on memory addresses, the
    order of keys or the process.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, int | float | np.generic):
        return _number(value)
    if isinstance(value, np.ndarray) or _is_torch(value):
        return _array(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [entry.name for entry in dataclasses.fields(value)]
        return canonical({name: getattr(value, name) for name in names})
    if isinstance(value, Mapping | Set | Sequence) and not isinstance(value, bytes | range):
        return _collection(value)
    return _object(value)


def _number(value: int | float | np.generic) -> Any:
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, float):
        return canonical(value.item())
    if not math.isfinite(value):
        return ["float", repr(float(value))]
    return int(value) if value.is_integer() else float(value)


def _is_torch(value: Any) -> bool:
    """Return whether a value is a tensor, dtype or device, without importing torch."""
    torch = sys.modules.get("torch")
    kinds = (torch.dtype, torch.device, torch.Tensor) if torch is not None else ()
    return isinstance(value, kinds)


def _array(value: Any) -> Any:
    """Represent an array or tensor by dtype, shape and values, a dtype or device by its name."""
    if not hasattr(value, "tolist"):
        return str(value)
    numbers = value if isinstance(value, np.ndarray) else value.detach()
    return {
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "values": canonical(numbers.tolist()),
    }


def _collection(value: Mapping[Any, Any] | Set[Any] | Sequence[Any]) -> Any:
    if isinstance(value, bytearray):
        return _named(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(entry) for key, entry in value.items()}
    entries = [canonical(entry) for entry in value]
    return sorted(entries, key=repr) if isinstance(value, Set) else entries


def _object(value: Any) -> Any:
    if isinstance(value, complex | bytes | range):
        return _named(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, functools.partial):
        return ["partial", *map(canonical, (value.func, value.args, value.keywords))]
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:
        return {"class": _name(type(value)), **canonical(attributes)}
    return [_name(type(value)), re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))]


def _named(value: object) -> list[str]:
    return [type(value).__name__, repr(value)]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
