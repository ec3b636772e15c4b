"""The authors' released parameter names, which are also those of Hugging Face's GPT-Neo.

One table (:func:`_rows`) holds them against ours and serves every direction. Linear weights are
stored (out, in).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerBase

from sat_interp._util.errors import UserError, shown
from sat_interp.io.architectures import gpt_neo_rows
from sat_interp.io.protocol import (
    Build,
    GatedTransformer,
    Model,
    refuse_processed,
    some_of,
    working_dtype,
)
from sat_interp.io.rows import Row, collect, fill, linear
from sat_interp.model.block import attention_scale
from sat_interp.model.config import SelfAblationConfig, Variant
from sat_interp.model.shape import gpt_neo_config

_EMBEDDING, _UNEMBEDDING = "transformer.wte.weight", "lm_head.weight"
_GATES: dict[Variant, str] = {
    "local": ".attention_ablation_head.",
    "global": "attention_ablations_head.",
}
# Wrappers of training scripts (torch.compile, DistributedDataParallel) leave these before names.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")
_CAUSAL_MASKS = re.compile(r"\.attn\.attention\.(?:bias|masked_bias)$")


def from_released(
    build: Build[Model],
    state_dict: Mapping[str, Tensor],
    n_heads: int,
    ablation: SelfAblationConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Model:
    """A model from the authors' parameter names (linear weights are (out, in)).

    Args:
        build: makes the model that is filled, such as its class.
        state_dict: as released; prefixes that torch.compile and DistributedDataParallel leave, and
            buffers of causal masks, are ignored.
        n_heads: number of heads, which the shapes do not show; 16 in the paper.
        ablation: k, the soft weights and the temperature are not stored with the weights. May be
            left out for weights without gates.

    Raises:
        UserError: missing or unknown names, shapes that do not fit, untied embeddings, or gates
            other than ``ablation`` asks for.
    """
    weights = normalised(state_dict)
    variant = _gates_in(weights)
    ablation = _agreed(ablation, variant)
    cfg = _config_of_released(weights, n_heads)
    model = build(cfg, ablation, tokenizer)
    fill(model, weights, _rows(model.cfg, variant))
    return model


def to_released(model: GatedTransformer) -> dict[str, Tensor]:
    """``model``'s weights, copied, under the authors' names, ``lm_head.weight`` included.

    Raises:
        UserError: their model cannot represent it: see :func:`gpt_neo_weights`; any other
            activation than GELU with the tanh approximation, any other epsilon than 1e-5.
    """
    cfg = model.cfg
    if cfg.act_fn not in ("gelu_new", "gelu_fast") or cfg.eps != 1e-5:
        raise UserError(
            f"the authors' model has gelu_new and eps 1e-5, this one {cfg.act_fn} and {cfg.eps}; "
            "use save_pretrained or to_hf()"
        )
    return gpt_neo_weights(
        model, model.ablation.variant if model.ablation.has_gate_weights else "none"
    )


def gpt_neo_weights(model: GatedTransformer, variant: Variant) -> dict[str, Tensor]:
    """Copies of ``model``'s weights under GPT-Neo's names, with ``variant``'s gates.

    A scale of the attention scores, which GPT-Neo has none of, goes into the queries' weights.

    Raises:
        UserError: processed weights, biases of Q, K, V or of the unembedding, or heads that do not
            fill d_model.
    """
    refuse_processed(model)
    _refuse_foreign(model)
    weights = collect(model, _rows(model.cfg, variant))
    for layer, block in enumerate(model.blocks):
        weights[f"transformer.h.{layer}.attn.attention.q_proj.weight"] *= attention_scale(block)
    weights[_UNEMBEDDING] = weights[_EMBEDDING]
    return weights


def _gates_in(weights: Mapping[str, Tensor]) -> Variant:
    for variant, sign in _GATES.items():
        if any(sign in name for name in weights):
            return variant
    return "none"


def _agreed(ablation: SelfAblationConfig | None, stored: Variant) -> SelfAblationConfig:
    """Return ``ablation`` if it has the gates that are stored with the weights."""
    if ablation is None and stored == "none":
        return SelfAblationConfig()
    if ablation is None:
        raise UserError(
            f"these weights hold {stored} gates, but not their k: pass "
            f"ablation=SelfAblationConfig(variant={stored!r}, k_attention=..., k_neurons=...)"
        )
    asked: Variant = ablation.variant if ablation.has_gate_weights else "none"
    if asked != stored:
        holds = "no gates" if stored == "none" else f"{stored} gates"
        raise UserError(
            f"these weights hold {holds}, ablation asks for variant={ablation.variant!r} with "
            f"gates={ablation.gates!r}; pass variant={stored!r}"
        )
    return ablation


def _config_of_released(weights: Mapping[str, Tensor], n_heads: int) -> HookedTransformerConfig:
    needed = (_EMBEDDING, "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight")
    for name in needed:
        if name not in weights or weights[name].ndim != 2:
            raise UserError(
                f"the weights lack {name} as a matrix: these are not the authors' names"
            )
    layers = {
        int(name.split(".")[2]) for name in weights if re.match(r"transformer\.h\.\d+\.", name)
    }
    d_vocab, d_model = weights[_EMBEDDING].shape
    return gpt_neo_config(
        n_layers=max(layers) + 1,
        d_model=d_model,
        n_heads=n_heads,
        d_vocab=d_vocab,
        n_ctx=weights["transformer.wpe.weight"].shape[0],
        d_mlp=weights["transformer.h.0.mlp.c_fc.weight"].shape[0],
        dtype=working_dtype(weights[_EMBEDDING].dtype),
        device=str(weights[_EMBEDDING].device),
    )


def _rows(cfg: HookedTransformerConfig, variant: Variant) -> Iterator[Row]:
    """GPT-Neo's weights, and the gates' under the authors' names."""
    yield from gpt_neo_rows(cfg)
    if variant == "local":
        for layer in range(cfg.n_layers):
            ours, theirs = f"blocks.{layer}.gates.scores.", f"transformer.h.{layer}."
            yield from linear(ours + "{}_attention", theirs + "attention_ablation_head")
            yield from linear(ours + "{}_neurons", theirs + "neuron_ablation_head")
    if variant == "global":
        yield from linear("gates.{}_attention", "attention_ablations_head")
        yield from linear("gates.{}_neurons", "neuron_ablations_head")


def normalised(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' prefixes, causal masks and the tied copy of the embedding."""
    weights = {_WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    weights = {name: weights[name] for name in weights if not _CAUSAL_MASKS.search(name)}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{shown(name)} is of {kind}: weights are floating-point tensors")
    unembedding = weights.pop(_UNEMBEDDING, None)
    if unembedding is not None and not torch.equal(
        weights.setdefault(_EMBEDDING, unembedding), unembedding
    ):
        raise UserError(
            f"{_UNEMBEDDING} differs from {_EMBEDDING}: self-ablating transformers tie the two"
        )
    return weights


def _refuse_foreign(model: GatedTransformer) -> None:
    """GPT-Neo has no biases of Q, K, V, none of the unembedding, and heads that fill d_model.

    Nor has it another shape of blocks, or an unembedding of its own.
    """
    if features := _foreign_features(model):
        raise UserError(
            f"GPT-Neo has no place for {some_of(features)}; use to_hooked_transformer()"
        )
    biases = [
        name
        for name, tensor in model.named_parameters()
        if name.endswith((".b_Q", ".b_K", ".b_V", ".b_U")) and tensor.any()
    ]
    if biases:
        raise UserError(
            f"GPT-Neo has no place for {some_of(biases)}, which are not zero; use "
            "to_hooked_transformer()"
        )
    cfg = model.cfg
    if cfg.n_heads * cfg.d_head != cfg.d_model:
        raise UserError(
            f"GPT-Neo's heads share d_model: {cfg.n_heads} heads of {cfg.d_head} are not "
            f"{cfg.d_model}; use to_hooked_transformer()"
        )


def _foreign_features(model: GatedTransformer) -> list[str]:
    cfg = model.cfg
    features = {
        "RMSNorm": cfg.normalization_type != "LN",
        "rotary positions": cfg.positional_embedding_type != "standard",
        "parallel blocks": cfg.parallel_attn_mlp,
        "gated MLPs": bool(cfg.gated_mlp),
        "grouped queries": cfg.n_key_value_heads is not None,
        "norms of queries and keys": bool(cfg.use_qk_norm),
        "local attention": cfg.use_local_attn,
        "an unembedding of its own": not model.is_tied,
    }
    return [feature for feature, is_there in features.items() if is_there]
