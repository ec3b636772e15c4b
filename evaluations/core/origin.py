"""How a model was trained, according to its files, and whether a text was part of that."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError
from sat_interp._util.reading import read_object
from sat_interp.data.sources import DataSource, FilesSource, HubSource, file_names, parse_data
from sat_interp.io.locate import CONFIG

LONGEST = 1000
"""Characters of the longest fact that is kept in a record."""


@dataclass(frozen=True)
class Origin:
    """How a model was trained.

    Attributes:
        facts: small, and without directories, for records. ``steps`` is the step at which the
            model was saved, ``planned_steps`` the length of its run, ``finished`` whether the run
            is; the last two only while the model lies in its run's directory.
        data, validation: the run's DATA arguments, directories included.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    validation: str | None = None


def read_origin(directory: Path) -> Origin:
    """Return the origin of the model of ours in ``directory``; an empty one for any other model."""
    if not (directory / CONFIG).is_file():
        return Origin()
    card = _mapping(read_object(directory / CONFIG).get("training"))
    run = _mapping(read_object(directory.parent / "config.json").get("config"))
    if not isinstance(run.get("data"), str):
        run = {}  # not a run of sat-train
    if run:
        summary = directory.parent / "summary.json"
        match = _mapping(read_object(summary).get("match"))
        # a run matched to a perplexity has the longest length it would have tried as its steps
        chosen = {"steps": match["steps"]} if "steps" in match else {}
        run = {**run, **chosen, "planned_steps": run.get("steps"), "finished": summary.exists()}
        if "steps" not in card and not chosen:
            run.pop("steps", None)  # the step at which it was saved is not known
    return card_origin(card, run)


def card_origin(card: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> Origin:
    """Return the origin that a model card's facts and the configuration of its run state.

    Args:
        card: the model's own (``SelfAblatingTransformer.card``); it overrides the run.
        run: configuration of the run in whose directory the model lies.
    """
    run = run or {}
    facts = {
        key: _without_directory(key, value)
        for key, value in {**run, **card}.items()
        if isinstance(value, str | int | float) and len(str(value)) < LONGEST
    }
    data, validation = (_text(run.get(key) or card.get(key)) for key in ("data", "validation"))
    return Origin(facts, data, validation)


def origin_of_text(origins: Sequence[Origin], source: DataSource) -> Origin | None:
    """Return the first origin whose training text is, or is part of, the text to score.

    An origin with validation data of its own comes before one that held stories out, since its
    validation text is in no model's training text.
    """
    matches = [origin for origin in origins if origin.data and _shares(origin.data, source)]
    return min(matches, key=lambda origin: origin.validation is None, default=None)


def text_to_score(
    own: Origin,
    shared: Origin | None,
    data: str | DataSource | None,
    validation: str | DataSource | None,
) -> tuple[str | DataSource, str | DataSource | None, bool]:
    """Return what to score a model on: data, validation data, and whether training saw that data.

    Args:
        own: of the model.
        shared: of the model, own or another, that was trained on what DATA would score.
        data: the text that was asked for, None for the model's own.
        validation: its validation text, where it has none of its own.

    Raises:
        UserError: nothing was asked for, and the model's training text is unknown or no longer
            there. A model is never measured on a text that was not named.
    """
    asked = data or validation
    if shared is not None and shared.data is not None and asked is not None:
        if _can_be_read(shared.data):
            return shared.data, shared.validation, True
        return validation or asked, None, True
    if asked is not None:
        return data or own.data or asked, validation, False
    if own.data is None:
        raise UserError(
            "the text this model was trained on is not known: name text to measure it on with "
            "--data FILE (or --data demo for the built-in corpus of toy stories)"
        )
    if not _can_be_read(own.data):
        raise UserError(
            f"the text the model was trained on ({own.data}) is not here: name text with --data"
        )
    return own.data, own.validation, True


def _can_be_read(spec: str) -> bool:
    try:
        parse_data(spec)
    except UserError:
        return False
    return True


def _shares(trained_on: str, scored: DataSource) -> bool:
    """Whether the training text and the text to score (its validation part, if any) share files.

    A training text that is no longer there is compared by file names: equal names by coincidence
    only make the text to score smaller, while scoring text that was trained on would invalidate
    the result.
    """
    try:
        training = parse_data(trained_on)
    except UserError:
        names = set(file_names(trained_on).split(","))
        return bool(names & set(file_names(scored.spec).split(",")))
    if isinstance(training, FilesSource) and isinstance(scored, FilesSource):
        read = scored.held_files or scored.files
        return any(_same_file(one, other) for one in training.files for other in read)
    if isinstance(training, HubSource) and isinstance(scored, HubSource):
        return _identity(training) == _identity(scored)
    return False  # the built-in corpus keeps its validation stories from training


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or copies of it."""
    if one.resolve() == other.resolve():
        return True
    if one.stat().st_size != other.stat().st_size:
        return False
    hashes = [FilesSource("", files=(path,)).hash_part("all") for path in (one, other)]
    return hashes[0] == hashes[1]


def _identity(source: HubSource) -> tuple[str, str | None, str]:
    path = Path(source.dataset)
    return (str(path.resolve()) if path.exists() else source.dataset, source.config, source.column)


def _without_directory(key: str, value: str | int | float) -> str | int | float:
    """Return a fact without local paths, which are not recorded."""
    if not isinstance(value, str):
        return value
    if key in ("data", "validation"):
        return file_names(value)
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(value).is_dir()
    if key == "out" or (key in ("tokenizer", "init") and is_path):
        return os.path.basename(os.path.abspath(os.path.expanduser(value)))
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
