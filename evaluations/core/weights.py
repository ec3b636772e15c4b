"""The parameters of a model: what they are called, which of them are one, what they hash to.

Three views of the same numbers:

- exported: all TransformerLens holds, W_E and W_U both and zero biases in. The paper's L1 is over
  these (14,535,249 at its shape).
- tied: what was trained. W_U is left out where it is the transpose of W_E, and so are the biases
  TransformerLens adds to an architecture without them (b_Q, b_K, b_V, b_U), known by being zero.
- gates: the weights that choose the masks of a self-ablating transformer; part of neither.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

Component = Literal["embeddings", "attention", "mlp", "norms"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

_UNEMBEDDING = "unembed.W_U"
_ADDED_BIASES = ("b_Q", "b_K", "b_V", "b_U", "_b_K", "_b_V")


def exported_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """All of TransformerLens' parameters by name, W_U among them even where it is tied."""
    found = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not _is_gate(name)
    }
    return {**found, _UNEMBEDDING: model.unembed.W_U.detach()}


def tied_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """The parameters as they were trained: nothing twice, no bias that is only a zero."""
    found = exported_parameters(model)
    if _is_transpose(found[_UNEMBEDDING], found["embed.W_E"]):
        del found[_UNEMBEDDING]
    return {name: value for name, value in found.items() if not _is_added_bias(name, value)}


def gate_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """The gates' weights; empty for any other model."""
    named = model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if _is_gate(name)}


def component(name: str) -> Component:
    """Which part of the model a parameter belongs to."""
    parts = name.split(".")
    if parts[0] in ("embed", "pos_embed", "unembed"):
        return "embeddings"
    if any(part.startswith("ln") for part in parts) or "norm" in name:
        return "norms"
    if "attn" in parts:
        return "attention"
    return "mlp"


def count(parameters: dict[str, Tensor]) -> int:
    """How many numbers there are in all."""
    return sum(value.numel() for value in parameters.values())


def mean_absolute(parameters: dict[str, Tensor]) -> float:
    """Mean |w| over all entries of all tensors, added up in float64; nan where there are none."""
    n = count(parameters)
    total = sum(float(value.abs().sum(dtype=torch.float64)) for value in parameters.values())
    return total / n if n else float("nan")


def weights_hash(model: HookedTransformer) -> str:
    """SHA-256 over the tied parameters and the gates: name, dtype, shape and bytes, by name.

    A model keeps its hash when its directory is renamed, and when it is exported to a plain
    HookedTransformer and has no gates.
    """
    digest = hashlib.sha256()
    parameters = {**tied_parameters(model), **gate_parameters(model)}
    for name in sorted(parameters):
        value = parameters[name].cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_gate(name: str) -> bool:
    return "gates" in name.split(".")


def _is_added_bias(name: str, value: Tensor) -> bool:
    return name.split(".")[-1] in _ADDED_BIASES and not value.any()


def _is_transpose(unembedding: Tensor, embedding: Tensor) -> bool:
    return unembedding.shape == embedding.T.shape and bool(torch.equal(unembedding, embedding.T))
