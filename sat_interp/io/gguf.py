"""GGUF files: unpacked once, into a Hugging Face directory that everything else reads.

transformers parses a GGUF file anew for its configuration, its tokenizer and its weights, which
takes a minute for 135 million parameters. The directory lies in the cache under the hash of the
file and transformers' version, with weights in float32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError, first_line, shown
from sat_interp._util.files import atomic_directory, default_cache
from sat_interp._util.progress import quiet_transformers

SUFFIX = ".gguf"
_MAGIC = b"GGUF"

log = logging.getLogger(__name__)


def is_gguf(path: str | Path) -> bool:
    """Return whether a name is that of a GGUF file, by its ending."""
    return Path(path).suffix == SUFFIX


def unpack(file: Path) -> Path:
    """Return a Hugging Face directory with configuration, tokenizer and weights of a GGUF file.

    Quantised weights are expanded to float32 by transformers.

    Raises:
        UserError: there is no such file, it is no GGUF file, it lacks weights, the package ``gguf``
            is missing, or transformers cannot read the file.
    """
    _check(file)
    directory = _unpacked(file)
    if (directory / "config.json").is_file():
        return directory
    log.info("%s: unpacking, once", file.name)
    # the bar over GGUF tensors can only be hidden by redirecting stderr
    with quiet_transformers():
        tokenizer, model = _read(file)
        with atomic_directory(directory) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return directory


def _check(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if magic != _MAGIC:
        raise UserError(f"{file} is not a GGUF file: it begins with {shown(magic)}")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file}: GGUF files need the package gguf: pip install gguf")


def _unpacked(file: Path) -> Path:
    from transformers import __version__

    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return default_cache() / "gguf" / f"{digest[:20]}-{__version__}"


def _read(file: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer

    from sat_interp.io.whole import read_whole

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = read_whole(**where, dtype=torch.float32, local_files_only=True)
        vars(model)["hf_quantizer"] = None  # the weights are no longer quantised, and can be saved
        vars(model.config).pop("quantization_config", None)
        tokenizer = AutoTokenizer.from_pretrained(
            **where, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and gguf raise whatever their reading meets
        raise UserError(
            f"{file} is cut off, or of a kind that transformers cannot read: {first_line(error)}"
        ) from None
    return tokenizer, model
