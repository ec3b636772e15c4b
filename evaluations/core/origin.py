"""How a model was trained, as far as its files tell, and whether a text was part of that."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError
from sat_interp.data.sources import DataSource, FilesSource, HubSource, file_names, parse_data
from sat_interp.io.locate import CONFIG

LONGEST = 1000  # characters of a fact that is worth keeping in a record


@dataclass(frozen=True)
class Origin:
    """How a model was trained.

    Attributes:
        facts: small, and without directories, for records. ``steps`` are those after which the
            model was saved, ``planned_steps`` those its run was to take, ``finished`` whether the
            run has; the last two where the model still lies in its run's directory.
        data, validation: as they were named to the run, directories included.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    validation: str | None = None


def read_origin(directory: Path) -> Origin:
    """Return the origin of the model of ours in ``directory``; an empty one for any other model."""
    if not (directory / CONFIG).is_file():
        return Origin()
    card = _mapping(_json(directory / CONFIG).get("training"))
    run = _mapping(_json(directory.parent / "config.json").get("config"))
    if not isinstance(run.get("data"), str):
        run = {}  # not a run of ours
    if run:
        summary = directory.parent / "summary.json"
        match = _mapping(_json(summary).get("match"))
        # a run that was fitted to a perplexity planned the longest length it would have tried
        chosen = {"steps": match["steps"]} if "steps" in match else {}
        run = {**run, **chosen, "planned_steps": run.get("steps"), "finished": summary.exists()}
        if "steps" not in card and not chosen:
            run.pop("steps", None)  # nothing says after how many steps it was saved
    return card_origin(card, run)


def card_origin(card: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> Origin:
    """Return the origin that a model card's facts and the configuration of its run state.

    Args:
        card: the model's own (``SelfAblatingTransformer.card``); it goes before the run's.
        run: empty where the model does not lie in its run.
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

    One with validation data of its own comes before one that held stories out, for its validation
    text was in no model's training text.
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
        data, validation: as they were asked for.

    Raises:
        UserError: nothing was asked for, and the model's training text is unknown or not where it
            was. A model is never measured on a text that nobody named.
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

    A training text that is no longer there is compared by its files' names: a name that happens to
    be the same costs a smaller text to score, a text that was trained on costs the result.
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
    """The same file by another name, or a copy of it."""
    if one.resolve() == other.resolve():
        return True
    if one.stat().st_size != other.stat().st_size:
        return False
    first, second = (FilesSource("", files=(path,)).hash_part("all") for path in (one, other))
    return first == second


def _identity(source: HubSource) -> tuple[str, str | None, str]:
    path = Path(source.dataset)
    return (str(path.resolve()) if path.exists() else source.dataset, source.config, source.column)


def _without_directory(key: str, value: str | int | float) -> str | int | float:
    """Records tell what a thing is called, not where on somebody's machine it lay."""
    if not isinstance(value, str):
        return value
    if key in ("data", "validation"):
        return file_names(value)
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(value).is_dir()
    if key == "out" or (key == "tokenizer" and is_path):
        return os.path.basename(os.path.abspath(os.path.expanduser(value)))
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read."""
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
