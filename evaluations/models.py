"""Loading a MODEL argument: ours, a training run, a bundled model, or Hugging Face's."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from evaluations import weights
from evaluations.hugging_face import first_line, hugging_face_model
from sat_interp.checkpoint import from_pretrained
from sat_interp.data.tokenizer import GPT2_VOCABULARY, load_tokenizer
from sat_interp.errors import UserError, suggest
from sat_interp.locate import BUNDLED, CONFIG, find_model, is_hugging_face
from sat_interp.transformer import SelfAblatingTransformer

Dtype = Literal["float32", "float64", "bfloat16"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
# What decides the computation besides the weights; a change here is another model.
SHAPE = (
    "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn", "eps",
    "normalization_type", "positional_embedding_type", "use_attn_scale", "attn_scale",
    "attn_types", "window_size", "parallel_attn_mlp", "gated_mlp", "rotary_base", "rotary_dim",
    "n_key_value_heads", "output_logits_soft_cap", "original_architecture",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A model ready to be evaluated: unprocessed weights, in evaluation mode, on its device.

    Attributes:
        name: for tables; the hash of the weights is what a model is known by.
        spec: the argument it was loaded by.
        data, validation: what it was trained on, where that is recorded.
        training: its recorded training configuration (preset, seed, ...), small.
    """

    model: HookedTransformer
    name: str
    tokenizer: PreTrainedTokenizerFast
    weights_hash: str
    spec: str = ""
    data: str | None = None
    validation: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return str(self.model.W_E.device)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The configuration that decides the computation, dtype included."""
        found = {name: getattr(self.model.cfg, name, None) for name in SHAPE}
        return {**found, "dtype": str(self.model.W_E.dtype).removeprefix("torch.")}

    @property
    def ablation(self) -> dict[str, Any] | None:
        """The gates' configuration; None for any other model."""
        if not isinstance(self.model, SelfAblatingTransformer):
            return None
        config = self.model.ablation
        return config.to_dict() if config.variant != "none" else None


def load_model(
    spec: str, device: str | None = None, dtype: Dtype = "float32", tokenizer: str | None = None
) -> LoadedModel:
    """Load a MODEL argument, weights unprocessed.

    Args:
        spec: ``demo:baseline`` and its like; a directory of ours (cfg.json, model.safetensors); a
            training run (its ``best`` model, else its ``model``); a Hugging Face directory; a hub
            id or TransformerLens name.
        device: such as ``cpu``; by default an accelerator where there is one.
        dtype: what to compute in; the weights' hash is that of float32 whatever it is.
        tokenizer: replaces the model's own.

    Raises:
        UserError: nothing of that name, or what is there cannot be loaded.
    """
    directory, name = _locate(spec)
    if _is_ours(directory):
        model: HookedTransformer = from_pretrained(directory)
    else:
        model = hugging_face_model(directory)
    chosen = load_tokenizer(tokenizer) if tokenizer else _tokenizer(directory, model)
    loaded = prepared(model, name, chosen, device, dtype, spec)
    loaded.training = _training(directory)
    loaded.data, loaded.validation = (
        str(told) if (told := loaded.training.get(key)) else None for key in ("data", "validation")
    )
    if spec.startswith("demo:"):
        loaded.data = loaded.data or "demo"
    return loaded


def prepared(
    model: HookedTransformer,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    device: str | None = None,
    dtype: Dtype | None = None,
    spec: str = "",
) -> LoadedModel:
    """A model of one's own, from a notebook, as the runner takes it.

    Raises:
        UserError: no such device.
    """
    digest = weights.weights_hash(model)  # before the cast: the same weights, the same hash
    if dtype is not None and model.W_E.dtype != getattr(torch, dtype):
        model.to(getattr(torch, dtype), print_details=False)
    try:
        model.to(device or default_device(), print_details=False)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {first_line(error)}") from None
    model.eval()
    model.requires_grad_(False)
    return LoadedModel(model, name, tokenizer, digest, spec or name)


def default_device() -> str:
    """The accelerator torch sees, else ``cpu``."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else "cpu"


def _locate(spec: str) -> tuple[Path, str]:
    """The directory a MODEL argument means, and the model's name."""
    if not spec.strip():
        raise UserError("MODEL is empty: name a directory, a hub id or " + ", ".join(_bundled()))
    if spec.startswith("demo:"):
        return _found(spec), spec
    path = Path(spec).expanduser()
    if path.is_dir():
        return _model_directory(path), _name_of(path)
    if path.exists():
        raise UserError(f"{spec} is a file: MODEL is the directory that holds it")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        siblings = [str(near) for near in path.parent.glob("*") if near.is_dir()]
        hint = suggest("MODEL", spec, siblings) if siblings else f"unknown MODEL {spec!r}"
        raise UserError(f"there is no such directory: {hint}")
    return _from_hub(spec), spec


def _model_directory(path: Path) -> Path:
    """Where in a directory the model lies."""
    return path if is_hugging_face(path) else _found(path)


def _found(name: str | Path) -> Path:
    """A model of ours: a directory, a run's best model, or a bundled one."""
    directory = find_model(name)
    if directory is None:
        raise UserError(f"there is no model {str(name)!r}")
    return directory


def _is_ours(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _name_of(path: Path) -> str:
    """The directory's own name, or the run's where it is a run's ``model`` or ``best``."""
    resolved = path.resolve()
    is_part = resolved.name in ("model", "best") and (resolved.parent / "config.json").exists()
    return resolved.parent.name if is_part else resolved.name


def _from_hub(spec: str) -> Path:
    """Download a repository, or find it in the cache; known short names are TransformerLens'."""
    from huggingface_hub import snapshot_download
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        repository = get_official_model_name(spec)
    except ValueError:
        repository = spec
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        directory = Path(snapshot_download(repository, allow_patterns=patterns))
        if not any(directory.glob("*.safetensors")):  # older repositories have nothing else
            directory = Path(snapshot_download(repository, allow_patterns=[*patterns, "*.bin"]))
    except Exception as error:  # the hub's failures have no common base class
        known = suggest("MODEL", spec, [*_bundled(), *_directories_here()])
        raise UserError(
            f"{known}; nor can it be had from the Hugging Face hub: {first_line(error)}"
        ) from None
    return _model_directory(directory)


def _bundled() -> list[str]:
    return [f"demo:{name}" for name in BUNDLED]


def _directories_here() -> list[str]:
    return [path.name for path in Path().iterdir() if path.is_dir() and path.name[0] not in "._"]


def _tokenizer(directory: Path, model: HookedTransformer) -> PreTrainedTokenizerFast:
    """The model's own tokenizer; GPT-2's where there is none and the vocabulary is GPT-2's."""
    if any((directory / name).exists() for name in TOKENIZER_FILES):
        return load_tokenizer(str(directory.resolve()))  # a directory may be called gpt2
    if isinstance(model.tokenizer, PreTrainedTokenizerFast):
        return model.tokenizer
    if model.cfg.d_vocab == GPT2_VOCABULARY:
        log.warning(
            "%s has no tokenizer but a vocabulary of GPT-2's size: using GPT-2's", directory
        )
        return load_tokenizer("gpt2")
    raise UserError(f"{directory} has no tokenizer: name one with --tokenizer gpt2 or a directory")


def _training(directory: Path) -> dict[str, Any]:
    """How a model of ours was trained: its run's configuration, else what its cfg.json says."""
    if not _is_ours(directory):
        return {}
    told = _json(directory / CONFIG).get("training")
    run = _json(directory.parent / "config.json").get("config")
    run = run if isinstance(run, dict) and isinstance(run.get("data"), str) else {}
    found = {**(told if isinstance(told, dict) else {}), **run}
    kept = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    return {key: value for key, value in kept.items() if len(str(value)) < 1000}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
