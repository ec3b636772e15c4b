"""Whether a model of transformers has all of its weights: those it lacks are random numbers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from sat_interp._util.errors import UserError
from sat_interp.io.architectures import is_tied
from sat_interp.io.protocol import some_of


def refuse_incomplete(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Do nothing if all weights were read.

    Args:
        model: as ``from_pretrained`` made it.
        info: what it reports beside the model (``output_loading_info``).

    Raises:
        UserError: weights are missing, or of another shape than the configuration says; by name.
    """
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{name} has the shape {tuple(stored)}, and config.json asks for {tuple(wanted)}"
        )
    tied = {unembedding_name(model)} if is_tied(model.config) else set()
    if missing := sorted(set(info["missing_keys"]) - tied):
        raise UserError(f"its weights lack {some_of(missing)}: download it again")


def unembedding_name(model: PreTrainedModel) -> str:
    """Return the name of a model's unembedding among its weights."""
    own: Any = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is own)
