"""The files of an evaluation's job: the model, its text, and what earlier attempts left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluations.core.controls import split
from evaluations.core.model_source import ModelSource
from evaluations.core.origin import Origin, origin_of_text
from evaluations.core.text import text_source
from sat_interp._util.errors import UserError
from sat_interp._util.files import expanded, file_name, files_below
from sat_interp.data.sources import absolute_paths, files_of

PATHS = ("sae", "tokenizer", "task", "facts", "load", "substitutes", "model")
"""Options, besides those of text, that may name a file or a directory."""
RUN_FILES = ("config.json", "summary.json")
"""Files beside a run's model that tell how it was trained."""

Files = dict[Path, dict[str, Path]]
"""Files to send: by a path on this machine, path by path relative to it."""


def absolute_model(model: str) -> str:
    """Return a MODEL argument that names the same model from any directory."""
    base, control = split(model)
    path = expanded(base)
    if not path.exists():
        return model
    absolute = str(path.resolve())
    return f"{absolute} [{control}]" if control else absolute


def absolute_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return options whose paths name the same files from any directory."""
    made = dict(settings)
    for name in ("data", "validation"):
        if isinstance(made.get(name), str):
            made[name] = absolute_paths(made[name])
    for name in (*PATHS, "out"):
        value = made.get(name)
        if isinstance(value, str | Path) and (name == "out" or expanded(value).exists()):
            made[name] = str(expanded(value).resolve())
    return made


def setting_files(settings: Mapping[str, Any]) -> Files:
    """Return the files that absolute options name."""
    files: Files = {}
    for name in ("data", "validation"):
        if isinstance(settings.get(name), str):
            files |= files_of(settings[name])
    for name in PATHS:
        path = Path(str(settings.get(name) or ""))
        if path.is_absolute() and path.exists():
            files[path] = files_below(path)
    return files


def model_files(model: str) -> Files:
    """Return the files of a model and of the text it was trained on; none of a built-in model.

    Args:
        model: MODEL argument, absolute.

    Raises:
        UserError: nothing of that name.
    """
    source = ModelSource.of(model)
    location = source.location
    if location is None or location.kind in ("bundled", "hub"):
        return {}
    if location.kind == "gguf":
        path = Path(split(model)[0])
        return {path: {"": path}}
    files: Files = {}
    origin = source.origin
    for text in (origin.data, origin.validation):
        if text is not None:
            with suppress(UserError):  # no longer there; the evaluation says so if it needs it
                files |= files_of(text)
    directory = location.directory.resolve()
    if location.kind != "training run":
        return {**files, directory: files_below(directory)}
    root = directory.parent
    own = {f"{directory.name}/{name}": path for name, path in files_below(directory).items()}
    beside = {name: root / name for name in RUN_FILES if (root / name).is_file()}
    return {**files, root: {**beside, **own}}


def earlier_files(evaluation: str, model: str, out: Path) -> list[str]:
    """Return the records and details of an evaluation that a model has below ``out``."""
    stem = file_name(ModelSource.of(model).name)
    found = []
    for home in sorted(out.glob(f"{stem}-*")):
        if re.fullmatch(re.escape(stem) + "-[0-9a-f]{8}", home.name):
            found += [*home.glob(f"{evaluation}-*.json"), *home.glob(f"{evaluation}/**/*")]
    return [path.relative_to(out).as_posix() for path in found if path.is_file()]


def text_model(models: Sequence[str], settings: Mapping[str, Any]) -> str | None:
    """Return the model whose training decides which part of the text is held out from all models.

    Each model alone may hold out less: its job is given this model, too.
    """
    scored = settings.get("validation") or settings.get("data")
    if not isinstance(scored, str):
        return None
    try:
        source = text_source(scored)
    except UserError:
        return None  # the evaluations report the error
    origins = {model: _origin(model) for model in models}
    shared = origin_of_text(list(origins.values()), source)
    return next((model for model, origin in origins.items() if origin is shared), None)


def shares_text(model: str, other: str) -> bool:
    """Return whether two models were trained on the same text, so that they hold out the same."""
    one, two = _origin(model), _origin(other)
    return (one.data, one.validation) == (two.data, two.validation)


def _origin(model: str) -> Origin:
    with suppress(UserError, OSError):
        return ModelSource.of(model).origin
    return Origin()
