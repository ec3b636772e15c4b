"""Reading a model's directory: whole, or refused by name with what to do about it."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerBase

from sat_interp._util.errors import UserError, shown, suggest
from sat_interp._util.reading import Unreadable, read_bytes, read_json
from sat_interp._util.settings import check_settings, check_sizes
from sat_interp.io.hub import download
from sat_interp.io.locate import CONFIG, FORMAT, WEIGHTS, find_model
from sat_interp.io.released import some_of, working_dtype
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.transformer import SelfAblatingTransformer

_DTYPES = {"float32": torch.float32, "float64": torch.float64,
           "float16": torch.float16, "bfloat16": torch.bfloat16}  # fmt: skip
# What building a model from a damaged description may end in.
_IMPOSSIBLE = (
    LookupError, TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError,
)  # fmt: skip

LARGEST_FILE = 1 << 40
"""Bytes of the largest file of weights that is read."""
_FIRST_BLOCK = re.compile(r"blocks\.0\.(.+)")
log = logging.getLogger(__name__)

RETRIES = 2
"""How often a model that is replaced while it is being read is read anew."""
SWAP_SECONDS = 0.05
"""Longer than the two renames that put one directory in another's place."""


def from_pretrained(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> SelfAblatingTransformer:
    """Load a model written by :func:`sat_interp.io.checkpoint.save_pretrained`.

    Args:
        name: a directory, a run directory of ``sat-train`` (its ``best/``, else its ``model/``),
            a bundled model (``demo:baseline``, ``demo:local-k4``, ``demo:global-k4``), or the name
            of a repository on the Hugging Face hub (``owner/name``).
        dtype: type of the parameters; by default the one the model was trained in (float32),
            whatever type the file stores.
        revision: branch, tag or commit on the hub.

    Returns:
        The model in evaluation mode, as Hugging Face has it; call ``train()`` to go on training.

    Raises:
        UserError: there is no such model or device, or files are missing, damaged, or too new.
    """
    _refuse_device(device)
    directory = find_model(name) or download(str(name), revision)
    for _ in range(RETRIES):
        seen = _bytes_of(directory / CONFIG)
        try:
            model = _load(directory, device, dtype)
        except UserError:
            if _bytes_of(directory / CONFIG) == seen:
                raise
        else:
            if _bytes_of(directory / CONFIG) == seen:
                return model
        # A run saved its best model between two of our reads: the next look finds that one.
        time.sleep(SWAP_SECONDS)
        directory = find_model(name) or directory
    return _load(directory, device, dtype)


def outline(directory: Path) -> SelfAblatingTransformer:
    """Build the model in ``directory`` on the meta device: its shape and hook points, no weights.

    Raises:
        UserError: its configuration is missing, damaged or too new.
    """
    config = _read_config(directory / CONFIG)
    with torch.device("meta"):
        return _build(directory, config, "meta", None)


def _load(
    directory: Path, device: str | torch.device, dtype: torch.dtype | None
) -> SelfAblatingTransformer:
    config = _read_config(directory / CONFIG)
    tensors = _read_weights(directory / WEIGHTS, config.get("weights"))
    _check_shape(config["shape"], tensors, directory)
    model = _build(directory, config, device, dtype)
    _fill(model, tensors, directory / WEIGHTS)
    model.card = config.get("training") or {}
    if note := tokenizer_mismatch(model, model.tokenizer):
        log.warning("%s: %s", directory, note)
    return model


def tokenizer_mismatch(model: SelfAblatingTransformer, tokenizer: object) -> str | None:
    """Return a line if a tokenizer is not the one the model was trained with, as far as is known.

    Two tokenizers of one size may number their tokens in another order.
    """
    from transformers import PreTrainedTokenizerFast

    from sat_interp.data.tokenizer import vocabulary_hash

    known = model.tokenizer_hash
    if known is None or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if (found := vocabulary_hash(tokenizer)) == known:
        return None
    return f"the tokenizer ({found}) is not the one the model was trained with ({known})"


def _bytes_of(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except Unreadable:
        return None


def _refuse_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"there is no device {str(device)!r} here: {reason}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy the model again") from error
    found = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UserError(f"{path} is no model's configuration (no format_version); copy it again")
    if found > FORMAT:
        raise UserError(
            f"{path} has format {shown(found)}, this sat_interp reads up to {FORMAT}: "
            "pip install -U sat-interp"
        )
    for section in ("shape", "ablation"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"{path} has no {section!r}; copy the model again")
    for section in ("weights", "training"):
        if not isinstance(config.get(section) or {}, dict):
            told = shown(config[section])
            raise UserError(f"{path}: {section} must be a mapping, not {told}; copy it again")
    return config


def _read_weights(path: Path, expected: Any) -> dict[str, Tensor]:
    try:
        content = read_bytes(path, LARGEST_FILE)
    except Unreadable as error:
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
            f"{path} is damaged or no safetensors file ({error}); copy the model again"
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {shown(name)} is of {kind}, weights are floating-point")
    return tensors


@dataclass(frozen=True)
class Shape:
    """The section ``shape`` of cfg.json, by field: what a model is built from."""

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


# Where a size of the shape is to be seen in the weights: parameter and axis.
_SEEN = {
    "d_vocab": ("embed.W_E", 0), "d_model": ("embed.W_E", 1), "n_ctx": ("pos_embed.W_pos", 0),
    "n_heads": ("blocks.0.attn.W_Q", 0), "d_head": ("blocks.0.attn.W_Q", 2),
    "d_mlp": ("blocks.0.mlp.W_in", 1),
}  # fmt: skip


def _check_shape(shape: dict[str, Any], tensors: dict[str, Tensor], directory: Path) -> None:
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
        if shape["dtype"] not in _DTYPES:
            raise UserError(suggest("dtype", shape["dtype"], _DTYPES))
        found = {name: tensors[seen].shape[axis] for name, (seen, axis) in _SEEN.items()
                 if seen in tensors and tensors[seen].dim() > axis}  # fmt: skip
        for name, seen in found.items():
            if shape[name] != seen:
                raise UserError(f"{name} is {shape[name]}, but {WEIGHTS} has {seen}")
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}; copy the model again") from error
    _refuse_missing_blocks(shape["n_layers"], tensors, directory / WEIGHTS)


def _refuse_missing_blocks(n_layers: int, tensors: dict[str, Tensor], path: Path) -> None:
    parts = [match[1] for name in tensors if (match := _FIRST_BLOCK.match(name))]
    names = (f"blocks.{layer}.{part}" for layer in range(n_layers) for part in parts)
    _refuse_missing(set(names) - set(tensors), path)


def _refuse_missing(missing: set[str], path: Path) -> None:
    if missing:
        told = some_of(sorted(missing))
        raise UserError(f"{path} lacks {told}, which {CONFIG} asks for; copy it again")


def _build(
    directory: Path,
    config: dict[str, Any],
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> SelfAblatingTransformer:
    shape, tokenizer = dict(config["shape"]), _read_tokenizer(directory)
    try:
        trained_in = _DTYPES[shape.pop("dtype")]
        ablation = SelfAblationConfig.from_dict(config["ablation"])
        cfg = HookedTransformerConfig(
            **shape,
            dtype=dtype or working_dtype(trained_in),
            device=str(device),
            init_weights=False,
            seed=None,
        )
        model = SelfAblatingTransformer(cfg, ablation, tokenizer=tokenizer)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from error
    except _IMPOSSIBLE as error:
        reason = repr(error).split("\n")[0][:200]
        raise UserError(
            f"{directory / CONFIG} describes no model that can be built ({reason}); copy it again"
        ) from error
    model.cfg.init_weights = True  # what the shape would do elsewhere
    if isinstance(known := config.get("tokenizer"), str):
        model.tokenizer_hash = known
    return model.eval()


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    if not (directory / "tokenizer.json").is_file():
        return None
    from sat_interp.data.tokenizer import load_tokenizer, start_with_end_of_text

    # older runs saved tokenizers whose BOS token was never trained
    return start_with_end_of_text(load_tokenizer(str(directory)))


def _fill(model: SelfAblatingTransformer, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = dict(model.named_parameters())
    _refuse_missing(set(wanted) - set(tensors), path)
    if unknown := sorted(set(tensors) - set(wanted)):
        raise UserError(f"{path} holds {some_of(unknown)}, unknown to {CONFIG}; copy it again")
    for name, parameter in wanted.items():
        if tensors[name].shape != parameter.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, {CONFIG} asks for "
                f"{tuple(parameter.shape)}; copy the model again"
            )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
