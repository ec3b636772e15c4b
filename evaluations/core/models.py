"""Loading a MODEL argument: ours, a training run, a bundled model, or Hugging Face's."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from evaluations.core import weights
from evaluations.core.canonical import canonical
from evaluations.core.hugging_face import first_line, hugging_face_model, hugging_face_outline
from evaluations.core.origin import Origin, read_origin
from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError, suggest
from sat_interp.data.tokenizer import (
    GPT2_VOCABULARY,
    bos_is_filled_in,
    fingerprint,
    id_count,
    load_tokenizer,
    start_with_end_of_text,
    story_start,
)
from sat_interp.io.checkpoint import from_pretrained
from sat_interp.io.loading import outline as outline_of
from sat_interp.io.loading import tokenizer_mismatch
from sat_interp.io.locate import BUNDLED, CONFIG, find_model, is_hugging_face
from sat_interp.model.transformer import SelfAblatingTransformer

Dtype = Literal["float32", "float64", "bfloat16"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
# What a record says of the architecture, for people; ``configuration`` has all of it.
SHAPE = (
    "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn", "eps",
    "normalization_type", "positional_embedding_type", "use_attn_scale", "attn_scale",
    "attn_types", "window_size", "parallel_attn_mlp", "gated_mlp", "rotary_base", "rotary_dim",
    "n_key_value_heads", "output_logits_soft_cap", "original_architecture",
)  # fmt: skip
# The fields of a HookedTransformerConfig that decide no figure. Every other field is part of a
# model's identity, those of later TransformerLens releases included.
COSMETIC = frozenset({
    # names, and where it came from
    "model_name", "tokenizer_name", "from_checkpoint", "checkpoint_index", "checkpoint_label_type",
    "checkpoint_value", "trust_remote_code",
    # how fresh weights are drawn
    "init_mode", "init_weights", "initializer_range", "seed",
    # where it runs; the precision is that of the weights
    "device", "n_devices", "dtype",
    # which hook points fire; ``n_params`` follows from the rest
    "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens",
    "ungroup_grouped_query_attention", "n_params",
    # how text becomes tokens: a text's own hash is of its tokens
    "default_prepend_bos", "tokenizer_prepends_bos",
})  # fmt: skip

log = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A model ready to be evaluated: unprocessed weights, in evaluation mode, on its device.

    Attributes:
        name: for tables; the hash of the weights is what a model is known by.
        spec: the argument it was loaded by.
        data, validation: what it was trained on, where that is recorded.
        training: its recorded training configuration (preset, seed, ...), small.
        tokenizer_note: why its tokenizer may not be the one it was trained with.
        control: of a control model, its kind and seed and the weights hash of the model it is a
            control of (``evaluations.core.controls``).
    """

    model: HookedTransformer
    name: str
    tokenizer: PreTrainedTokenizerFast
    weights_hash: str
    spec: str = ""
    data: str | None = None
    validation: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    tokenizer_note: str | None = None
    control: dict[str, Any] | None = None

    @property
    def device(self) -> str:
        return str(self.model.W_E.device)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The main sizes and kinds of the architecture, dtype included."""
        found = {name: getattr(self.model.cfg, name, None) for name in SHAPE}
        return {**found, "dtype": self._dtype}

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Every field of the configuration but ``COSMETIC`` ones, in the types of JSON."""
        fields = vars(self.model.cfg).items()
        found = {name: canonical(value) for name, value in fields if name not in COSMETIC}
        return {**found, "dtype": self._dtype}

    @property
    def _dtype(self) -> str:
        return str(self.model.W_E.dtype).removeprefix("torch.")

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
    chosen, note = _tokenizer(directory, model, tokenizer)
    if note and (tokenizer is not None or not _own_mismatch(model)):  # which loading it has said
        log.warning("%s: %s", name, note)
    chosen = _with_stated_bos(directory, model, chosen)
    loaded = prepared(model, name, chosen, device, dtype, spec)
    found = _origin(directory, spec)
    loaded.training, loaded.data, loaded.validation = found.facts, found.data, found.validation
    loaded.tokenizer_note = note
    if loaded.training.get("finished") is False:
        log.warning("%s: its training has not finished; this is the model saved so far", name)
    return loaded


def origin(spec: str) -> Origin:
    """How the model that a MODEL argument names was trained; its weights are not read.

    Raises:
        UserError: nothing of that name.
    """
    return _origin(_locate(spec)[0], spec)


def outline(spec: str, tokenizer: str | None = None) -> LoadedModel:
    """Return what is known of a MODEL argument before its weights are read.

    What an evaluation needs of a model's shape, tokenizer and training text can be checked on it.

    Returns:
        The model on the meta device, with its tokenizer and origin; its weights hash is empty.

    Raises:
        UserError: nothing of that name, a configuration that describes no model, or no tokenizer.
    """
    directory, name = _locate(spec)
    read = outline_of if _is_ours(directory) else hugging_face_outline
    model = read(directory)
    chosen, note = _tokenizer(directory, model, tokenizer)
    chosen = _as_trained(model, _with_stated_bos(directory, model, chosen))
    loaded = LoadedModel(model, name, chosen, weights_hash="", spec=spec, tokenizer_note=note)
    found = _origin(directory, spec)
    loaded.training, loaded.data, loaded.validation = found.facts, found.data, found.validation
    return loaded


def _origin(directory: Path, spec: str) -> Origin:
    found = read_origin(directory)
    if spec.startswith("demo:") and not found.data:
        return dataclasses.replace(found, data="demo")
    return found


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
    tokenizer = _as_trained(model, tokenizer)
    place = resolve_device(device)
    digest = weights.weights_hash(model)  # before the cast: the same weights, the same hash
    if dtype is not None and model.W_E.dtype != getattr(torch, dtype):
        model.to(getattr(torch, dtype), print_details=False)
    try:
        model.to(place, print_details=False)
    except RuntimeError as error:
        raise UserError(f"device {str(place)!r} cannot be used: {first_line(error)}") from None
    model.eval()
    model.requires_grad_(False)
    return LoadedModel(model, name, tokenizer, digest, spec or name)


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


def _tokenizer(
    directory: Path, model: HookedTransformer, given: str | None
) -> tuple[PreTrainedTokenizerFast, str | None]:
    """The tokenizer to use, and a line about it where it may not be what the model learned from.

    The one that is given, else the model's own, else GPT-2's where the vocabulary has its size.
    """
    if given is None:
        own = _own_tokenizer(directory, model)
        if own is not None:
            return own, _doubt(model, own)
        if model.cfg.d_vocab == GPT2_VOCABULARY:
            note = "it has no tokenizer but a vocabulary of GPT-2's size: using GPT-2's"
            return load_tokenizer("gpt2"), note
        raise UserError(
            f"{directory} has no tokenizer: name one with --tokenizer gpt2 or a directory"
        )
    chosen = load_tokenizer(given)
    if isinstance(model, SelfAblatingTransformer) and model.tokenizer_hash is not None:
        mismatch = tokenizer_mismatch(model, chosen)
        if mismatch is None:
            return chosen, _doubt(model, chosen)
        return chosen, f"{mismatch}; the one given is {fingerprint(chosen)}"
    try:
        own = _own_tokenizer(directory, model)
    except UserError:
        own = None  # a damaged one is a reason to name another
    if own is not None and (known := fingerprint(own)) != (used := fingerprint(chosen)):
        return chosen, f"the tokenizer given ({used}) is not the model's own ({known})"
    return chosen, _doubt(model, chosen)


def _as_trained(
    model: HookedTransformer, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """The tokenizer with the BOS token the model was trained with: end-of-text for ours."""
    is_ours = isinstance(model, SelfAblatingTransformer)
    if not is_ours or story_start(tokenizer) == tokenizer.eos_token_id:
        return tokenizer
    return start_with_end_of_text(copy.deepcopy(tokenizer))


def _with_stated_bos(
    directory: Path, model: HookedTransformer, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """Give a tokenizer without a BOS token of its own the one that a ``config.json`` states.

    A loaded tokenizer without one has end-of-text in its place; one that names end-of-text as its
    BOS keeps it. Only a ``bos_token_id`` that is written in the file counts: transformers fills in
    a default.
    """
    stated = _stated_bos(directory)
    is_ours = isinstance(model, SelfAblatingTransformer)
    if is_ours or not bos_is_filled_in(tokenizer) or stated is None:
        return tokenizer
    token = tokenizer.convert_ids_to_tokens(stated) if stated < model.cfg.d_vocab else None
    if not isinstance(token, str):
        return tokenizer
    chosen = copy.deepcopy(tokenizer)
    chosen.bos_token = token
    return chosen


def _stated_bos(directory: Path) -> int | None:
    """Return the ``bos_token_id`` written in ``config.json``; None where none is."""
    try:
        stated = json.loads((directory / "config.json").read_text(encoding="utf-8"))["bos_token_id"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return stated if type(stated) is int and stated >= 0 else None


def _own_tokenizer(directory: Path, model: HookedTransformer) -> PreTrainedTokenizerFast | None:
    if any((directory / name).exists() for name in TOKENIZER_FILES):
        return load_tokenizer(str(directory.resolve()))  # a directory may be called gpt2
    return model.tokenizer if isinstance(model.tokenizer, PreTrainedTokenizerFast) else None


def _own_mismatch(model: HookedTransformer) -> str | None:
    if not isinstance(model, SelfAblatingTransformer):
        return None
    return tokenizer_mismatch(model, model.tokenizer)


def _doubt(model: HookedTransformer, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Why a tokenizer may not be the one a model was trained with: its size, or its hash.

    A model of ours has a row for each token; Hugging Face's often have rows to spare.
    """
    needed = id_count(tokenizer)
    if not isinstance(model, SelfAblatingTransformer):
        return None
    if needed == model.cfg.d_vocab:
        return tokenizer_mismatch(model, tokenizer)
    return (
        f"the tokenizer has {needed:,} tokens and the model {model.cfg.d_vocab:,} rows: "
        "it may not be the one the model was trained with"
    )
