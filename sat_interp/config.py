"""What a self-ablating transformer is made of: its gates and its shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from transformer_lens import HookedTransformerConfig

from sat_interp.errors import UserError, suggest

Variant = Literal["none", "local", "global"]
Soft = Literal["softmax", "sigmoid"]
ForwardMask = Literal["hard", "soft"]
Unit = Literal["coordinate", "head"]
GateKind = Literal["learned", "random", "frozen", "detached", "dropout"]


@dataclass
class SelfAblationConfig:
    """The gates of a model (Self-Ablating Transformers, arXiv 2505.00509, section 3.1).

    Raises:
        UserError: an unknown choice, k below 1, or a temperature that is not positive.
    """

    variant: Variant = "none"
    """none: an ordinary transformer. local: each block's gates read the block's own input.
    global: the gates of all blocks read the final state of the clean stream."""

    k_attention: int = 4
    """Attention units kept per token and layer."""

    k_neurons: int = 4
    """Neurons kept per token and layer."""

    soft: Soft = "softmax"
    """Soft weights whose gradient trains the gates: softmax (paper, equation 3; they sum to 1)
    or sigmoid (released code; they are rescaled to sum to k)."""

    forward_mask: ForwardMask = "hard"
    """hard: exactly k ones, straight-through gradient. soft: the soft weights themselves."""

    temperature: float = 1.0
    """Factor on the dynamic temperature T = temperature * (x_k - x_{k+1})."""

    unit: Unit = "coordinate"
    """An attention unit is one coordinate of z (d_head * n_heads of them), or one head."""

    gates: GateKind = "learned"
    """learned, or a control. random: a random k-subset at every step. frozen: scores from weights
    that stay at their initialisation. detached: learned gates whose gradient does not reach the
    residual stream they read. dropout: no gates, but dropout of rate 1 - k/n in their place."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(suggest(name, getattr(self, name), choices))
        for name in ("k_attention", "k_neurons"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature must be positive and finite, not {self.temperature}")

    @property
    def is_gated(self) -> bool:
        return self.variant != "none"

    @property
    def has_gate_weights(self) -> bool:
        """Whether scores are computed at all; random masks and dropout need none."""
        return self.is_gated and self.gates in ("learned", "frozen", "detached")

    def attention_units(self, cfg: HookedTransformerConfig) -> int:
        """Number of attention units per layer: n_heads * d_head coordinates, or n_heads."""
        return cfg.n_heads * (cfg.d_head if self.unit == "coordinate" else 1)

    def validate_for(self, cfg: HookedTransformerConfig) -> None:
        """Refuse what this shape cannot hold.

        Raises:
            UserError: k above the number of units, or an architecture the gates do not cover.
        """
        if self.is_gated:
            units = self.attention_units(cfg)
            if self.k_attention > units:
                raise UserError(
                    f"k_attention is {self.k_attention}, but a layer has {units} attention units; "
                    f"choose k_attention <= {units}"
                )
            if self.k_neurons > (cfg.d_mlp or 0):
                raise UserError(
                    f"k_neurons is {self.k_neurons}, but a layer has {cfg.d_mlp} neurons; "
                    f"choose k_neurons <= {cfg.d_mlp}"
                )
        for name, wanted in _SUPPORTED.items():
            value = getattr(cfg, name, None)
            if value not in wanted:
                raise UserError(
                    f"self-ablation does not cover {name}={value!r}; supported: "
                    + ", ".join(repr(choice) for choice in wanted)
                )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_CHOICES: dict[str, tuple[str, ...]] = {
    "variant": get_args(Variant),
    "soft": get_args(Soft),
    "forward_mask": get_args(ForwardMask),
    "unit": get_args(Unit),
    "gates": get_args(GateKind),
}

# The ablated stream is written for pre-LN GPT blocks; anything else is refused by name.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("LN",),
    "positional_embedding_type": ("standard",),
    "attention_dir": ("causal",),
    "act_fn": ("gelu_new", "gelu", "gelu_fast", "relu", "silu"),
    "attn_only": (False,),
    "parallel_attn_mlp": (False,),
    "gated_mlp": (False, None),
    "final_rms": (False, None),
    "use_local_attn": (False,),
    "post_embedding_ln": (False, None),
    "use_normalization_before_and_after": (False, None),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
    "use_qk_norm": (False, None),
    "use_logn_attn": (False, None),
    # Soft caps: TransformerLens reads any value that is not positive as none.
    "attn_scores_soft_cap": (-1.0, None),
    "output_logits_soft_cap": (-1.0, None),
}


def gpt_neo_config(
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
        "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_vocab": d_vocab,
        "n_ctx": n_ctx,
    }.items():  # fmt: skip
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
