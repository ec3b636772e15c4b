"""A HookedTransformer of another family than the models trained here."""

from __future__ import annotations

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig


def unlike_ours(**settings: object) -> HookedTransformer:
    """RMS norms, rotary positions, a gated MLP; d 8, 2 heads, 12 neurons; float64."""
    shape: dict[str, object] = {
        "d_model": 8,
        "n_heads": 2,
        "d_head": 4,
        "d_mlp": 12,
        "seed": 0,
        "act_fn": "silu",
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "gated_mlp": True,
        "dtype": torch.float64,
        "device": "cpu",
    }
    return HookedTransformer(HookedTransformerConfig(**{**shape, **settings}))
