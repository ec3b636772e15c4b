"""The one way from a MODEL argument to a model: resolved once, loaded later.

A :class:`ModelSource` knows what the argument stands for, where that lies, how it was trained and
which shape it has; each is determined once, when it is first needed. An argument that names nothing
is refused only then, so that other models still get their results.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from transformer_lens import HookedTransformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluations.core.controls import Control, make_control, parse_controls, split
from evaluations.core.hugging_face import Decoder, shared_copy
from evaluations.core.location import Location, locate
from evaluations.core.model_tokenizer import choose_tokenizer, stated_bos
from evaluations.core.models import IN_MEMORY, Dtype, LoadedModel, prepared
from evaluations.core.origin import Origin, card_origin, read_origin
from sat_interp._util.errors import UserError, shown
from sat_interp.model.transformer import SelfAblatingTransformer

log = logging.getLogger(__name__)

MemoryModel: TypeAlias = HookedTransformer | PreTrainedModel | LoadedModel
Tokenizer: TypeAlias = str | PreTrainedTokenizerBase

MODEL_NAME = "model"
"""What a model in memory is called that was given no name."""


class ModelSource:
    """A MODEL argument.

    Attributes:
        given: a name, a path or a model in memory.
        label: the argument as it was given, for messages; of a model in memory its name.
        tokenizer: replaces the model's own.
        control: which control of the model is meant; None for the model itself.
    """

    def __init__(
        self,
        given: str | Path | MemoryModel,
        label: str,
        tokenizer: Tokenizer | None = None,
        control: Control | None = None,
    ) -> None:
        """Use :meth:`of`, which reads an argument."""
        self.given, self.label, self.control = given, label, control
        self.tokenizer = tokenizer

    @classmethod
    def of(
        cls, model: object, tokenizer: Tokenizer | None = None, name: str | None = None
    ) -> ModelSource:
        """Return the source of a model.

        Args:
            model: a name (a directory, ``demo:baseline`` and its like, a hub id; with a control
                behind it, ``runs/mine [untrained]``), a ``Path``, a HookedTransformer, a Hugging
                Face model, a :class:`LoadedModel` or a source.
            tokenizer: replaces the model's own: a name, or a tokenizer of transformers.
            name: of a model in memory, in tables; ``model`` by default.

        Raises:
            UserError: ``model`` is something else.
        """
        if isinstance(model, ModelSource):
            return model
        if isinstance(model, LoadedModel):
            return cls(model, name or model.name, tokenizer)
        if isinstance(model, HookedTransformer | PreTrainedModel):
            return cls(model, name or MODEL_NAME, tokenizer)
        if isinstance(model, Path):
            return cls(model, str(model), tokenizer)
        if isinstance(model, str):
            base, control = split(model)
            return cls(base, model, tokenizer, control)
        raise UserError(
            "a model is a name, a Path, a HookedTransformer or a Hugging Face model, not "
            f"{type(model).__name__}: {shown(model)}"
        )

    def __repr__(self) -> str:
        """Show the label."""
        return f"ModelSource({self.label!r})"

    def control_of(self, control: Control) -> ModelSource:
        """Return the source of a control of this model."""
        label = f"{self.label} [{control}]"
        return ModelSource(self.given, label, self.tokenizer, control)

    @property
    def in_memory(self) -> bool:
        """Whether a model was given, and not a name."""
        return not isinstance(self.given, str | Path)

    @cached_property
    def location(self) -> Location | None:
        """Where the model lies, downloaded if need be; None for a model in memory.

        Raises:
            UserError: nothing of that name.
        """
        return locate(self.given) if isinstance(self.given, str | Path) else None

    @cached_property
    def name(self) -> str:
        """The model's name in tables; of a control, the original's with the control behind it."""
        if self.location is None:
            return self.label
        return f"{self.location.name} [{self.control}]" if self.control else self.location.name

    @cached_property
    def origin(self) -> Origin:
        """How the model was trained; its weights are not read."""
        given, location = self.given, self.location
        if location is not None:
            origin = read_origin(location.directory)
            is_demo = location.kind == "bundled" and not origin.data
            return dataclasses.replace(origin, data="demo") if is_demo else origin
        if isinstance(given, LoadedModel):
            return Origin(given.training, given.data, given.validation)
        return card_origin(given.card) if isinstance(given, SelfAblatingTransformer) else Origin()

    @cached_property
    def meta_model(self) -> HookedTransformer:
        """The model on the meta device: shape and hook points. A model in memory as it is.

        Raises:
            UserError: nothing of that name, or a configuration that describes no model.
        """
        if isinstance(self.given, LoadedModel):
            return self.given.model
        if isinstance(self.given, HookedTransformer):
            return self.given
        if self._decoder is not None:
            return self._decoder.outline()
        return SelfAblatingTransformer.outline(self._directory)

    @cached_property
    def outline(self) -> LoadedModel:
        """What is known before weights are read: shape, hook points, tokenizer and origin.

        Whatever an evaluation asks of a model's shape, tokenizer and training text can be checked
        on it.

        Returns:
            The model on the meta device, or the model in memory itself; without a weights hash. Of
            a control it is the original's.

        Raises:
            UserError: nothing of that name, a configuration that describes no model, or no
                tokenizer.
        """
        if isinstance(self.given, LoadedModel):
            return self.given
        model = self.meta_model
        directory = None if self.location is None else self.location.directory
        tokenizer, note = choose_tokenizer(model, directory, self.tokenizer, self._stated_bos)
        base = self.name.removesuffix(f" [{self.control}]")
        outline = LoadedModel(model, base, tokenizer, "", self._spec, tokenizer_note=note)
        return self._with_origin(outline)

    def load(self, device: str | None = None, dtype: Dtype = "float32") -> LoadedModel:
        """Load the model, weights unprocessed; a control is made of the loaded model.

        Args:
            device: such as ``cpu``; by default an accelerator where there is one, and for a model
                in memory the device it lies on.
            dtype: what to compute in; the weights are hashed before they are cast.

        Returns:
            The model. A HookedTransformer in memory stays as it is: the loaded one shares its
            numbers. A :class:`LoadedModel` is returned as it is.

        Raises:
            UserError: nothing of that name, or what is there cannot be loaded.
        """
        loaded = self._load(device, dtype)
        if self.control is None:
            return loaded
        return make_control(loaded, self.control.kind, self.control.seed)

    def _load(self, device: str | None, dtype: Dtype) -> LoadedModel:
        if isinstance(self.given, LoadedModel):
            return self.given
        known = self.outline
        if isinstance(self.given, HookedTransformer):
            model = shared_copy(self.given)
            device = device or str(self.given.W_E.device)
        elif self._decoder is not None:
            model = self._decoder.load()
            if isinstance(self.given, PreTrainedModel):
                device = device or str(self.given.device)
        else:
            own = self.meta_model.tokenizer
            model = SelfAblatingTransformer.from_pretrained(self._directory, tokenizer=own)
        self._warn(known)
        loaded = prepared(model, known.name, known.tokenizer, device, dtype, self._spec)
        loaded.tokenizer_note = known.tokenizer_note
        return self._with_origin(loaded)

    def _warn(self, known: LoadedModel) -> None:
        """Log what a reader of the results has to know of the model."""
        has_tokenizer = known.tokenizer.eos_token_id is not None
        if known.tokenizer_note and has_tokenizer:
            log.warning("%s: %s", known.name, known.tokenizer_note)
        if self.origin.facts.get("finished") is False:
            log.warning(
                "%s: its training has not finished; this is the model saved so far", known.name
            )

    @cached_property
    def _decoder(self) -> Decoder | None:
        """Transformers' and TransformerLens' configurations, where the model is Hugging Face's."""
        if isinstance(self.given, PreTrainedModel):
            return Decoder.of(self.given, self.label)
        if self.location is None or self.location.is_ours:
            return None
        return Decoder.of(self.location.directory)

    @property
    def _directory(self) -> Path:
        assert self.location is not None
        return self.location.directory

    @property
    def _spec(self) -> str:
        """The MODEL argument as records name it, without the control."""
        return IN_MEMORY if self.in_memory else str(self.given)

    @property
    def _stated_bos(self) -> int | None:
        """The BOS token that the model's configuration states, transformers' defaults left out."""
        if self.location is not None:
            return stated_bos(self.location.directory)
        if self._decoder is None:
            return None
        stated = self._decoder.config.to_diff_dict().get("bos_token_id")
        return stated if isinstance(stated, int) else None

    def _with_origin(self, loaded: LoadedModel) -> LoadedModel:
        origin = self.origin
        return dataclasses.replace(
            loaded, training=origin.facts, data=origin.data, validation=origin.validation
        )


ModelArgument: TypeAlias = str | Path | MemoryModel | ModelSource


def sources(models: object, tokenizer: Tokenizer | None = None) -> list[ModelSource]:
    """Return the sources of models.

    Args:
        models: one model (see :meth:`ModelSource.of`), several, or models in memory by name; a
            ``str`` is one name.
        tokenizer: replaces the models' own.

    Returns:
        A source for each; to the name of models in memory that share one the weights hash is added.

    Raises:
        UserError: no model, or something that is none.
    """
    if isinstance(models, Mapping):
        chosen = [ModelSource.of(model, tokenizer, name) for name, model in models.items()]
    elif isinstance(models, Iterable) and not isinstance(models, str):
        chosen = [ModelSource.of(model, tokenizer) for model in models]
    else:
        chosen = [ModelSource.of(models, tokenizer)]
    if not chosen:
        raise UserError("no model is given")
    return _distinct(chosen)


def with_controls(models: Sequence[ModelSource], controls: str | None) -> list[ModelSource]:
    """Return each model followed by its controls; a control has none of its own.

    Args:
        models: the models.
        controls: ``untrained``, ``shuffled``, several with commas between them, each with a seed
            after a colon if not 0 (``untrained:1``); ``none`` or None for no control.

    Raises:
        UserError: an unknown control, or a seed that is no whole number.
    """
    chosen = parse_controls(controls)
    return [
        source
        for model in models
        for source in (
            model,
            *([] if model.control else [model.control_of(control) for control in chosen]),
        )
    ]


def load_model(
    model: ModelArgument,
    device: str | None = None,
    dtype: Dtype = "float32",
    tokenizer: Tokenizer | None = None,
) -> LoadedModel:
    """Load a model, weights unprocessed, in evaluation mode.

    Args:
        model: ``demo:baseline`` and its like; a directory of ours (cfg.json, model.safetensors); a
            training run (its ``best`` model, else its ``model``); a Hugging Face directory; a hub
            id or TransformerLens name; or a model in memory (see :meth:`ModelSource.of`).
        device: such as ``cpu``; by default an accelerator where there is one.
        dtype: what to compute in; the weights are hashed before they are cast.
        tokenizer: replaces the model's own.

    Raises:
        UserError: nothing of that name, or what is there cannot be loaded.
    """
    return ModelSource.of(model, tokenizer).load(device, dtype)


def _distinct(chosen: list[ModelSource]) -> list[ModelSource]:
    """Add the weights hash to the label of models in memory that share one."""
    times = Counter(source.label for source in chosen if source.in_memory)
    return [
        _with_hash(source) if source.in_memory and times[source.label] > 1 else source
        for source in chosen
    ]


def _with_hash(source: ModelSource) -> ModelSource:
    try:
        weights = source.load().weights_hash
    except UserError:  # raised again when the model is measured
        return source
    label = f"{source.label} {weights[:8]}"
    return ModelSource(source.given, label, source.tokenizer, source.control)
