"""Options that several commands share, and how the values of any options are checked.

An options class is a frozen dataclass with a docstring under each field. Its fields are the
command's options, the keyword arguments of the function of the same name, and the docs' table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from sat_interp._util.errors import UserError, shown, suggest
from sat_interp._util.settings import alternatives, type_words

Dtype: TypeAlias = Literal["float32", "float64", "bfloat16"]
OptionsT = TypeVar("OptionsT")
DEFAULT_OUT = "results"
Object: TypeAlias = Any
"""An option that takes an object from Python, and text from the command line."""


@dataclass(frozen=True)
class RunOptions:
    """Where records go, and how models are loaded."""

    out: str | None = None
    """Directory of the records, tables and figures; sat-eval writes to results by default."""

    force: bool = False
    """Measure again what has a record already."""

    device: str | None = None
    """Device to compute on, such as cpu; by default an accelerator where there is one."""

    dtype: Dtype = "float32"
    """Precision of the computation."""

    tokenizer: Object = None
    """Tokenizer in place of the model's own: gpt2, a directory or a hub id."""


@dataclass(frozen=True)
class TextOptions:
    """The text that models are measured on."""

    data: Object = None
    """Text: demo, tinystories, a Hugging Face dataset (name:column), or .txt, .jsonl[.gz] or
    .parquet files. The validation split is read, or all of a file that has none. By default the
    stories held out from the training of each model; needed where those are not known."""

    validation: Object = None
    """Validation text, where DATA has no validation split of its own."""

    stories: int | None = None
    """Number of stories to read, from the first; all by default."""


@dataclass(frozen=True)
class TaskOptions:
    """The prompts that models are measured on."""

    task: Object = None
    """Task: ioi, ioi-tinystories, greater-than, greater-than-digit, gender, quotes, agreement,
    induction, object, reply, or a .json file in auto-circuit's format. By default ioi for models
    trained on the built-in corpus, ioi-tinystories for all others."""

    prompts: int = 100
    """Number of prompts to find the circuit with."""

    held_out: int | None = None
    """Number of further prompts to measure it on; by default as many. They share no prompt with the
    others, and of IOI no pair of names. Of a file with too few prompts for both, those it has are
    shared; 0 holds out none."""

    no_bos: bool = False
    """Leave out the token that begins a story (BOS, or end-of-text)."""


@dataclass(frozen=True)
class ControlOptions:
    """Control models measured beside each model."""

    control: str | None = None
    """Also measure each model untrained (same shape, freshly initialised), shuffled (the entries of
    each weight matrix permuted), or none; several with commas between them, with seeds as in
    untrained,untrained:1,shuffled. Same text, same tokenizer."""


@dataclass(frozen=True)
class Request:
    """What a user asked of an evaluation.

    Attributes:
        models: a name, a path or a model in memory, several of these, or models in memory by name;
            a list of sources once they are resolved (``inputs.resolved``).
        options: the evaluation's own options.
        run, text, task, control: the shared ones; their defaults where the evaluation has none.
    """

    models: Any
    options: Any
    run: RunOptions = RunOptions()
    text: TextOptions = TextOptions()
    task: TaskOptions = TaskOptions()
    control: ControlOptions = ControlOptions()

    @property
    def out(self) -> Path:
        """Directory of the records."""
        return Path(self.run.out or DEFAULT_OUT)


SHARED: Mapping[str, type] = {
    "run": RunOptions,
    "text": TextOptions,
    "task": TaskOptions,
    "control": ControlOptions,
}


def make_request(
    models: Any, options: type, shared: Sequence[type], settings: Mapping[str, Any]
) -> Request:
    """Distribute keyword arguments over the options classes they belong to, checked.

    Args:
        models: as of :class:`Request`.
        options: the class of the evaluation's own options.
        shared: shared classes that it takes, or subclasses of them with defaults of its own.
        settings: the options by name.

    Raises:
        UserError: an unknown option, or a value of another type than the option's.
    """
    classes = {
        name: own
        for name, kind in SHARED.items()
        for own in (RunOptions, *shared)
        if issubclass(own, kind)
    }
    owners = {
        field.name: kind
        for kind in (*classes.values(), options)
        for field in dataclasses.fields(kind)
    }
    given: dict[type, dict[str, Any]] = {kind: {} for kind in (*classes.values(), options)}
    for name, value in settings.items():
        if name not in owners:
            raise UserError(suggest("option", name, owners))
        given[owners[name]][name] = value
    made: dict[str, Any] = {name: make(kind, given[kind]) for name, kind in classes.items()}
    return Request(models, make(options, given[options]), **made)


def make(options: type[OptionsT], settings: Mapping[str, Any]) -> OptionsT:
    """Return an options object; numbers and text with commas are taken where a list is wanted.

    Raises:
        UserError: a value is not of its option's type.
    """
    hints = get_type_hints(options)
    return options(**{name: checked(name, value, hints[name]) for name, value in settings.items()})


def checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its option's type wants it.

    Raises:
        UserError: it is of another type.
    """
    if hint is Any:
        return value
    for kind in alternatives(hint):
        try:
            return _as_kind(value, kind)
        except (TypeError, ValueError):
            continue
    raise UserError(f"{name.replace('_', '-')} must be {type_words(hint)}, not {shown(value)}")


def _as_kind(value: Any, kind: Any) -> Any:
    """Return a value as one type, or raise TypeError or ValueError."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ValueError
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(_item(part, item) for part in parts if part != "")
    if kind is Path:
        return Path(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_flag = isinstance(value, bool) and kind is not bool
    if is_flag or not isinstance(value, kind):
        raise TypeError
    return value


def _item(value: Any, kind: Any) -> Any:
    """Return an entry of a list; text is read as a number where one is wanted."""
    return kind(value) if isinstance(value, str) else _as_kind(value, kind)
