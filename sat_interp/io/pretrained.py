"""A model as a directory: ``cfg.json``, ``model.safetensors``, the tokenizer's files, a model card.

``cfg.json`` is written last and carries the hash of the weights, so that an
incomplete directory is refused. Weights are safetensors only: loading executes no code. The tied
embedding is stored once, as ``embed.W_E``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors.torch import save as as_safetensors
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import atomic_directory, expanded, naming, write_atomically
from sat_interp._util.provenance import versions
from sat_interp._util.reading import UnreadableError, read_bytes
from sat_interp.data.tokenizer import (
    load_tokenizer,
    read_by_transformer_lens,
    start_with_end_of_text,
    vocabulary_hash,
)
from sat_interp.io.card import CARD_SIGN, model_card, tokenizer_hash
from sat_interp.io.locate import (
    CARD,
    CONFIG,
    FORMAT,
    OUR_FILES,
    TOKENIZER,
    WEIGHTS,
    download,
    find_model,
    is_hugging_face,
)
from sat_interp.io.protocol import (
    Build,
    GatedTransformer,
    Model,
    refuse_processed,
    some_of,
    working_dtype,
)
from sat_interp.io.stored import (
    DTYPES,
    check_shape,
    read_config,
    read_weights,
    refuse_missing,
    stored_shape,
)
from sat_interp.model.config import SelfAblationConfig

# Errors of building a model from a damaged description.
_IMPOSSIBLE = (
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
RETRIES = 2
"""Number of times a model that is replaced while it is read is read again."""
SWAP_SECONDS = 0.05
"""Longer than the two renames that put one directory in another's place."""

log = logging.getLogger(__name__)


def save_pretrained(
    model: GatedTransformer,
    directory: str | Path,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write ``model`` to ``directory``, replacing a model there once everything is written.

    Args:
        directory: created if needed. Other files in it are not changed, including a README.md
            that is not a model card of this package.
        card: facts about the training, for the model card and ``cfg.json`` (see
            :func:`sat_interp.io.card.model_card` for the names it knows).
        dtype: stored type of the weights; ``torch.float16`` halves the files.

    Raises:
        UserError: processed weights, weights ``dtype`` cannot hold, or ``directory`` is a
            file or holds a Hugging Face model.
        OSError: the disk is full, or permission is missing; a model there is unchanged.
    """
    directory = expanded(directory)
    _refuse_target(directory)
    contents = _contents(model, dict(model.card if card is None else card), dtype)
    if _is_replaceable(directory):
        with atomic_directory(directory) as temporary:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
        return directory
    if not _is_our_card(directory / CARD):
        contents.pop(CARD)  # someone's own README.md
    for name, content in contents.items():  # cfg.json comes last and binds the weights by hash
        write_atomically(directory / name, content)
    for name in set(TOKENIZER) - set(contents):
        (directory / name).unlink(missing_ok=True)  # of the model that was here before
    return directory


def _contents(
    model: GatedTransformer, facts: dict[str, Any], dtype: torch.dtype | None
) -> dict[str, bytes]:
    weights = as_safetensors(_tensors_to_store(model, dtype), metadata={"format": "pt"})
    contents = {WEIGHTS: weights, **_tokenizer_files(model.tokenizer)}
    contents[CARD] = model_card(model, facts).encode()
    config = {
        "format_version": FORMAT,
        "shape": _jsonable(stored_shape(model.cfg)) | {"dtype": _name_of(model.W_E.dtype)},
        "ablation": model.ablation.to_dict(),
        "weights": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "tokenizer": tokenizer_hash(model),
        "versions": versions(),
        "training": _jsonable(facts),
        **_begun_as(model),
    }
    contents[CONFIG] = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    return contents


def _begun_as(model: GatedTransformer) -> dict[str, Any]:
    """What a model has from the one that it began as; nothing where the weights were fresh."""
    facts = {
        "tied": None if model.is_tied else False,
        "own_bos": True if model.has_own_bos else None,
        "hugging_face": None if model.hugging_face is None else _jsonable(model.hugging_face),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _tensors_to_store(model: GatedTransformer, dtype: torch.dtype | None) -> dict[str, Tensor]:
    refuse_processed(model)
    tensors = {}  # TransformerLens' causal masks are buffers, and can be rebuilt
    for name, tensor in model.named_parameters():
        stored = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        if not torch.isfinite(stored).all() and torch.isfinite(tensor).all():
            raise UserError(f"{name} does not fit into {_name_of(stored.dtype)}; store float32")
        tensors[name] = stored
    return tensors


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, bytes]:
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        with naming(scratch):
            tokenizer.save_pretrained(scratch)
        files = {name: Path(scratch, name) for name in TOKENIZER}
        return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def _refuse_target(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot save a model to {directory}: it is a file, name a directory")
    if is_hugging_face(directory) and not (directory / CONFIG).exists():
        raise UserError(
            f"{directory} holds a Hugging Face model, whose weights would be overwritten; name "
            "another directory"
        )


def _is_replaceable(directory: Path) -> bool:
    """Whether ``directory`` may be swapped as a whole: absent, empty, or nothing but our files."""
    if not directory.exists():
        return True
    if os.path.ismount(directory) or directory.is_symlink():
        return False
    only_ours = all(path.name in OUR_FILES and path.is_file() for path in directory.iterdir())
    return only_ours and _is_our_card(directory / CARD)


def _is_our_card(card: Path) -> bool:
    """Whether ``card`` is absent or a model card of this package, which may be replaced."""
    return not card.exists() or CARD_SIGN in card.read_text(encoding="utf-8", errors="replace")


def push_to_hub(
    model: GatedTransformer,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Upload the model to ``repo_id`` (``owner/name``), created if needed; return its address.

    Raises:
        UserError: offline, not logged in, or the hub refuses.
    """
    facts = {**(model.card if card is None else card), "repository": repo_id}
    with tempfile.TemporaryDirectory() as scratch:
        directory = save_pretrained(model, Path(scratch) / "model", facts)
        api = huggingface_hub.HfApi(token=token)
        try:
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload model")
        except Exception as error:  # the hub's failures have no common base class
            raise UserError(
                f"the Hugging Face hub did not take {repo_id!r} (log in with 'hf auth login', or "
                f"pass token=): {first_line(error)}"
            ) from error
    return str(created)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _jsonable(value: Any) -> Any:
    """``value`` in JSON's types: numbers as floats, NaN and infinity as null, the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "__float__"):  # numpy's and torch's scalars
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)


def load_pretrained(
    build: Build[Model],
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Model:
    """Load a model that :func:`save_pretrained` wrote.

    Args:
        build: makes the model that is filled, such as its class.
        name: a directory, a run directory of ``sat-train`` (its ``best/``, else its ``model/``),
            a bundled model (``demo:baseline``, ``demo:local-k4``, ``demo:global-k4``), or the name
            of a repository on the Hugging Face hub (``owner/name``).
        dtype: type of the parameters; by default the one the model was trained in (float32),
            whatever type the file stores.
        revision: branch, tag or commit on the hub.
        tokenizer: in place of the model's own, which is then not read. Whether it is the one the
            model was trained with is not checked (see :func:`tokenizer_mismatch`).

    Returns:
        The model in evaluation mode, as Hugging Face has it; call ``train()`` to continue training.

    Raises:
        UserError: there is no such model or device, or files are missing, damaged, or too new.
    """
    _refuse_device(device)
    directory = find_model(name) or download(str(name), revision)
    for _ in range(RETRIES):
        seen = _bytes_of(directory / CONFIG)
        try:
            model = _load(build, directory, device, dtype, tokenizer)
        except UserError:
            if _bytes_of(directory / CONFIG) == seen:
                raise
        else:
            if _bytes_of(directory / CONFIG) == seen:
                return model
        # A run saved its best model between two reads: the next attempt reads that one.
        time.sleep(SWAP_SECONDS)
        directory = find_model(name) or directory
    return _load(build, directory, device, dtype, tokenizer)


def outline(build: Build[Model], directory: Path) -> Model:
    """Build the model in ``directory`` on the meta device: its shape and hook points, no weights.

    Raises:
        UserError: its configuration is missing, damaged or too new.
    """
    config = read_config(directory / CONFIG)
    with torch.device("meta"):
        tokenizer = _read_tokenizer(directory, config)
        return _make(build, directory, config, "meta", None, tokenizer)


def _load(
    build: Build[Model],
    directory: Path,
    device: str | torch.device,
    dtype: torch.dtype | None,
    given: PreTrainedTokenizerBase | None,
) -> Model:
    config = read_config(directory / CONFIG)
    tensors = read_weights(directory / WEIGHTS, config.get("weights"))
    check_shape(config["shape"], tensors, directory)
    tokenizer = _read_tokenizer(directory, config) if given is None else given
    model = _make(build, directory, config, device, dtype, tokenizer)
    _fill(model, tensors, directory / WEIGHTS)
    model.card = config.get("training") or {}
    if given is None and (note := tokenizer_mismatch(model, tokenizer)):
        log.warning("%s: %s", directory, note)
    return model


def tokenizer_mismatch(model: GatedTransformer, tokenizer: object) -> str | None:
    """Return a line if a tokenizer is not the one the model was trained with, as far as is known.

    Two tokenizers of one size may number their tokens in another order.
    """
    known = model.tokenizer_hash
    if known is None or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if (actual := vocabulary_hash(tokenizer)) == known:
        return None
    return f"the tokenizer ({actual}) is not the one the model was trained with ({known})"


def _bytes_of(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except UnreadableError:
        return None


def _refuse_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {str(device)!r} is not available: {first_line(error)}") from error


def _make(
    build: Build[Model],
    directory: Path,
    config: dict[str, Any],
    device: str | torch.device,
    dtype: torch.dtype | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Model:
    shape = dict(config["shape"])
    try:
        trained_in = DTYPES[shape.pop("dtype")]
        ablation = SelfAblationConfig.from_dict(config["ablation"])
        cfg = HookedTransformerConfig(
            **shape,
            dtype=dtype or working_dtype(trained_in),
            device=str(device),
            init_weights=False,
            seed=None,
        )
        model = build(cfg, ablation, tokenizer, tied=config.get("tied") is not False)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from error
    except _IMPOSSIBLE as error:
        reason = repr(error).split("\n")[0][:200]
        raise UserError(
            f"{directory / CONFIG} does not describe a valid model ({reason}); copy it again"
        ) from error
    model.cfg.init_weights = True
    if isinstance(known := config.get("tokenizer"), str):
        model.tokenizer_hash = known
    model.has_own_bos = config.get("own_bos") is True
    model.hugging_face = config.get("hugging_face")
    return model.eval()


def _read_tokenizer(directory: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    if not (directory / "tokenizer.json").is_file():
        return None
    if config.get("own_bos") is True:
        return read_by_transformer_lens(load_tokenizer(str(directory)))
    # older runs saved tokenizers whose BOS token was never trained
    return start_with_end_of_text(load_tokenizer(str(directory)))


def _fill(model: GatedTransformer, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = dict(model.named_parameters())
    refuse_missing(set(wanted) - set(tensors), path)
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
