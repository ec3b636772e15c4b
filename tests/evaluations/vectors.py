"""Values of optimal ablation that were computed once in plain torch, beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

VECTORS = Path(__file__).parents[3] / "shared" / "oracles" / "optimal-ablation"

needed = pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors are not here")


def vectors_model() -> HookedTransformer:
    """Return the float64 model whose components, lenses and causal traces have stated values."""
    stated = json.loads((VECTORS / "model.json").read_text())
    shape = {k: v for k, v in stated["shape"].items() if k not in ("scaled", "mlps")}
    cfg = HookedTransformerConfig(
        **shape,
        act_fn=stated["act_fn"],
        normalization_type=stated["normalization"],
        use_attn_scale=stated["use_attn_scale"],
        dtype=torch.float64,
        device="cpu",
    )
    made = HookedTransformer(cfg)
    made.load_state_dict(load_file(VECTORS / "model.safetensors"), strict=False)
    return made.eval().requires_grad_(False)
