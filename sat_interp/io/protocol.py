"""Interface of models for reading, writing and converting, and checks that these share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter
from transformer_lens import HookedTransformerConfig

from sat_interp._util.errors import UserError
from sat_interp.model.config import SelfAblationConfig

Own = TypeVar("Own")


@runtime_checkable
class GatedTransformer(Protocol):
    """A HookedTransformer that may have gates.

    Attributes:
        ablation: the gates.
        weights_processed: whether TransformerLens folded or centred the weights.
        card: facts about the training, for the model card.
        tokenizer_hash: hash of the tokenizer the model was trained with, where it is known.
        hugging_face: configuration of the Hugging Face model it began as, if it did.
        has_own_bos: whether stories follow the tokenizer's BOS token and not end-of-text.
    """

    ablation: SelfAblationConfig
    weights_processed: bool
    tokenizer: Any
    training: bool
    card: Mapping[str, Any]
    tokenizer_hash: str | None
    hugging_face: Mapping[str, Any] | None
    has_own_bos: bool
    cfg: HookedTransformerConfig

    @property
    def blocks(self) -> Any:
        """Blocks of the transformer."""

    @property
    def is_tied(self) -> bool:
        """Whether the unembedding is the embedding's one parameter."""

    @property
    def W_E(self) -> Tensor:
        """Embedding, (d_vocab, d_model)."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter, those of gates included."""

    def full_state_dict(self) -> dict[str, Tensor]:
        """Clean stream's weights under TransformerLens' names."""

    def train(self: Own, mode: bool = True) -> Own:
        """As of any ``torch.nn.Module``."""

    def eval(self: Own) -> Own:
        """As of any ``torch.nn.Module``."""


Model = TypeVar("Model", bound=GatedTransformer)

Build = Callable[..., Model]
"""How a model with fresh weights is made; a model class is one.

It takes a HookedTransformerConfig, the gates or None, a tokenizer or None, and ``tied``: whether
the unembedding is the embedding's one parameter.
"""


def refuse_processed(model: GatedTransformer) -> None:
    """Do nothing if the weights are as they were trained.

    Raises:
        UserError: TransformerLens' weight processing has changed them.
    """
    if model.weights_processed:
        raise UserError(
            "the weights were processed (folded or centred) and no longer fit the gates or the "
            "tied embedding: save or convert the model as it was loaded, and process the result"
        )


def working_dtype(stored: torch.dtype) -> torch.dtype:
    """Type of the parameters for a stored type: float64 stays, all others become float32."""
    return torch.float64 if stored == torch.float64 else torch.float32


def some_of(names: list[str]) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
