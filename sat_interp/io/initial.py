"""A pretrained model to begin from: ours, a directory of transformers', a GGUF file, the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from transformer_lens import HookedTransformerConfig
from transformers import AutoConfig, PreTrainedTokenizerBase

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import expanded
from sat_interp.io import hugging_face
from sat_interp.io.architectures import shape_of
from sat_interp.io.convert import from_hooked_transformer
from sat_interp.io.locate import (
    CONFIG,
    HUB_FILES,
    WEIGHTS,
    find_model,
    is_hugging_face,
    refuse_without_weights,
)
from sat_interp.io.pretrained import load_pretrained, outline
from sat_interp.io.protocol import Build, Model
from sat_interp.model.config import SelfAblationConfig


@dataclass(frozen=True)
class InitialModel:
    """A model whose weights another one begins with; they are read by :meth:`load` alone.

    Attributes:
        name: as it was given.
        path: its directory, or its GGUF file.
        is_ours: whether ``save_pretrained`` of this package wrote it.
    """

    name: str
    path: Path
    is_ours: bool

    @classmethod
    def find(cls, name: str) -> InitialModel:
        """The model of a name: a path, a run of ``sat-train``, ``demo:baseline``, a hub id.

        Raises:
            UserError: there is none, or a directory that holds no whole model.
        """
        path = expanded(name)
        if path.is_file() or (path.is_dir() and is_hugging_face(path)):
            return cls(name, path, is_ours=False)
        directory = find_model(name)
        if directory is None:
            snapshot = _download(name)
            return cls(name, snapshot, (snapshot / CONFIG).is_file())
        return cls(name, directory, is_ours=True)

    def shape(self, build: Build[Any]) -> HookedTransformerConfig:
        """Its shape; no weights are read.

        Raises:
            UserError: the configuration is damaged, or describes a model that gates do not cover.
        """
        if self.is_ours:
            return outline(build, self.path).cfg  # type: ignore[no-any-return]
        where = hugging_face.place(str(self.path))
        try:
            config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
            return shape_of(config)
        except UserError as error:
            raise UserError(f"cannot begin from {self.name}: {error}") from error
        except Exception as error:  # transformers raises whatever its reading of the file meets
            raise UserError(f"cannot begin from {self.name}: {first_line(error)}") from error

    def tokenizer(self, build: Build[Any]) -> PreTrainedTokenizerBase | None:
        """Its tokenizer; None where it has none."""
        if self.is_ours:
            own: PreTrainedTokenizerBase | None = outline(build, self.path).tokenizer
            return own
        return hugging_face.tokenizer_beside(str(self.path))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the files of its weights."""
        digest = hashlib.sha256()
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        for file in [self.path / WEIGHTS] if self.is_ours else files:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]

    def load(
        self,
        build: Build[Model],
        ablation: SelfAblationConfig,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> Model:
        """Its clean stream with fresh gates, on the CPU; gates that it has are left behind.

        Raises:
            UserError: the weights are missing, damaged or not safetensors.
        """
        if not self.is_ours:
            return hugging_face.from_hf(build, str(self.path), ablation, tokenizer)
        model: Any = load_pretrained(build, self.path, tokenizer=tokenizer)
        return from_hooked_transformer(build, model, ablation)


def _download(name: str) -> Path:
    """A hub repository's snapshot, from the cache where HF_HUB_OFFLINE is set."""
    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's failures have no common base class
        raise UserError(
            f"there is no directory {name!r}, and the model cannot be loaded from the "
            f"Hugging Face hub (offline, private, or no such name): {first_line(error)}"
        ) from error
    refuse_without_weights(name, snapshot)
    return snapshot
