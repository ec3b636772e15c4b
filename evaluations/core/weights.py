"""The parameters of a model: their names, which of them are tied, their hash.

Three views of the same numbers:

- exported: all parameters of TransformerLens, both W_E and W_U, zero biases included. The paper's
  L1 is over these (14,535,249 at its shape).
- tied: the parameters that were trained. W_U is left out where it is the transpose of W_E, and so
  are biases that TransformerLens adds to an architecture without them (b_Q, b_K, b_V, b_U), which
  are zero.
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

EMBEDDING, UNEMBEDDING = "embed.W_E", "unembed.W_U"
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
"""What transformers calls learned positions."""
_ADDED_BIASES = ("b_Q", "b_K", "b_V", "b_U", "_b_K", "_b_V")


def exported_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """Return all of TransformerLens' parameters by name, W_U included even where it is tied."""
    parameters = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not _is_gate(name)
    }
    return {**parameters, UNEMBEDDING: model.unembed.W_U.detach()}


def tied_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """Return the parameters that were trained: no tied matrix twice, no added zero bias."""
    parameters = exported_parameters(model)
    if _is_transpose(parameters[UNEMBEDDING], parameters[EMBEDDING]):
        del parameters[UNEMBEDDING]
    return {name: value for name, value in parameters.items() if not _is_added_bias(name, value)}


def gate_parameters(model: HookedTransformer) -> dict[str, Tensor]:
    """Return the gates' weights; empty for a model without gates."""
    named = model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if _is_gate(name)}


def component(name: str) -> Component:
    """Return the part of the model that a parameter belongs to."""
    parts = name.split(".")
    if parts[0] in ("embed", "pos_embed", "unembed") or any(part in _POSITIONS for part in parts):
        return "embeddings"
    if any(part.startswith("ln") for part in parts) or "norm" in name:
        return "norms"
    if any("attn" in part or "attention" in part for part in parts):
        return "attention"
    return "mlp"


def count(parameters: dict[str, Tensor]) -> int:
    """Return the number of entries of all tensors."""
    return sum(value.numel() for value in parameters.values())


def mean_absolute(parameters: dict[str, Tensor]) -> float:
    """Return the mean |w| over all entries, summed in float64; nan where there are none."""
    n = count(parameters)
    total = sum(float(value.abs().sum(dtype=torch.float64)) for value in parameters.values())
    return total / n if n else float("nan")


def weights_hash(model: HookedTransformer) -> str:
    """Return SHA-256 over the tied parameters and gates: name, dtype, shape and bytes, by name.

    A renamed directory keeps its hash, and so does a model without gates that is exported to a
    plain HookedTransformer.
    """
    digest = hashlib.sha256()
    parameters = {**tied_parameters(model), **gate_parameters(model)}
    for name in sorted(parameters):
        value = parameters[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor of any device and dtype, in row-major order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _is_gate(name: str) -> bool:
    return "gates" in name.split(".")


def _is_added_bias(name: str, value: Tensor) -> bool:
    return name.split(".")[-1] in _ADDED_BIASES and not value.any()


def _is_transpose(unembedding: Tensor, embedding: Tensor) -> bool:
    return unembedding.shape == embedding.T.shape and bool(torch.equal(unembedding, embedding.T))
