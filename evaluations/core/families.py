"""TransformerLens configurations of Hugging Face decoders.

TransformerLens derives most configurations from Hugging Face's. Some it writes by hand, for
released models that it knows by name (Gemma 1 to 3, OLMo 1 and 2), and one (Phi) reads a field that
transformers 5 has moved. Those are derived here. For every family, sizes that TransformerLens
assumes are replaced by the model's own: head width, rotary dimensions and base, context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

from sat_interp._util.errors import UserError
from sat_interp._util.reading import read_object
from sat_interp.io.foreign import CONTEXT

LONGEST_CONTEXT = 2048
"""Tokens. HookedTransformer keeps a mask of context x context in every layer: 17 GB at 131,072."""

LARGEST_SIZE = 1 << 40
ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation")
ROPE_TYPES = ("default", "linear", "llama3", "dynamic")
"""Kinds of rotary positions; dynamic ones are scaled beyond the context only."""

log = logging.getLogger(__name__)

Fields = dict[str, Any]


def configuration(config: Any, path: str, tokenizer_limit: int | None) -> HookedTransformerConfig:
    """Return the TransformerLens configuration of a Hugging Face model.

    Args:
        config: the model's own configuration (a ``PretrainedConfig``).
        path: a directory with that configuration, as TransformerLens wants to read it.
        tokenizer_limit: the longest input the tokenizer declares, for models without positions of
            their own; None where it declares none.

    Raises:
        NotImplementedError: an architecture TransformerLens does not know.
        UserError: a feature of the architecture that HookedTransformer's conversion leaves out.
    """
    from transformer_lens import loading_from_pretrained as loading

    architecture = config.architectures[0]
    covered_activation(config)
    if architecture in FAMILIES:
        fields = {**_common(config), **FAMILIES[architecture](config)}
        fields |= {"original_architecture": architecture, "dtype": torch.float32, "device": "cpu"}
        fields |= {"init_weights": False, "from_checkpoint": False}
    else:
        _refuse_biases(config)
        _refuse_uneven_alibi(config)
        known: Any = loading.get_pretrained_model_config(
            path, hf_cfg=config.to_dict(), device="cpu", dtype=torch.float32
        )
        fields = known.to_dict()
        fields.update(own_sizes(config, fields))
    _refuse_scaled_positions(config, fields)
    fields["n_ctx"] = context(config, fields, tokenizer_limit)
    fields.setdefault("default_prepend_bos", True)
    return HookedTransformerConfig.from_dict(fields)


def context(config: Any, fields: Mapping[str, Any], tokenizer_limit: int | None) -> int:
    """Return how many positions the model is read with: never more than it declares.

    A model whose positions are not learned (rotary, ALiBi) is read with at most
    ``LONGEST_CONTEXT`` tokens, however many it declares.
    """
    declared = [getattr(config, name, None) for name in CONTEXT]
    own = next((size for size in declared if isinstance(size, int) and size > 0), None)
    if fields.get("positional_embedding_type", "standard") == "standard":
        return own or int(fields["n_ctx"])
    if own is None:
        own = tokenizer_limit or int(fields["n_ctx"])
    if own > LONGEST_CONTEXT:
        log.info("context: %d of the model's %d tokens", LONGEST_CONTEXT, own)
    return min(own, LONGEST_CONTEXT)


def tokenizer_limit(directory: Path) -> int | None:
    """Return the longest input that the tokenizer in ``directory`` declares; None for none."""
    limit = read_object(directory / "tokenizer_config.json").get("model_max_length")
    return limit if isinstance(limit, int) and 0 < limit < LARGEST_SIZE else None


def _common(config: Any) -> Fields:
    """Return what the families below share: rotary positions and a head width of their own."""
    return {
        "model_name": config.model_type,
        "d_model": config.hidden_size,
        "d_head": _head_width(config),
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "d_mlp": config.intermediate_size,
        "d_vocab": config.vocab_size,
        "act_fn": getattr(config, "hidden_activation", None) or config.hidden_act,
        "initializer_range": config.initializer_range,
        "positional_embedding_type": "rotary",
        "use_attn_scale": True,
        "final_rms": True,
        **_rotary(config, _head_width(config)),
    }


def _phi(config: Any) -> Fields:
    if config.qk_layernorm:
        raise UserError("TransformerLens' Phi has no norms of queries and keys (qk_layernorm)")
    _refuse_grouped(config)
    return {
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "final_rms": False,
        "default_prepend_bos": False,
    }


def _gemma(config: Any) -> Fields:
    return {
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "n_key_value_heads": config.num_key_value_heads,
        "gated_mlp": True,
    }


def _gemma2(config: Any) -> Fields:
    kinds = config.layer_types
    return {
        **_gemma(config),
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "use_normalization_before_and_after": True,
        "use_local_attn": True,
        "window_size": config.sliding_window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in kinds],
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
    }


def _gemma3(config: Any) -> Fields:
    everywhere, local = (
        config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention")
    )
    return {
        **_gemma2(config),
        "use_qk_norm": True,
        "rotary_base": everywhere["rope_theta"],
        "rotary_base_local": local["rope_theta"],
        "rotary_scaling_factor": float(everywhere.get("factor") or 1.0),
    }


def _olmo(config: Any) -> Fields:
    _refuse_grouped(config)
    return {
        "eps": 1e-5,  # fixed in transformers' OlmoLayerNorm
        "normalization_type": "LN",
        "gated_mlp": True,
        "final_rms": False,
        "clip_qkv": config.clip_qkv,
        "attn_types": ["global"] * config.num_hidden_layers,
    }


def _olmo2(config: Any) -> Fields:
    _refuse_grouped(config)
    return {
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "gated_mlp": True,
        "attn_types": ["global"] * config.num_hidden_layers,
    }


FAMILIES: Mapping[str, Callable[[Any], Fields]] = {
    "PhiForCausalLM": _phi,
    "GemmaForCausalLM": _gemma,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "OlmoForCausalLM": _olmo,
    "Olmo2ForCausalLM": _olmo2,
}


def own_sizes(config: Any, fields: Fields) -> Fields:
    """Return what the model declares otherwise than TransformerLens assumes."""
    if fields.get("positional_embedding_type") != "rotary":
        return {}
    own: Fields = {}
    width = _head_width(config)
    if width != fields["d_head"]:
        own |= {"d_head": width, "rotary_dim": width}
        if fields.get("use_attn_scale", True):
            own["attn_scale"] = width**0.5
    return {**own, **_rotary(config, width)}


def _head_width(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _rotary(config: Any, width: int) -> Fields:
    """Return dimensions, base and linear scaling of the rotary embedding where they are declared.

    Declared per kind of layer (Gemma 3), they are left to the family.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "full_attention" in rope:
        return {}
    fields: Fields = {}
    if isinstance(share := rope.get("partial_rotary_factor"), int | float):
        fields["rotary_dim"] = int(width * share)
    if isinstance(base := rope.get("rope_theta"), int | float):
        fields["rotary_base"] = base
    if rope.get("rope_type") == "linear":
        fields["rotary_scaling_factor"] = float(rope["factor"])
    return fields


def _refuse_grouped(config: Any) -> None:
    """Refuse grouped queries, which TransformerLens' conversion of the family leaves out.

    Raises:
        UserError: fewer key/value heads than query heads.
    """
    if config.num_key_value_heads not in (None, config.num_attention_heads):
        raise UserError(
            f"TransformerLens' {config.model_type} has as many key/value heads as query heads, "
            f"not {config.num_key_value_heads} for {config.num_attention_heads}"
        )


def _refuse_biases(config: Any) -> None:
    """Refuse biases of Llama, which HookedTransformer's conversion leaves out.

    Raises:
        UserError: attention or MLP has them.
    """
    for name in ("attention_bias", "mlp_bias"):
        if config.architectures[0] == "LlamaForCausalLM" and getattr(config, name, False):
            raise UserError(f"TransformerLens' llama has no biases ({name})")


def covered_activation(config: Any) -> str | None:
    """Return the name of the MLPs' activation, where transformers' configuration has one.

    Raises:
        UserError: TransformerLens has no such activation.
    """
    names = (getattr(config, name, None) for name in ACTIVATIONS)
    name = next((name for name in names if isinstance(name, str)), None)
    if name is not None and name not in SUPPORTED_ACTIVATIONS:
        covered = ", ".join(SUPPORTED_ACTIVATIONS)
        raise UserError(f"activation {name!r} is not covered; supported: {covered}")
    return name


def _refuse_scaled_positions(config: Any, fields: Fields) -> None:
    """Refuse rotary positions that are scaled in a way that HookedTransformer does not compute.

    Raises:
        UserError: as above.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or fields.get("use_yarn_rope"):
        return
    for one in (rope, *rope.values()):
        kind = one.get("rope_type") if isinstance(one, dict) else None
        if kind not in (None, *ROPE_TYPES):
            raise UserError(
                f"rotary positions of type {kind!r} are not covered by HookedTransformer; "
                "supported: " + ", ".join(ROPE_TYPES)
            )


def _refuse_uneven_alibi(config: Any) -> None:
    """Refuse Bloom where its heads are no power of 2: HookedTransformer has one series of slopes.

    Raises:
        UserError: as above.
    """
    if config.architectures[0] != "BloomForCausalLM":
        return
    if (heads := config.num_attention_heads) & (heads - 1):
        raise UserError(f"TransformerLens' ALiBi is for 1, 2, 4, 8, ... heads, not for {heads}")
