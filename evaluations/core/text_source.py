"""Which text each model is measured on, and which its autoencoders are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from evaluations.core.model_source import ModelSource
from evaluations.core.models import LoadedModel
from evaluations.core.origin import Origin, origin_of_text, text_to_score
from evaluations.core.text import Text, evaluation_text
from sat_interp._util.errors import UserError
from sat_interp.data.sources import parse_data


def text_finder(
    sources: Sequence[ModelSource],
    data: str | None,
    validation: str | None,
    stories: int | None,
) -> Callable[[LoadedModel], Text]:
    """Return what gives each model its text: the same held-out stories for all of them.

    Raises:
        UserError: there is no such data; raised before any model is loaded.
    """
    shared = _shared_origin(sources, data, validation)

    def text(loaded: LoadedModel) -> Text:
        own = Origin(data=loaded.data, validation=loaded.validation)
        name, held, was_trained_on = text_to_score(own, shared, data, validation)
        return evaluation_text(loaded.tokenizer, name, held, stories, was_trained_on)

    return text


def training_text_finder(
    sources: Sequence[ModelSource], data: str | None, validation: str | None
) -> Callable[[LoadedModel], tuple[str, str | None]]:
    """Return what names the text that a model's autoencoders are trained on: data, validation data.

    Raises:
        UserError: there is no such data; raised before any model is loaded.
    """
    shared = _shared_origin(sources, data, validation)

    def find(loaded: LoadedModel) -> tuple[str, str | None]:
        own = Origin(data=loaded.data, validation=loaded.validation)
        if data is None and own.data is None:
            raise UserError("name text to train the autoencoder on with --data")
        name, held, _ = text_to_score(own, shared, data, validation)
        return name, held

    return find


def _shared_origin(
    sources: Sequence[ModelSource], data: str | None, validation: str | None
) -> Origin | None:
    """Return the origin of the model, if any, that was trained on what would be scored."""
    if data is not None:
        parse_data(data, validation)
    named = validation or data  # what would be scored
    if named is None:
        return None
    parse_data(named)
    return origin_of_text(_origins(sources), named)


def _origins(sources: Sequence[ModelSource]) -> list[Origin]:
    """Return how the models were trained; those that cannot be found are refused later."""
    origins = []
    for source in sources:
        with suppress(UserError, OSError):
            origins.append(source.origin)
    return origins
