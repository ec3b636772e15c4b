"""A Hugging Face directory, checked before transformers builds anything of it.

Transformers builds what config.json asks for layer by layer, fills missing weights with random
numbers and ignores superfluous ones, so sizes are compared with the weights'
own names first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sat_interp._util.errors import UserError, shown
from sat_interp._util.reading import UnreadableError, read_json, read_object
from sat_interp._util.settings import LARGEST

SIZES: dict[str, tuple[str, ...]] = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "d_head": ("head_dim",),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim"),
    "d_vocab": ("vocab_size",),
}
"""Names of a size in config.json, of the families that are read. The context is not among them:
evaluations cut it, and it costs nothing before."""
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")
"""Names of the context in config.json."""
_MAY_BE_NONE = ("head_dim", "intermediate_size", "n_inner", "ffn_dim")
_READ = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
)
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LAYER = re.compile(r"(?:^|\.)(?:h|layers|blocks|layer)\.(\d+)\.")


def check_directory(directory: str | Path, needs_weights: bool = True) -> None:
    """Do nothing if a model of the sizes in ``config.json`` can be built, and is the weights'.

    Args:
        directory: in Hugging Face's format.
        needs_weights: whether a directory without any weights is refused; a configuration alone is
            enough for an outline.

    Raises:
        UserError: a file is a pipe or the like, config.json cannot be read, a size is not a whole
            number or out of bounds, the model has code of its own, its weights are pickles or not
            all there, or they hold another number of layers or numbers of another kind; by name
            and value.
    """
    directory = Path(directory)
    for pattern in _READ:
        for path in directory.glob(pattern):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a regular file")
    try:
        config = read_json(directory / "config.json")
    except UnreadableError as error:
        raise UserError(f"{directory / 'config.json'} cannot be read as JSON: {error}") from error
    try:
        layers = _check_config(config)
        _refuse_own_code(config)
        _check_files(directory, needs_weights)
        _check_weights(directory, layers)
    except UserError as error:
        raise UserError(f"cannot load a model from {directory}: {error}") from error


def refuse_own_code(directory: str | Path) -> None:
    """Do nothing if the model's configuration names no code of its own.

    Raises:
        UserError: it does, whatever kind of model it is.
    """
    config = read_object(Path(directory) / "config.json")
    if code := config.get("auto_map"):
        raise UserError(
            f"{directory} names code of its own ({shown(code)}), which is never run: such a model "
            "is not covered"
        )


def _check_config(config: Any) -> tuple[str, int] | None:
    """Name and value of the number of layers, if config.json has it."""
    if not isinstance(config, dict):
        raise UserError(f"config.json must be a mapping, not {shown(config)}")
    if not isinstance(config.get("model_type", ""), str):
        raise UserError(f"model_type must be text, not {shown(config['model_type'])}")
    architectures = [] if config.get("architectures") is None else config["architectures"]
    if not isinstance(architectures, list) or not all(isinstance(x, str) for x in architectures):
        raise UserError(f"architectures must be a list of names, not {shown(architectures)}")
    layers = _check_sizes(config)
    for name in ("num_key_value_heads", *CONTEXT):
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name} must be a whole number from 1, not {shown(value)}")
    return layers


def _check_sizes(config: dict[str, Any]) -> tuple[str, int] | None:
    """Name and value of the number of layers, if config.json has it."""
    layers = None
    for size, names in SIZES.items():
        for name in names:
            value = config.get(name)
            if name not in config or (value is None and name in _MAY_BE_NONE):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"{name} must be a whole number, not {shown(value)}")
            if not 1 <= value <= LARGEST[size]:
                raise UserError(f"{name} must be from 1 to {LARGEST[size]:,}, not {shown(value)}")
            if size == "n_layers":
                layers = layers or (name, value)
    return layers


def _refuse_own_code(config: dict[str, Any]) -> None:
    """Refuse a kind of model that transformers knows only from code beside the weights.

    Code that stands beside a kind that transformers knows is not run, and not needed.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise UserError(
            f"its kind ({shown(kind)}) is defined by code of its own (auto_map), which is never run"
        )


def _check_files(directory: Path, needs_weights: bool) -> None:
    """Refuse weights that are pickles, or not all there."""
    if partial := sorted(path.name for path in directory.rglob("*.incomplete")):
        raise UserError(f"it is half downloaded ({shown(partial[0])}): download it again")
    weights = {file.name for file in directory.glob("*.safetensors")}
    if not weights:
        pickles = sorted(file.name for kind in _PICKLES for file in directory.glob(kind))
        if pickles:
            raise UserError(
                f"its weights are a pickle ({pickles[0]}), and only safetensors are read: convert "
                "them where you trust them, with transformers' save_pretrained"
            )
        if needs_weights:
            raise UserError("it has no weights (*.safetensors): download it again")
    if (directory / _INDEX).exists():
        index = read_object(directory / _INDEX).get("weight_map")
        wanted = set(index.values()) if isinstance(index, dict) else set()
        if missing := sorted(wanted - weights):
            raise UserError(
                f"{len(missing)} of {len(wanted)} files of weights are missing ({missing[0]}): "
                "download it again"
            )


def _check_weights(directory: Path, layers: tuple[str, int] | None) -> None:
    """Compare the safetensors' headers with the number of layers; nothing else is read."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                here = opened.keys()
                for name in here:
                    kind = opened.get_slice(name).get_dtype()
                    if not kind.startswith(("F", "BF")) and not _is_buffer(name):
                        raise UserError(
                            f"{file.name}: {shown(name)} has type {kind}, and quantised weights "
                            "are not read: use the model without quantisation, or a GGUF file"
                        )
                    names.append(name)
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file.name} is damaged: {error}") from error
    numbers = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    if layers and numbers and layers[1] != max(numbers) + 1:
        name, value = layers
        raise UserError(f"{name} is {value}, but the weights hold {max(numbers) + 1} layers")


def _is_buffer(name: str) -> bool:
    """Causal masks and position numbers, which older files carry."""
    return name.endswith((".bias", ".masked_bias", "position_ids"))
