"""Containers for both streams: their states, their hook points, the tied embedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformerConfig
from transformer_lens.components import Embed, Unembed
from transformer_lens.hook_points import HookPoint


@dataclass
class DualStates:
    """Both streams before the unembedding, and the masks between them.

    Attributes:
        clean, ablated: states after the final LN, (batch, pos, d_model).
        attention_masks, neuron_masks: per layer, (batch, pos, units) and (batch, pos, d_mlp).
        clean_layers, ablated_layers: the streams after each block.
    """

    clean: Float[Tensor, "batch pos d_model"]
    ablated: Float[Tensor, "batch pos d_model"]
    attention_masks: list[Tensor]
    neuron_masks: list[Tensor]
    clean_layers: list[Tensor]
    ablated_layers: list[Tensor]

    @classmethod
    def of(
        cls,
        clean: Tensor,
        ablated: Tensor,
        masks: list[tuple[Tensor, Tensor]],
        clean_layers: list[Tensor],
        ablated_layers: list[Tensor],
    ) -> DualStates:
        """As the fields, with each layer's masks as one pair (attention, neuron)."""
        attention_masks = [attention for attention, _ in masks]
        neuron_masks = [neurons for _, neurons in masks]
        return cls(clean, ablated, attention_masks, neuron_masks, clean_layers, ablated_layers)


@dataclass
class DualOutput:
    """Result of ``dual``: logits of both streams, and the masks of every layer."""

    clean_logits: Float[Tensor, "batch pos d_vocab"]
    ablated_logits: Float[Tensor, "batch pos d_vocab"]
    attention_masks: Float[Tensor, "batch pos layer attention_units"]
    neuron_masks: Float[Tensor, "batch pos layer d_mlp"]


class TiedUnembed(Unembed):
    """TransformerLens' unembedding, reading the embedding's one Parameter: W_U is W_E's transpose.

    A second Parameter over shared storage would be stepped twice by the optimiser and torn apart by
    ``.to``; a property cannot be.
    """

    def __init__(self, cfg: HookedTransformerConfig, embedding: Embed) -> None:
        nn.Module.__init__(self)
        self.cfg = cfg
        self._embedding = (embedding,)  # a tuple: registered as a child, it would be saved twice
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab_out, dtype=cfg.dtype), requires_grad=False)
        self.hook_in = HookPoint()
        self.hook_out = HookPoint()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # type: ignore[override]
        """Transpose of the embedding."""
        return self._embedding[0].W_E.T


class AblatedFinalHooks(nn.Module):
    """The end of the ablated stream: ``ablated.hook_normalized``, ``ablated.hook_logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], after the final LN
        self.hook_logits = HookPoint()  # [batch, pos, d_vocab]


@contextmanager
def outputs_of(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect each module's output while the block runs.

    Torch calls forward hooks in the order they were added, so what is seen here has already been
    changed by the user's own hooks: a patched key reaches the ablated stream too.
    """
    seen: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[module] = output

    handles = [module.register_forward_hook(remember) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
