"""Where a named model lies: in a directory, in a training run, in this package, on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sat_interp._util.errors import UserError, first_line, suggest
from sat_interp._util.files import expanded
from sat_interp.io.gguf import is_gguf, unpack
from sat_interp.io.locate import (
    BUNDLED,
    CONFIG,
    HUB_FILES,
    find_model,
    is_hugging_face,
    refuse_without_weights,
)

Kind = Literal["bundled", "training run", "ours", "hugging face", "gguf", "hub"]


@dataclass(frozen=True)
class Location:
    """Where a model lies.

    Attributes:
        kind: what lies there; a model of ours on the hub is of the kind ``hub`` too.
        directory: with the model's files; of a run its ``best`` model, else its ``model``; of a
            GGUF file what it was unpacked to.
        name: of the model in tables.
        revision: the commit of a repository on the hub.
    """

    kind: Kind
    directory: Path
    name: str
    revision: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether ``save_pretrained`` of this package wrote the directory."""
        return (self.directory / CONFIG).is_file()


def locate(given: str | Path) -> Location:
    """Return where the model of a MODEL argument lies, downloaded if need be.

    Raises:
        UserError: nothing of that name.
    """
    spec = str(given)
    if not spec.strip():
        raise UserError("MODEL is empty: name a directory, a hub id or " + ", ".join(_bundled()))
    if spec.startswith("demo:"):
        return Location("bundled", _our_directory(spec), spec)
    path = expanded(spec)
    if path.is_dir():
        return _local(path)
    if path.is_file() and is_gguf(path):
        return Location("gguf", unpack(path), path.stem)
    if path.exists():
        raise UserError(f"{spec} is a file: MODEL is the directory that holds it, or a .gguf file")
    is_path = isinstance(given, Path) or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    if is_path or is_gguf(path):
        siblings = [str(near) for near in path.parent.glob("*") if near.is_dir() or is_gguf(near)]
        hint = suggest("MODEL", spec, siblings) if siblings else f"unknown MODEL {spec!r}"
        raise UserError(f"there is no such {'file' if is_gguf(path) else 'directory'}: {hint}")
    return _on_hub(spec)


def _local(path: Path) -> Location:
    if is_hugging_face(path):
        return Location("hugging face", path, _name_of(path))
    holds_weights = any(path.glob("*.safetensors")) and not (path / CONFIG).exists()
    if holds_weights and not (path / "config.json").exists():
        raise UserError(f"{path} has weights and no config.json: download or copy it again")
    directory = _our_directory(path)
    in_run = (directory.resolve().parent / "config.json").exists()
    return Location("training run" if in_run else "ours", directory, _name_of(path))


def _our_directory(name: str | Path) -> Path:
    """Return the directory of a model of ours: itself, a run's best model, or a bundled one."""
    directory = find_model(name)
    if directory is None:
        raise UserError(f"there is no model {str(name)!r}")
    return directory


def _name_of(path: Path) -> str:
    """Return the directory's own name, or the run's where it is a run's ``model`` or ``best``."""
    resolved = path.resolve()
    is_part = resolved.name in ("model", "best") and (resolved.parent / "config.json").exists()
    return resolved.parent.name if is_part else resolved.name


def _on_hub(spec: str) -> Location:
    """Download a repository, or find it in the cache; known short names are TransformerLens'."""
    from huggingface_hub import snapshot_download
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        repository = get_official_model_name(spec)
    except ValueError:
        repository = spec
    try:
        directory = Path(snapshot_download(repository, allow_patterns=[*HUB_FILES]))
    except Exception as error:  # the hub's failures have no common base class
        known = suggest("MODEL", spec, [*_bundled(), *_directories_here()])
        raise UserError(
            f"{known}; nor can it be downloaded from the Hugging Face hub: {first_line(error)}"
        ) from None
    refuse_without_weights(spec, directory)
    holds = directory if is_hugging_face(directory) else _our_directory(directory)
    return Location("hub", holds, spec, directory.name)


def _bundled() -> list[str]:
    return [f"demo:{name}" for name in BUNDLED]


def _directories_here() -> list[str]:
    return [path.name for path in Path().iterdir() if path.is_dir() and path.name[0] not in "._"]
