"""The shape of a self-ablating transformer, and the shapes that the gates support."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens import HookedTransformerConfig
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from sat_interp._util.errors import UserError, shown
from sat_interp.model.config import SelfAblationConfig

# The ablated stream is written for blocks with a norm before attention and one before the MLP; any
# other value is refused.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("LN", "RMS"),
    "positional_embedding_type": ("standard", "rotary"),
    "attention_dir": ("causal",),
    "act_fn": ("gelu_new", "gelu", "gelu_fast", "relu", "silu"),
    "attn_only": (False,),
    "post_embedding_ln": (False, None),
    "use_normalization_before_and_after": (False, None),
    "num_experts": (None,),
    "use_logn_attn": (False, None),
    "use_dynamic_ntk_rope": (False, None),
    "use_attention_sinks": (False, None),
    "clip_qkv": (None,),
    "load_in_4bit": (False, None),
    # Soft caps: TransformerLens reads any value that is not positive as none.
    "attn_scores_soft_cap": (-1.0, None),
    "output_logits_soft_cap": (-1.0, None),
}


_ADDED = ("b_Q", "b_K", "b_V", "_b_K", "_b_V", "b_U")
_ABSENT: dict[str, tuple[str, ...]] = {
    "GPT2LMHeadModel": ("b_U",),
    "GPTNeoXForCausalLM": ("b_U",),
    "Qwen2ForCausalLM": ("b_O", "b_in", "b_out", "b_U"),
    **dict.fromkeys(
        ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"),
        (*_ADDED, "b_O", "b_in", "b_out"),
    ),
}


def absent_biases(cfg: HookedTransformerConfig) -> tuple[str, ...]:
    """Names of the biases that TransformerLens adds to an architecture; they are not trained.

    In GPT-Neo, and in a shape that names no architecture, those of Q, K, V and the unembedding.
    """
    return _ABSENT.get(str(cfg.original_architecture), _ADDED)


def attention_units(ablation: SelfAblationConfig, cfg: HookedTransformerConfig) -> int:
    """Number of attention units per layer: n_heads * d_head coordinates, or n_heads."""
    return cfg.n_heads * (cfg.d_head if ablation.unit == "coordinate" else 1)


def validate(ablation: SelfAblationConfig, cfg: HookedTransformerConfig) -> None:
    """Check that a shape supports these gates.

    Raises:
        UserError: k above the number of units, or an architecture that the gates do not support.
    """
    if ablation.is_gated:
        limits = {
            "k_attention": (attention_units(ablation, cfg), "attention units"),
            "k_neurons": (cfg.d_mlp or 0, "neurons"),
        }
        for name, (limit, units) in limits.items():
            k = getattr(ablation, name)
            if k > limit:
                raise UserError(
                    f"{name} is {k}, but a layer has {limit} {units}; choose {name} <= {limit}"
                )
    if cfg.original_architecture in POST_NORM_ARCHITECTURES:
        raise UserError(
            f"self-ablation does not support {cfg.original_architecture}: its norms come after "
            "attention and MLP, not before"
        )
    for name, wanted in _SUPPORTED.items():
        value = getattr(cfg, name, None)
        if value not in wanted:
            raise UserError(
                f"self-ablation does not support {name}={shown(value)}; supported: "
                + ", ".join(repr(choice) for choice in wanted)
            )


def gpt_neo_config(  # noqa: PLR0913  the sizes of a shape, each by name
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_vocab: int,
    n_ctx: int,
    d_mlp: int | None = None,
    initializer_range: float = 0.02,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> HookedTransformerConfig:
    """The paper's GPT-Neo in TransformerLens' terms (Table 3; TinyStories-3M).

    Pre-LN blocks (eps 1e-5), learned positions, unscaled attention scores, all layers global and
    causal, GELU with the tanh approximation.

    Raises:
        UserError: a size below 1, or d_model not divisible by n_heads.
    """
    for name, value in {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_vocab": d_vocab,
        "n_ctx": n_ctx,
    }.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if d_model % n_heads:
        raise UserError(
            f"d_model {d_model} is not divisible by n_heads {n_heads}; "
            f"choose a d_model that is a multiple of {n_heads}"
        )
    return HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=4 * d_model if d_mlp is None else d_mlp,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        act_fn="gelu_new",
        normalization_type="LN",
        positional_embedding_type="standard",
        use_attn_scale=False,
        eps=1e-5,
        init_mode="gpt2",
        initializer_range=initializer_range,
        original_architecture="GPTNeoForCausalLM",
        model_name="self-ablating-transformer",
        dtype=dtype,
        device=device,
        seed=None,
    )
