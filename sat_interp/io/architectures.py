"""Hugging Face's architectures that gates cover: their configurations and names of weights.

Each is read into TransformerLens' terms by one function, and its weights go both ways through one
table of names, so that a model that was read can be written back as the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from transformer_lens import HookedTransformerConfig

from sat_interp._util.errors import UserError, shown
from sat_interp.io.rows import Row, affine, linear, matrix, output, projection

LONGEST_CONTEXT = 2048
"""Tokens. A model with rotary positions is read with at most so many, whatever it declares."""

# Hugging Face's name of an activation to TransformerLens'.
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "gelu_fast": "gelu_fast",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_WORDS = {"attention_bias": "biases of attention", "mlp_bias": "biases of the MLP"}

Fields = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """An architecture of Hugging Face's.

    Attributes:
        name: its class.
        fields: TransformerLens' fields of its configuration; raises a UserError for a feature that
            is not covered.
        rows: its weights, the unembedding of an untied model left out.
    """

    name: str
    fields: Callable[[Any], Fields]
    rows: Callable[[HookedTransformerConfig], Iterator[Row]]


def architecture_of(config: Any) -> Architecture:
    """The architecture of a Hugging Face configuration.

    Raises:
        UserError: gates do not cover it.
    """
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        raise UserError(
            f"this is a {shown(kind or type(config).__name__)} model, whose blocks gates cannot "
            f"cover; they cover {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def shape_of(config: Any) -> HookedTransformerConfig:
    """A Hugging Face configuration in TransformerLens' terms.

    Raises:
        UserError: gates do not cover the architecture, or one of its features.
    """
    architecture = architecture_of(config)
    fields = architecture.fields(config)
    activation = fields["act_fn"]
    if activation not in ACTIVATIONS:
        raise UserError(
            f"activation {activation!r} is not covered; supported: " + ", ".join(ACTIVATIONS)
        )
    return HookedTransformerConfig(
        **{
            **fields,
            "act_fn": ACTIVATIONS[activation],
            "d_vocab": config.vocab_size,
            "init_mode": "gpt2",
            "initializer_range": float(config.initializer_range),
            "original_architecture": architecture.name,
            "model_name": config.model_type,
            "device": "cpu",
            "seed": None,
        }
    )


def weight_rows(config: Any, cfg: HookedTransformerConfig, unembedding: str) -> Iterator[Row]:
    """All weights of a model; the unembedding is among them where it is not tied.

    Args:
        unembedding: their name of it, which is not the same in all releases of transformers.
    """
    yield from architecture_of(config).rows(cfg)
    if not is_tied(config):
        yield matrix("unembed.W_U", unembedding)


def is_tied(config: Any) -> bool:
    """Whether the unembedding is the embedding."""
    return bool(getattr(config, "tie_word_embeddings", False))


# GPT-2 and GPT-Neo ------------------------------------------------------------------------------


def _gpt2(config: Any) -> Fields:
    if config.add_cross_attention:
        raise UserError("a GPT-2 with cross-attention is not covered")
    return {
        "n_layers": config.n_layer,
        "d_model": config.n_embd,
        "n_heads": config.n_head,
        "d_head": _head_width(config.n_embd, config.n_head),
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_ctx": config.n_positions,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": bool(config.scale_attn_weights),
        "scale_attn_by_inverse_layer_idx": bool(config.scale_attn_by_inverse_layer_idx),
    }


def _gpt2_rows(cfg: HookedTransformerConfig) -> Iterator[Row]:
    yield Row(("embed.W_E",), "transformer.wte.weight")
    yield Row(("pos_embed.W_pos",), "transformer.wpe.weight")
    yield from affine("ln_final.{}", "transformer.ln_f")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        yield from affine(ours + "ln1.{}", theirs + "ln_1")
        yield from affine(ours + "ln2.{}", theirs + "ln_2")
        # GPT-2's linear maps are stored as (inputs, outputs)
        yield Row(
            tuple(f"{ours}attn.W_{part}" for part in "QKV"),
            theirs + "attn.c_attn.weight",
            "part heads d_model d_head",
            "d_model (part heads d_head)",
            cfg.n_heads,
        )
        yield Row(
            tuple(f"{ours}attn.b_{part}" for part in "QKV"),
            theirs + "attn.c_attn.bias",
            "part heads d_head",
            "(part heads d_head)",
            cfg.n_heads,
        )
        yield Row(
            (ours + "attn.W_O",),
            theirs + "attn.c_proj.weight",
            "heads d_head d_model",
            "(heads d_head) d_model",
            cfg.n_heads,
        )
        yield Row((ours + "attn.b_O",), theirs + "attn.c_proj.bias")
        for end, name in (("in", "c_fc"), ("out", "c_proj")):
            yield Row((f"{ours}mlp.W_{end}",), f"{theirs}mlp.{name}.weight")
            yield Row((f"{ours}mlp.b_{end}",), f"{theirs}mlp.{name}.bias")


def _gpt_neo(config: Any) -> Fields:
    kinds = list(config.attention_layers)
    return {
        "n_layers": config.num_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_heads,
        "d_head": _head_width(config.hidden_size, config.num_heads),
        "d_mlp": config.intermediate_size or 4 * config.hidden_size,
        "n_ctx": config.max_position_embeddings,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": False,
        **_windows(kinds, config.window_size, config.max_position_embeddings),
    }


def gpt_neo_rows(cfg: HookedTransformerConfig) -> Iterator[Row]:
    """The weights of GPT-Neo, which the authors' models share."""
    yield Row(("embed.W_E",), "transformer.wte.weight")
    yield Row(("pos_embed.W_pos",), "transformer.wpe.weight")
    yield from affine("ln_final.{}", "transformer.ln_f")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        attention = theirs + "attn.attention."
        yield from affine(ours + "ln1.{}", theirs + "ln_1")
        yield from affine(ours + "ln2.{}", theirs + "ln_2")
        for part in "QKV":
            name = f"{attention}{part.lower()}_proj.weight"
            yield projection(f"{ours}attn.W_{part}", name, cfg.n_heads)
        yield output(ours + "attn.W_O", attention + "out_proj.weight", cfg.n_heads)
        yield Row((ours + "attn.b_O",), attention + "out_proj.bias")
        yield from linear(ours + "mlp.{}_in", theirs + "mlp.c_fc")
        yield from linear(ours + "mlp.{}_out", theirs + "mlp.c_proj")


# GPT-NeoX ---------------------------------------------------------------------------------------


def _gpt_neox(config: Any) -> Fields:
    if not config.attention_bias:
        raise UserError("a GPT-NeoX without biases of attention (attention_bias) is not covered")
    width = _head_width(config.hidden_size, config.num_attention_heads)
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": width,
        "d_mlp": config.intermediate_size,
        "n_ctx": min(config.max_position_embeddings, LONGEST_CONTEXT),
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": bool(config.use_parallel_residual),
        **_rotary(config, width),
    }


def _gpt_neox_rows(cfg: HookedTransformerConfig) -> Iterator[Row]:
    yield Row(("embed.W_E",), "gpt_neox.embed_in.weight")
    yield from affine("ln_final.{}", "gpt_neox.final_layer_norm")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"gpt_neox.layers.{layer}."
        attention = theirs + "attention."
        yield from affine(ours + "ln1.{}", theirs + "input_layernorm")
        yield from affine(ours + "ln2.{}", theirs + "post_attention_layernorm")
        yield Row(
            tuple(f"{ours}attn.W_{part}" for part in "QKV"),
            attention + "query_key_value.weight",
            "part heads d_model d_head",
            "(heads part d_head) d_model",
            cfg.n_heads,
        )
        yield Row(
            tuple(f"{ours}attn.b_{part}" for part in "QKV"),
            attention + "query_key_value.bias",
            "part heads d_head",
            "(heads part d_head)",
            cfg.n_heads,
        )
        yield output(ours + "attn.W_O", attention + "dense.weight", cfg.n_heads)
        yield Row((ours + "attn.b_O",), attention + "dense.bias")
        yield from linear(ours + "mlp.{}_in", theirs + "mlp.dense_h_to_4h")
        yield from linear(ours + "mlp.{}_out", theirs + "mlp.dense_4h_to_h")


# Llama and its relatives ------------------------------------------------------------------------


def _llama(config: Any) -> Fields:
    for name, words in _WORDS.items():
        if getattr(config, name, False):
            raise UserError(f"a {config.model_type} with {words} ({name}) is not covered")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or _head_width(config.hidden_size, heads)
    n_ctx = min(config.max_position_embeddings, LONGEST_CONTEXT)
    kinds = getattr(config, "layer_types", None) or _mistral_layers(config)
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": heads,
        "n_key_value_heads": None if groups in (None, heads) else groups,
        "d_head": width,
        "d_mlp": config.intermediate_size,
        "n_ctx": n_ctx,
        "act_fn": config.hidden_act,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "use_qk_norm": config.model_type == "qwen3",
        **_windows(kinds, getattr(config, "sliding_window", None), n_ctx),
        **_rotary(config, width),
    }


def _mistral_layers(config: Any) -> list[str]:
    kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    return [kind] * int(config.num_hidden_layers)


def _llama_rows(cfg: HookedTransformerConfig) -> Iterator[Row]:
    heads = {"Q": cfg.n_heads, "K": cfg.n_key_value_heads, "V": cfg.n_key_value_heads}
    yield Row(("embed.W_E",), "model.embed_tokens.weight")
    yield Row(("ln_final.w",), "model.norm.weight")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        attention = theirs + "self_attn."
        yield Row((ours + "ln1.w",), theirs + "input_layernorm.weight")
        yield Row((ours + "ln2.w",), theirs + "post_attention_layernorm.weight")
        for part, groups in heads.items():
            own = "" if part == "Q" or groups is None else "_"
            count, name = groups or cfg.n_heads, f"{attention}{part.lower()}_proj"
            yield projection(f"{ours}attn.{own}W_{part}", f"{name}.weight", count)
            if cfg.original_architecture == "Qwen2ForCausalLM":
                axes = ("heads d_head", "(heads d_head)")
                yield Row((f"{ours}attn.{own}b_{part}",), f"{name}.bias", *axes, count)
        yield output(ours + "attn.W_O", attention + "o_proj.weight", cfg.n_heads)
        if cfg.use_qk_norm:
            yield Row((ours + "attn.q_norm.w",), attention + "q_norm.weight")
            yield Row((ours + "attn.k_norm.w",), attention + "k_norm.weight")
        for end, name in (("gate", "gate"), ("in", "up"), ("out", "down")):
            yield matrix(f"{ours}mlp.W_{end}", f"{theirs}mlp.{name}_proj.weight")


# Parts that several share -----------------------------------------------------------------------


def _head_width(d_model: int, heads: int) -> int:
    if d_model % heads:
        raise UserError(f"a width of {d_model} is not divisible by {heads} heads")
    return d_model // heads


def _windows(kinds: list[str], window: int | None, n_ctx: int) -> Fields:
    """Local attention, where a window is shorter than the context."""
    local = {"local", "sliding_attention"}
    if window is None or window >= n_ctx or not local & set(kinds):
        return {}
    return {
        "use_local_attn": True,
        "window_size": int(window),
        "attn_types": ["local" if kind in local else "global" for kind in kinds],
    }


def _rotary(config: Any, width: int) -> Fields:
    """Rotary positions: dimensions, base, and the scaling of Llama 3 or a linear one."""
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if int(width * rope.get("partial_rotary_factor", 1.0)) % 2:
        raise UserError(f"an odd number of rotary dimensions (of heads of {width}) is not covered")
    fields: Fields = {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": int(width * rope.get("partial_rotary_factor", 1.0)),
        "rotary_base": float(rope.get("rope_theta", 10_000.0)),
    }
    if kind == "linear":
        return {**fields, "rotary_scaling_factor": float(rope["factor"])}
    if kind == "llama3":
        return {
            **fields,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": float(rope["factor"]),
            "NTK_by_parts_low_freq_factor": float(rope["low_freq_factor"]),
            "NTK_by_parts_high_freq_factor": float(rope["high_freq_factor"]),
            "NTK_original_ctx_len": int(rope["original_max_position_embeddings"]),
        }
    if kind != "default":
        raise UserError(
            f"rotary positions scaled by {kind!r} are not covered; default, linear and llama3 are"
        )
    return fields


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("GPT2LMHeadModel", _gpt2, _gpt2_rows),
    "gpt_neo": Architecture("GPTNeoForCausalLM", _gpt_neo, gpt_neo_rows),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", _gpt_neox, _gpt_neox_rows),
    "llama": Architecture("LlamaForCausalLM", _llama, _llama_rows),
    "mistral": Architecture("MistralForCausalLM", _llama, _llama_rows),
    "qwen2": Architecture("Qwen2ForCausalLM", _llama, _llama_rows),
    "qwen3": Architecture("Qwen3ForCausalLM", _llama, _llama_rows),
}
"""Architectures that gates cover, by Hugging Face's model_type."""
