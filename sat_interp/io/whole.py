"""Models of transformers with all of their weights: those that are missing are random numbers."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from sat_interp._util.errors import UserError
from sat_interp.io.architectures import is_tied
from sat_interp.io.protocol import some_of


def read_whole(**settings: Any) -> PreTrainedModel:
    """Return a decoder of transformers; no code of its own is run.

    Args:
        settings: arguments of ``from_pretrained``.

    Raises:
        UserError: weights are missing, or of another shape than the configuration says; by name.
        Exception: whatever transformers raises where it cannot read the model.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(**settings, trust_remote_code=False, output_loading_info=True)
    _refuse_incomplete(model, info)
    return model  # type: ignore[no-any-return]


def _refuse_incomplete(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse weights that transformers would fill with random numbers."""
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
