"""Directories of models by name: a path, a run, a bundled model, a hub repository."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from sat_interp._util.errors import UserError, first_line, suggest
from sat_interp._util.files import expanded
from sat_interp._util.reading import read_object
from sat_interp.io.foreign import check_directory

FORMAT = 1  # of cfg.json
CONFIG, WEIGHTS, CARD = "cfg.json", "model.safetensors", "README.md"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
OUR_FILES = (CONFIG, WEIGHTS, CARD, *TOKENIZER)
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files of a repository of any kind that are downloaded: no pickles, no code."""

BUNDLED = ("baseline", "local-k4", "global-k4", "facts", "numbers")


def find_model(name: str | Path) -> Path | None:
    """Return the local directory of a model's name; None if only the hub could have it.

    Raises:
        UserError: an unknown or missing ``demo:`` name, a file, or a directory without a model, or
            with a damaged one.
    """
    if str(name).startswith("demo:"):
        return model_path(str(name))
    path = expanded(name)
    if path.is_dir():
        for directory in (path, path / "best", path / "model"):
            if (directory / CONFIG).is_file():
                return directory
        raise UserError(_no_model_in(path))
    if path.exists():
        raise UserError(f"{path} is a file; name its directory")
    if isinstance(name, Path) or not _could_be_on_hub(name):
        hint = "" if "/" in str(name) else "; a model of the hub is named OWNER/NAME"
        raise UserError(f"there is no model directory {str(name)!r}{hint}")
    return None


def model_path(name: str) -> Path:
    """The directory of a bundled model, such as ``demo:baseline`` (``BUNDLED``).

    Raises:
        UserError: an unknown name, or one this installation does not hold.
    """
    choices = [f"demo:{bundled}" for bundled in BUNDLED]
    if name not in choices:
        raise UserError(suggest("bundled model", name, choices))
    short = name.removeprefix("demo:")
    directory = Path(__file__).parents[1] / "models" / short
    if not (directory / CONFIG).is_file():
        raise UserError(
            f"{name} is not part of this installation; train one with "
            f"sat-train --preset builtin-{short} --out runs/{short}"
        )
    return directory


def download(name: str, revision: str | None) -> Path:
    """A hub repository's snapshot: our files only, from the cache where HF_HUB_OFFLINE is set.

    Raises:
        UserError: offline and not cached, private, no such name, or not saved by sat_interp.
    """
    try:
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(OUR_FILES)
        )
    except Exception as error:  # the hub's failures have no common base class
        raise UserError(
            f"there is no directory {name!r}, and the model cannot be loaded from the "
            f"Hugging Face hub (offline, private, or no such name): {first_line(error)}"
        ) from error
    if not Path(snapshot, CONFIG).is_file():
        raise UserError(
            f"{name!r} on the Hugging Face hub has no {CONFIG}: it was not saved by sat_interp"
        )
    return Path(snapshot)


def refuse_without_weights(name: str, snapshot: Path) -> None:
    """Do nothing if a repository that was downloaded has weights that are read.

    Raises:
        UserError: it has no safetensors.
    """
    if not any(snapshot.glob("*.safetensors")):
        raise UserError(
            f"{name!r} on the Hugging Face hub holds no safetensors, and pickles are not read: "
            "convert its weights where you trust them, with transformers' save_pretrained"
        )


def _no_model_in(path: Path) -> str:
    if is_hugging_face(path):
        return (
            f"{path} holds a Hugging Face model, not one of sat_interp; load it with "
            f"SelfAblatingTransformer.from_hf({str(path)!r})"
        )
    if (path / "checkpoints").is_dir():
        return f"{path} holds a run without a saved model; continue it with sat-train --resume"
    if (path / "config.json").is_file():
        check_directory(path)
        return f"{path / 'config.json'} has no model_type: download or copy the model again"
    return (
        f"{path} does not hold a model: it has neither {CONFIG} (sat_interp) nor config.json "
        "(transformers); name a directory of save_pretrained, or download it again"
    )


def is_hugging_face(directory: Path) -> bool:
    """Whether ``directory`` holds a model of transformers' (config.json with a model_type)."""
    return "model_type" in read_object(directory / "config.json")


def _could_be_on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
