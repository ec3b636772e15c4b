"""Checks of settings by name and value, before anything is built from them.

Values must have the types that a dataclass declares, and a model must fit into the machine's
memory. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sat_interp._util.errors import UserError, shown, suggest

LARGEST = {
    "n_layers": 1_000,
    "d_model": 1 << 16,
    "n_heads": 1 << 12,
    "d_head": 1 << 14,
    "d_mlp": 1 << 18,
    "n_ctx": 1 << 20,
    "d_vocab": 1 << 22,
}
"""Largest accepted sizes of a model; anything larger is refused as a mistake."""

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "nothing",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "text"}
_MOST_INTEGER = 2**63


def check_settings(kind: type, settings: Mapping[str, Any]) -> None:
    """Do nothing if every setting is a field of the dataclass ``kind``, and of its type.

    Whole numbers lie within 2^63; text can be encoded as UTF-8 and contains no NUL.

    Raises:
        UserError: the first that is not, by name and value.
    """
    hints = _hints(kind)
    for name, value in settings.items():
        if name not in hints:
            raise UserError(suggest("setting", name, hints))
        options = alternatives(hints[name])
        if wanted := choices(hints[name]):
            if not isinstance(value, str) or value not in wanted:
                raise UserError(suggest(name, value, wanted))
        elif type(value) is int and abs(value) >= _MOST_INTEGER:
            raise UserError(f"{name} must be below 2^63, not {shown(value)}")
        elif not any(_is(option, value) for option in options):
            words = " or ".join(_WORDS.get(option, str(option)) for option in options)
            raise UserError(f"{name} must be {words}, not {shown(value)}")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint accepts; ``type(None)`` is one of them where None is."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """Return the values of the Literals in a hint."""
    literals = [option for option in alternatives(hint) if get_origin(option) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]


def type_words(hint: Any) -> str:
    """Describe what a hint accepts, None apart: ``a whole number or text``, ``one of a, b``."""
    words = [_words(option) for option in alternatives(hint) if option is not type(None)]
    return " or ".join(dict.fromkeys(filter(None, words)))


def _words(kind: Any) -> str:
    """Describe a single type; "" for one that has no words."""
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        values = ", ".join(choices(item))
        parts = f"any of {values}" if values else _PLURALS.get(item, "values")
        return f"{parts}, separated by commas"
    if get_origin(kind) is Literal:
        values = ", ".join(map(str, get_args(kind)))
        return values if len(get_args(kind)) == 1 else f"one of {values}"
    return _WORDS.get(kind, "")


def check_at_least(settings: object, least: Mapping[str, int]) -> None:
    """Do nothing if no number is too small.

    Args:
        settings: with the numbers as attributes; one that is None is not checked.
        least: the smallest value of each, by name.

    Raises:
        UserError: one is smaller; by name and value.
    """
    for name, fewest in least.items():
        value = getattr(settings, name)
        if value is not None and value < fewest:
            raise UserError(f"{name} must be at least {fewest}, not {value}")


def check_sizes(sizes: Mapping[str, int | None]) -> None:
    """Do nothing if a model of these sizes can be built here; nothing is built to find out.

    Args:
        sizes: n_layers, d_model, n_heads, d_head, d_mlp, n_ctx, d_vocab, as far as they are known.

    Raises:
        UserError: one is below 1 or beyond ``LARGEST``, or the whole needs more memory than the
            machine has.
    """
    for name, most in LARGEST.items():
        value = sizes.get(name)
        if value is None:
            continue
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {shown(value)}")
        if value > most:
            raise UserError(f"{name} must be at most {most:,}, not {shown(value)}")
    here = machine_bytes()
    if (needed := _bytes_of(sizes)) > here:
        listed = ", ".join(f"{name} {sizes[name]:,}" for name in LARGEST if sizes.get(name))
        raise UserError(
            f"a model of {listed} needs {needed / 2**30:,.0f} GiB for its weights and attention "
            f"masks; this machine has {here / 2**30:,.0f}"
        )


def _bytes_of(sizes: Mapping[str, int | None]) -> int:
    """Bytes of the weights in float32 and of TransformerLens' causal mask in each layer."""
    layers, d_model, n_ctx, d_vocab, d_mlp = (
        sizes.get(name) or 1 for name in ("n_layers", "d_model", "n_ctx", "d_vocab", "d_mlp")
    )
    width = (sizes.get("n_heads") or 1) * (sizes.get("d_head") or 1)
    weights = d_model * (d_vocab + n_ctx + layers * (4 * width + 2 * d_mlp))
    return 4 * weights + layers * n_ctx**2


def machine_bytes() -> float:
    """Bytes of memory of this machine; infinity if unknown."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _is(kind: Any, value: object) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and "\0" not in value and _can_be_encoded(value)
    return type(value) is kind


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
