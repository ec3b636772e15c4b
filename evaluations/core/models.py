"""A model that is loaded and ready to be measured, and what identifies it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from evaluations.core import weights
from evaluations.core.canonical import canonical
from evaluations.core.model_tokenizer import as_trained
from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError, first_line
from sat_interp.model.transformer import SelfAblatingTransformer

Dtype = Literal["float32", "float64", "bfloat16"]

IN_MEMORY = "in memory"
"""What a record names as the MODEL argument of a model that was given as an object."""

_SHAPE = """
n_layers d_model n_heads d_head d_mlp n_ctx d_vocab act_fn eps normalization_type
positional_embedding_type use_attn_scale attn_scale attn_types window_size parallel_attn_mlp
gated_mlp rotary_base rotary_dim n_key_value_heads output_logits_soft_cap original_architecture
"""
SHAPE = tuple(_SHAPE.split())
"""Fields of the configuration that a record shows as the model's shape."""

_COSMETIC = {
    "names, and where it came from": "model_name tokenizer_name from_checkpoint checkpoint_index "
    "checkpoint_label_type checkpoint_value trust_remote_code",
    "how fresh weights are drawn": "init_mode init_weights initializer_range seed",
    "where it runs; the precision is that of the weights": "device n_devices dtype",
    "which hook points fire; n_params follows from the rest": "use_attn_result "
    "use_split_qkv_input use_hook_mlp_in use_attn_in use_hook_tokens "
    "ungroup_grouped_query_attention n_params",
    "how text becomes tokens, of which a text has a hash": "default_prepend_bos "
    "tokenizer_prepends_bos",
}
COSMETIC = frozenset(name for names in _COSMETIC.values() for name in names.split())
"""Fields of a HookedTransformerConfig that change no result. Every other field is part of a model's
identity, those of later TransformerLens releases included."""


@dataclass
class LoadedModel:
    """A model ready to be measured: unprocessed weights, in evaluation mode, on its device.

    Attributes:
        name: shown in tables; the weights hash identifies the model.
        tokenizer: of a model without one the stand-in of ``model_tokenizer.numbered_tokenizer``.
        weights_hash: SHA-256 of the parameters; empty for an outline.
        spec: the MODEL argument, or ``in memory``.
        data, validation: the text it was trained on, where that is recorded.
        training: its recorded training configuration (preset, seed, ...), small.
        tokenizer_note: why its tokenizer may not be the one it was trained with.
        control: of a control model, its kind, its seed and the weights hash of the original
            (``evaluations.core.controls``).
    """

    model: HookedTransformer
    name: str
    tokenizer: PreTrainedTokenizerFast
    weights_hash: str
    spec: str = ""
    data: str | None = None
    validation: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    tokenizer_note: str | None = None
    control: dict[str, Any] | None = None

    @property
    def device(self) -> str:
        """The device of the weights, such as ``cpu``."""
        return str(self.model.W_E.device)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The main sizes and kinds of the architecture, dtype included."""
        return {
            **{name: getattr(self.model.cfg, name, None) for name in SHAPE},
            "dtype": self.dtype,
        }

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Every field of the configuration but ``COSMETIC`` ones, in the types of JSON."""
        fields = vars(self.model.cfg).items()
        kept = {name: canonical(value) for name, value in fields if name not in COSMETIC}
        return {**kept, "dtype": self.dtype}

    @property
    def dtype(self) -> str:
        """The precision of the weights, such as ``float32``."""
        return str(self.model.W_E.dtype).removeprefix("torch.")

    @property
    def ablation(self) -> dict[str, Any] | None:
        """The gates' configuration; None for any other model."""
        if not isinstance(self.model, SelfAblatingTransformer):
            return None
        config = self.model.ablation
        return config.to_dict() if config.variant != "none" else None


@contextmanager
def evaluation_mode(model: HookedTransformer) -> Iterator[None]:
    """Put a model in evaluation mode, and afterwards, errors included, in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def at_least_float32(model: HookedTransformer) -> HookedTransformer:
    """Return the model, or a copy in float32 of one in less."""
    if model.W_E.dtype in (torch.float32, torch.float64):
        return model
    copied = copy.deepcopy(model)
    copied.to(torch.float32, print_details=False)
    return copied


def prepared(
    model: HookedTransformer,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    device: str | None = None,
    dtype: str | None = None,
    spec: str = "",
) -> LoadedModel:
    """Return a model as evaluations take it: hashed, cast, moved, in evaluation mode.

    The model itself is changed; ``evaluations.core.hugging_face.shared_copy`` keeps one as it is.

    Raises:
        UserError: no such device.
    """
    tokenizer = as_trained(model, tokenizer)
    place = resolve_device(device)
    digest = weights.weights_hash(model)  # before the cast: the same weights, the same hash
    if dtype is not None and model.W_E.dtype != getattr(torch, dtype):
        model.to(getattr(torch, dtype), print_details=False)
    try:
        model.to(place, print_details=False)
    except RuntimeError as error:
        raise UserError(f"device {str(place)!r} cannot be used: {first_line(error)}") from None
    model.eval()
    model.requires_grad_(False)
    return LoadedModel(model, name, tokenizer, digest, spec or name)
