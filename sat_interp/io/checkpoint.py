"""A model as a directory: ``cfg.json``, ``model.safetensors``, the tokenizer's files, a model card.

``cfg.json`` is written last and carries the hash of the weights, so that a directory is either one
whole model or refused by name. Weights are safetensors only: loading runs nobody's code. The tied
embedding is stored once, as ``embed.W_E``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as as_safetensors
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_directory, naming, write_atomically
from sat_interp._util.provenance import versions
from sat_interp.io.card import CARD_SIGN, model_card, tokenizer_hash
from sat_interp.io.hub import upload
from sat_interp.io.loading import from_pretrained
from sat_interp.io.locate import (
    CARD,
    CONFIG,
    FORMAT,
    OUR_FILES,
    TOKENIZER,
    WEIGHTS,
    find_model,
    is_hugging_face,
    model_path,
)
from sat_interp.model.transformer import SelfAblatingTransformer

__all__ = ["find_model", "from_pretrained", "model_path", "push_to_hub", "save_pretrained"]

# The fields of HookedTransformerConfig that decide the numbers, or how text becomes tokens. Not
# ``seed``: TransformerLens reseeds every generator of the process when a config carries one.
_SHAPE = (
    "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "eps",
    "normalization_type", "positional_embedding_type", "attention_dir", "use_attn_scale",
    "attn_scale", "scale_attn_by_inverse_layer_idx", "init_mode", "initializer_range",
    "default_prepend_bos", "original_architecture", "model_name",
)  # fmt: skip


def save_pretrained(
    model: SelfAblatingTransformer,
    directory: str | Path,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write ``model`` to ``directory``; what stands there is replaced when all is written.

    Args:
        directory: made if need be. Files in it that are not ours are left alone, a README.md
            that is no card of ours among them.
        card: facts about the training, for the model card and ``cfg.json`` (see
            :func:`sat_interp.io.card.model_card` for the names it knows).
        dtype: stored type of the weights; ``torch.float16`` halves the files.

    Raises:
        UserError: processed weights, weights ``dtype`` cannot hold, or ``directory`` is a
            file or holds a Hugging Face model.
        OSError: the disk is full, or permission is missing; what stood there is untouched.
    """
    directory = Path(directory).expanduser()
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
    model: SelfAblatingTransformer, facts: dict[str, Any], dtype: torch.dtype | None
) -> dict[str, bytes]:
    weights = as_safetensors(_tensors_to_store(model, dtype), metadata={"format": "pt"})
    contents = {WEIGHTS: weights, **_tokenizer_files(model.tokenizer)}
    contents[CARD] = model_card(model, facts).encode()
    config = {
        "format_version": FORMAT,
        "shape": {name: _jsonable(getattr(model.cfg, name)) for name in _SHAPE}
        | {"dtype": _name_of(model.W_E.dtype)},
        "ablation": model.ablation.to_dict(),
        "weights": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "tokenizer": tokenizer_hash(model),
        "versions": versions(),
        "training": _jsonable(facts),
    }
    contents[CONFIG] = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    return contents


def _tensors_to_store(
    model: SelfAblatingTransformer, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    if model.weights_processed:
        raise UserError(
            "the weights were processed (folded or centred) and no longer fit the gates or the "
            "tied embedding; save the model as it was loaded, before processing"
        )
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
    """Whether ``card`` is absent or a model card of ours, which may be replaced."""
    return not card.exists() or CARD_SIGN in card.read_text(encoding="utf-8", errors="replace")


def push_to_hub(
    model: SelfAblatingTransformer,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Upload the model to ``repo_id`` (``owner/name``), made if need be; returns its address.

    Raises:
        UserError: offline, not logged in, or the hub refuses.
    """
    facts = {**(model.card if card is None else card), "repository": repo_id}
    with tempfile.TemporaryDirectory() as scratch:
        directory = save_pretrained(model, Path(scratch) / "model", facts)
        return upload(directory, repo_id, private, token)


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
