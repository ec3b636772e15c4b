"""``cfg.json`` and ``model.safetensors``: read with limits and checked before a model is built."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from sat_interp._util.errors import UserError, shown, suggest
from sat_interp._util.reading import UnreadableError, read_bytes, read_json
from sat_interp._util.settings import check_settings, check_sizes
from sat_interp.io.locate import CONFIG, FORMAT, WEIGHTS
from sat_interp.io.protocol import some_of

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LARGEST_FILE = 1 << 40
"""Bytes of the largest file of weights that is read."""
_FIRST_BLOCK = re.compile(r"blocks\.0\.(.+)")


def read_config(path: Path) -> dict[str, Any]:
    """Content of ``cfg.json``, its sections being mappings.

    Raises:
        UserError: it cannot be read, is of a newer format, or lacks a section.
    """
    try:
        config: dict[str, Any] = read_json(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy the model again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{path} is not a model's configuration (no format_version); copy it again")
    if version > FORMAT:
        raise UserError(
            f"{path} has format {shown(version)}, this sat_interp reads up to {FORMAT}: "
            "pip install -U sat-interp"
        )
    for section in ("shape", "ablation"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"{path} has no {section!r}; copy the model again")
    for section in ("weights", "training", "hugging_face"):
        if not isinstance(config.get(section) or {}, dict):
            value = shown(config[section])
            raise UserError(f"{path}: {section} must be a mapping, not {value}; copy it again")
    return config


def read_weights(path: Path, expected: Any) -> dict[str, Tensor]:
    """Tensors of a safetensors file, by name.

    Args:
        expected: ``bytes`` and ``sha256`` that the file must have, as far as they are given.

    Raises:
        UserError: it cannot be read, is damaged, or holds something else than weights.
    """
    try:
        content = read_bytes(path, LARGEST_FILE)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read ({error}); copy the model again") from error
    expected = expected or {}
    size, digest = expected.get("bytes", len(content)), expected.get("sha256")
    if size != len(content):
        raise UserError(
            f"{path} is damaged: {len(content)} bytes, {CONFIG} says {shown(size)} (a truncated "
            "copy, or an interrupted save); copy or save the model again"
        )
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{path} is not the file {CONFIG} was written with (damaged, or edited); copy the "
            f"model again, or, if you changed it on purpose, delete 'weights' from {CONFIG}"
        )
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file ({error}); copy the model again"
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{path}: {shown(name)} has type {kind}, but weights are floating-point"
            )
    return tensors


@dataclass(frozen=True)
class Shape:
    """The section ``shape`` of cfg.json, by field."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int | None
    d_vocab: int
    n_ctx: int
    act_fn: str
    eps: float
    normalization_type: str | None
    positional_embedding_type: str
    attention_dir: str
    use_attn_scale: bool
    attn_scale: float
    scale_attn_by_inverse_layer_idx: bool
    init_mode: str
    initializer_range: float
    default_prepend_bos: bool
    original_architecture: str | None
    model_name: str
    dtype: str
    # Only in the file where they differ from what they are in the paper's shape:
    n_key_value_heads: int | None = None
    gated_mlp: bool = False
    parallel_attn_mlp: bool = False
    final_rms: bool = False
    use_qk_norm: bool = False
    rotary_dim: int | None = None
    rotary_base: float = 10_000
    rotary_adjacent_pairs: bool = False
    rotary_scaling_factor: float = 1.0
    use_NTK_by_parts_rope: bool = False  # noqa: N815  TransformerLens' name
    NTK_by_parts_factor: float = 8.0
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_original_ctx_len: int = 8192
    use_local_attn: bool = False
    window_size: int | None = None
    attn_types: list | None = None  # type: ignore[type-arg]  # checked by its plain type


def stored_shape(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """Fields of a configuration that ``cfg.json`` has: those that decide the numbers.

    Or how text becomes tokens. Not ``dtype``, which is that of the weights, and not ``seed``:
    TransformerLens reseeds every generator of the process when a config has one.
    """
    fields = {field.name: field.default for field in dataclasses.fields(Shape)}
    del fields["dtype"]
    values = {name: getattr(cfg, name) for name in fields}
    return {name: value for name, value in values.items() if value != fields[name]}


# Where a size of the shape is to be seen in the weights: parameter and axis.
_SEEN = {
    "d_vocab": ("embed.W_E", 0),
    "d_model": ("embed.W_E", 1),
    "n_ctx": ("pos_embed.W_pos", 0),
    "n_heads": ("blocks.0.attn.W_Q", 0),
    "d_head": ("blocks.0.attn.W_Q", 2),
    "d_mlp": ("blocks.0.mlp.W_in", 1),
}


def check_shape(shape: dict[str, Any], tensors: dict[str, Tensor], directory: Path) -> None:
    """Do nothing if a model of this shape can be built and is the weights'; nothing is built.

    Raises:
        UserError: a field is unknown, missing, of another type or out of bounds, or a size is not
            the one that the weights' names and shapes tell.
    """
    try:
        check_settings(Shape, shape)
        for name in (*_SEEN, "n_layers", "dtype"):
            if name not in shape:
                raise UserError(f"{name} is missing")
        check_sizes({name: shape[name] for name in (*_SEEN, "n_layers")})
        if not 0 < shape.get("eps", 1e-5) < 1:
            raise UserError(f"eps must be between 0 and 1, not {shown(shape['eps'])}")
        for name in ("attn_scale", "initializer_range"):
            if not math.isfinite(shape.get(name, 0.0)):
                raise UserError(f"{name} must be finite, not {shape[name]}")
        if shape["dtype"] not in DTYPES:
            raise UserError(suggest("dtype", shape["dtype"], DTYPES))
        sizes = {
            name: tensors[seen].shape[axis]
            for name, (seen, axis) in _SEEN.items()
            if seen in tensors and tensors[seen].dim() > axis
        }
        for name, seen in sizes.items():
            if shape[name] != seen:
                raise UserError(f"{name} is {shape[name]}, but {WEIGHTS} has {seen}")
        _check_blocks(shape, tensors)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}; copy the model again") from error
    _refuse_missing_blocks(shape["n_layers"], tensors, directory / WEIGHTS)


def _check_blocks(shape: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse blocks of another kind than the weights are of, and parts that do not fit together."""
    is_rms = shape.get("normalization_type") == "RMS"
    for name, is_there in {
        "gated_mlp": "blocks.0.mlp.W_gate" in tensors,
        "use_qk_norm": "blocks.0.attn.q_norm.w" in tensors,
        "final_rms": is_rms,
    }.items():
        if shape.get(name, False) and not is_there:
            raise UserError(f"{name} is true, but the model has no such part")
    groups, keys = shape.get("n_key_value_heads"), tensors.get("blocks.0.attn._W_K")
    seen = None if keys is None else keys.shape[0]
    if groups != seen:
        raise UserError(f"n_key_value_heads is {shown(groups)}, but {WEIGHTS} has {seen}")
    kinds, window = shape.get("attn_types"), shape.get("window_size")
    if shape.get("use_local_attn", False) and (kinds is None or window is None):
        raise UserError("use_local_attn is true, but window_size or attn_types is missing")
    if kinds is not None and (
        len(kinds) != shape["n_layers"] or not set(map(str, kinds)) <= {"local", "global"}
    ):
        raise UserError(f"attn_types must name local or global for each layer, not {shown(kinds)}")
    if window is not None and window < 1:
        raise UserError(f"window_size must be at least 1, not {shown(window)}")
    width = shape.get("rotary_dim")
    if width is not None and not (2 <= width <= shape["d_head"] and width % 2 == 0):
        raise UserError(f"rotary_dim must be even, from 2 to d_head, not {shown(width)}")


def _refuse_missing_blocks(n_layers: int, tensors: dict[str, Tensor], path: Path) -> None:
    parts = [match[1] for name in tensors if (match := _FIRST_BLOCK.match(name))]
    names = (f"blocks.{layer}.{part}" for layer in range(n_layers) for part in parts)
    refuse_missing(set(names) - set(tensors), path)


def refuse_missing(missing: set[str], path: Path) -> None:
    """Do nothing if no weights are missing.

    Raises:
        UserError: some are, by name.
    """
    if missing:
        names = some_of(sorted(missing))
        raise UserError(f"{path} lacks {names}, which {CONFIG} asks for; copy it again")
