"""What evaluations are given: models loaded as asked, and the text or the prompts of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluations.core.autoencoder import content_hash, open_sae
from evaluations.core.model_source import ModelSource, sources, with_controls
from evaluations.core.models import LoadedModel
from evaluations.core.options import TextOptions
from evaluations.core.origin import text_to_score
from evaluations.core.text import Text
from evaluations.core.text_source import text_finder
from evaluations.tasks.registry import make_task
from sat_interp.data.planted import CORPORA

if TYPE_CHECKING:
    from evaluations.core.options import Request
    from evaluations.core.spec import Spec
    from evaluations.tasks.pairs import TaskPrompts


def resolved(request: Request) -> Request:
    """Return the request with its models as sources, the controls it asks for among them.

    Raises:
        UserError: a model is of no known kind, or an unknown control.
    """
    models = sources(request.models, request.run.tokenizer)
    return dataclasses.replace(request, models=with_controls(models, request.control.control))


def load(source: ModelSource, spec: Spec, request: Request, config: Any) -> LoadedModel:
    """Return a model, loaded as the request asks; its shape is checked before its weights are read.

    Raises:
        UserError: there is no such model, or the evaluation cannot measure one of its shape.
    """
    outline = source.outline
    reads_text = TextOptions in spec.shared and getattr(config, "reads_text", True)
    if reads_text and request.text.data is request.text.validation is None:
        text_to_score(source.origin, None, None, None)
    spec.check(outline.model, config)
    return source.load(request.run.device, request.run.dtype)


def text_data(request: Request, configs: Sequence[Any]) -> Callable[[LoadedModel], Text]:
    """Return what gives each model its text: the same held-out stories for all of them.

    Raises:
        UserError: there is no such data; before any model is loaded.
    """
    text = request.text
    return text_finder(request.models, text.data, text.validation, text.stories)


def task_prompts(request: Request, loaded: LoadedModel, seed: int) -> TaskPrompts:
    """Return the prompts of the request's task, in the model's tokens, held-out ones beside them.

    Raises:
        UserError: no such task, or none of its prompts can be used.
    """
    task = request.task
    held_out = task.prompts if task.held_out is None else task.held_out
    return make_task(
        task.task or default_task(loaded),
        loaded.tokenizer,
        task.prompts,
        seed,
        not task.no_bos,
        held_out,
    )


def default_task(loaded: LoadedModel) -> str:
    """Return the IOI of the corpus a model was trained on."""
    built_in = str(loaded.data).partition(":")[0] in ("demo", *CORPORA)
    return "ioi" if built_in else "ioi-tinystories"


def opened_sae(directory: Path | None) -> str | None:
    """Return the hash of an autoencoder's files, after trying that it can be opened.

    Raises:
        UserError: it cannot.
    """
    if directory is None:
        return None
    open_sae(directory, "cpu")
    return content_hash(directory)
