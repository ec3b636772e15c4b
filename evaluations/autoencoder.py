"""A SAELens directory: opened, or refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sat_interp.errors import UserError


def open_sae(directory: Path, device: str) -> SAE[Any]:
    """A SAELens directory, by SAELens.

    Raises:
        UserError: it is none.
    """
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (directory / name).is_file():
            raise UserError(f"{directory} is no SAELens directory: it has no {name}")
    try:
        return SAE.load_from_disk(directory, device=device).eval()
    except Exception as error:  # SAELens' and safetensors' failures have no common base class
        told = " ".join(str(error).split())[:200]
        raise UserError(f"SAELens cannot open {directory}: {told}") from None


def content_hash(directory: Path) -> str:
    """Of all that decides what the autoencoder does, weights and configuration, 16 digits."""
    digest = hashlib.sha256((directory / SAE_CFG_FILENAME).read_bytes())
    digest.update((directory / SAE_WEIGHTS_FILENAME).read_bytes())
    return digest.hexdigest()[:16]


def weights_hash(directory: Path) -> str:
    """Of the autoencoder's weights file, 16 digits."""
    return hashlib.sha256((directory / SAE_WEIGHTS_FILENAME).read_bytes()).hexdigest()[:16]
