"""Small models of every shape that circuits cover, with weights and biases far from zero."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
RMS = {"normalization_type": "RMS", "act_fn": "silu"}
SHAPES: dict[str, dict[str, object]] = {
    "gpt-2": {},
    "folded norms": {"normalization_type": "LNPre"},
    "no norms": {"normalization_type": None, "initializer_range": 0.3},
    "rms, gated": {"gated_mlp": True, **RMS},
    "rotary, parallel": {**ROTARY, "parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "neo, local": {
        "use_local_attn": True,
        "attn_types": ["global", "local"],
        "window_size": 3,
        "use_attn_scale": False,
    },
    "grouped": {"n_key_value_heads": 2, **ROTARY, **RMS},
    "multi-query, serial bias": {"n_key_value_heads": 1},
    "norms of queries and keys": {"n_key_value_heads": 2, "use_qk_norm": True, **ROTARY, **RMS},
    "clipped": {"clip_qkv": 0.4, **ROTARY},
    "soft caps": {"attn_scores_soft_cap": 1.0, "output_logits_soft_cap": 2.0, **RMS},
    "alibi, embedding norm": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "experts": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, **RMS},
    "mistral's scale": {"scale_attn_by_inverse_layer_idx": True, "act_fn": "gelu"},
}
D_VOCAB = 30


def tiny_model(shape: str = "gpt-2", seed: int = 0, **settings: object) -> HookedTransformer:
    torch.manual_seed(seed)
    cfg: dict[str, object] = {
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 4,
        "d_head": 4,
        "d_mlp": 32,
        "d_vocab": D_VOCAB,
        "n_ctx": 12,
        "act_fn": "gelu_new",
        "dtype": torch.float64,
        "initializer_range": 0.4,
    }
    model = HookedTransformer(HookedTransformerConfig(**{**cfg, **SHAPES[shape], **settings}))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or ".b_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    torch.nn.Module.to(model, model.cfg.dtype)  # TransformerLens makes experts in float32
    return model.eval().requires_grad_(False)


def prompts(lengths: tuple[int, ...] = (6, 9), n: int = 3, seed: int = 0) -> list[SimpleNamespace]:
    """Random prompts; the corrupted ones differ at positions 2 and 4."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for length in lengths:
        clean = torch.randint(D_VOCAB, (n, length), generator=generator)
        corrupted = clean.clone()
        for position in (2, 4):
            offset = torch.randint(1, D_VOCAB, (n,), generator=generator)
            corrupted[:, position] = (clean[:, position] + offset) % D_VOCAB
        batches.append(SimpleNamespace(clean=clean, corrupted=corrupted))
    return batches
