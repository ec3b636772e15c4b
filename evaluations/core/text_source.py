"""Which text each model is measured on, and which its autoencoders are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from evaluations.core.model_source import ModelSource
from evaluations.core.models import LoadedModel
from evaluations.core.origin import Origin, origin_of_text, text_to_score
from evaluations.core.text import Text, TextArgument, evaluation_text, text_source, tokenised
from sat_interp._util.errors import UserError
from sat_interp.data.corpus import TokenCorpus, count_tokens
from sat_interp.data.memory import TokenSource, text_in_memory
from sat_interp.data.sources import DataSource


@dataclass(frozen=True)
class TrainingText:
    """The text of a model's autoencoders: one split to train on, and one held out.

    Attributes:
        source: with both splits, which share no story.
        tokenizer: of the model.
        stories: only the first so many of those held out.
    """

    source: DataSource
    tokenizer: PreTrainedTokenizerFast
    stories: int | None = None

    def corpus(self) -> TokenCorpus:
        """Return the split to train on, in tokens.

        Raises:
            UserError: the data cannot be read, or holds no text.
        """
        return tokenised(self.source, "train", self.tokenizer)

    def held_out(self) -> Text:
        """Return the split to measure on, in tokens.

        Raises:
            UserError: the data cannot be read, or holds no text.
        """
        return evaluation_text(self.tokenizer, self.source, limit=self.stories, trained_on=True)

    def n_tokens(self, enough: int) -> int:
        """Return the tokens of the split to train on, counted no further than past ``enough``."""
        if isinstance(self.source, TokenSource):
            return len(self.corpus().tokens)
        return count_tokens(self.source, "train", self.tokenizer, enough)


def text_finder(
    sources: Sequence[ModelSource],
    data: TextArgument | None,
    validation: TextArgument | None,
    stories: int | None,
) -> Callable[[LoadedModel], Text]:
    """Return what gives each model its text: the same held-out stories for all of them.

    Args:
        sources: the models.
        data: a DATA argument or text in memory; None for what each model was trained on.
        validation: text to measure on, where DATA has none of its own.
        stories: only the first so many.

    Raises:
        UserError: there is no such data; raised before any model is loaded.
    """
    asked = _Asked(sources, data, validation)

    def text(loaded: LoadedModel) -> Text:
        source, was_trained_on = asked.source_for(loaded)
        return evaluation_text(loaded.tokenizer, source, limit=stories, trained_on=was_trained_on)

    return text


def training_text_finder(
    sources: Sequence[ModelSource],
    data: TextArgument | None,
    validation: TextArgument | None,
    stories: int | None = None,
) -> Callable[[LoadedModel], TrainingText]:
    """Return what gives each model the text that its autoencoders are trained and measured on.

    Stories are held out of text that no model was trained on, too.

    Args:
        sources: the models.
        data: a DATA argument or text in memory; None for what each model was trained on.
        validation: text to measure on, where DATA has none of its own.
        stories: only the first so many of those held out.

    Raises:
        UserError: there is no such data; raised before any model is loaded.
    """
    asked = _Asked(sources, data, validation)

    def find(loaded: LoadedModel) -> TrainingText:
        if data is None and loaded.data is None:
            raise UserError("name text to train the autoencoder on with --data")
        return TrainingText(asked.source_for(loaded)[0], loaded.tokenizer, stories)

    return find


class _Asked:
    """The text that was asked for, and the origin of the model, if any, that was trained on it."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        data: TextArgument | None,
        validation: TextArgument | None,
    ) -> None:
        """Read the arguments."""
        self.data, self.validation = _argument(data), _argument(validation)
        if self.data is not None:
            text_source(self.data, self.validation)
        scored = self.validation or self.data
        self.shared: Origin | None = None
        if scored is not None:
            self.shared = origin_of_text(_origins(sources), text_source(scored))

    def source_for(self, loaded: LoadedModel) -> tuple[DataSource, bool]:
        """Return the text to measure a model on, and whether the model was trained on it.

        Raises:
            UserError: nothing was asked for, and the model's training text is not known or not
                where it was.
        """
        own = Origin(data=loaded.data, validation=loaded.validation)
        data, validation, was_trained_on = text_to_score(
            own, self.shared, self.data, self.validation
        )
        return text_source(data, validation), was_trained_on


def _argument(data: TextArgument | None) -> str | DataSource | None:
    """Return a name as it is, and text in memory as its source."""
    if data is None or isinstance(data, DataSource):
        return data
    return str(data) if isinstance(data, str | Path) else text_in_memory(data)


def _origins(sources: Sequence[ModelSource]) -> list[Origin]:
    """Return how the models were trained; those that cannot be found are refused later."""
    origins = []
    for source in sources:
        with suppress(UserError, OSError):
            origins.append(source.origin)
    return origins
