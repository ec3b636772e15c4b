"""What commands share: how a MODEL argument is loaded, and which text each model is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from evaluations.core.models import LoadedModel
    from evaluations.core.origin import Origin
    from evaluations.core.runner import Evaluation
    from evaluations.core.text import Text

Dtype = Literal["float32", "float64", "bfloat16"]
ConfigT = TypeVar("ConfigT")


def model_loader(
    device: str | None,
    dtype: Dtype,
    tokenizer: str | None,
    evaluation: Evaluation[Any, ConfigT],
    config: ConfigT,
    own_text: bool = False,
) -> Callable[[str], LoadedModel]:
    """Return ``load_model`` with a command's options, as ``runner.run`` takes it; controls too.

    What can be is checked before a model's weights are read: whether it has a tokenizer and a text
    to be measured on, and whether the evaluation can measure a model of that shape.

    Args:
        own_text: whether each model is measured on the text that it was trained on.
    """
    from evaluations.core.controls import make_control, split
    from evaluations.core.models import load_model, outline
    from evaluations.core.origin import Origin, text_to_score

    def load(spec: str) -> LoadedModel:
        base, control = split(spec)
        known = outline(base, tokenizer)
        if own_text:
            text_to_score(Origin(data=known.data, validation=known.validation), None, None, None)
        if evaluation.check is not None:
            evaluation.check(known.model, config)
        loaded = load_model(base, device, dtype, tokenizer)
        return make_control(loaded, control.kind, control.seed) if control else loaded

    return load


def text_finder(
    models: Sequence[str], data: str | None, validation: str | None, stories: int | None
) -> Callable[[LoadedModel], Text]:
    """The text each model is measured on: the same held-out stories for all of them.

    Raises:
        UserError: there is no such data; told before any model is loaded.
    """
    from evaluations.core.models import origin
    from evaluations.core.origin import Origin, origin_of_text, text_to_score
    from evaluations.core.text import evaluation_text
    from sat_interp.data.sources import parse_data

    if data is not None:
        parse_data(data, validation)
    named = validation or data  # what would be scored
    shared: Origin | None = None
    if named is not None:
        parse_data(named)
        shared = origin_of_text(origins(models, origin), named)

    def text(loaded: LoadedModel) -> Text:
        own = Origin(data=loaded.data, validation=loaded.validation)
        name, held, was_trained_on = text_to_score(own, shared, data, validation)
        return evaluation_text(loaded.tokenizer, name, held, stories, was_trained_on)

    return text


def training_text_finder(
    models: Sequence[str], data: str | None, validation: str | None
) -> Callable[[LoadedModel], tuple[str, str | None]]:
    """Return what names the text that a model's autoencoders are trained on: data, validation data.

    Raises:
        UserError: there is no such data; told before any model is loaded.
    """
    from evaluations.core.models import origin
    from evaluations.core.origin import Origin, origin_of_text, text_to_score
    from sat_interp._util.errors import UserError
    from sat_interp.data.sources import parse_data

    if data is not None:
        parse_data(data, validation)
    named = validation or data
    shared = origin_of_text(origins(models, origin), named) if named is not None else None

    def find(loaded: LoadedModel) -> tuple[str, str | None]:
        own = Origin(data=loaded.data, validation=loaded.validation)
        if data is None and own.data is None:
            raise UserError("name text to train the autoencoder on with --data")
        name, held, _ = text_to_score(own, shared, data, validation)
        return name, held

    return find


def origins(models: Sequence[str], origin: Callable[[str], Origin]) -> list[Origin]:
    """Where the models come from; those that cannot be found fail on their own, later."""
    from evaluations.core.controls import split
    from sat_interp._util.errors import UserError

    found = []
    for spec in models:
        with contextlib.suppress(UserError, OSError):
            found.append(origin(split(spec)[0]))
    return found
