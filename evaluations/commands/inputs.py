"""What commands share: how a MODEL argument is loaded with a command's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from evaluations.core.model_source import ModelSource
    from evaluations.core.models import LoadedModel
    from evaluations.core.runner import Evaluation

Dtype = Literal["float32", "float64", "bfloat16"]
ConfigT = TypeVar("ConfigT")


def model_loader(
    device: str | None,
    dtype: Dtype,
    evaluation: Evaluation[Any, ConfigT],
    config: ConfigT,
    own_text: bool = False,
) -> Callable[[ModelSource], LoadedModel]:
    """Return how ``runner.run`` loads a source with a command's options.

    What can be is checked before a model's weights are read: whether it has a tokenizer and a text
    to be measured on, and whether the evaluation can measure a model of that shape.

    Args:
        own_text: whether each model is measured on the text that it was trained on.
    """
    from evaluations.core.origin import text_to_score

    def load(source: ModelSource) -> LoadedModel:
        outline = source.outline
        if own_text:
            text_to_score(source.origin, None, None, None)
        if evaluation.check is not None:
            evaluation.check(outline.model, config)
        return source.load(device, dtype)

    return load
