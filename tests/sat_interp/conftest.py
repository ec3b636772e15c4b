"""Small models with weights large enough that no two paths agree by accident."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config
from sat_interp.model.transformer import SelfAblatingTransformer

ModelMaker = Callable[..., SelfAblatingTransformer]


@pytest.fixture
def make_model() -> ModelMaker:
    """A float64 model of 3 layers, d 16, 4 heads, 40 neurons, 61 tokens, context 12."""

    def make(variant: str = "local", seed: int = 0, **ablation: object) -> SelfAblatingTransformer:
        torch.manual_seed(seed)
        cfg = gpt_neo_config(
            n_layers=3,
            d_model=16,
            n_heads=4,
            d_mlp=40,
            d_vocab=61,
            n_ctx=12,
            initializer_range=0.4,
            dtype=torch.float64,
        )
        settings: dict[str, object] = {"k_attention": 3, "k_neurons": 5, **ablation}
        model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant=variant, **settings))
        for name, parameter in model.named_parameters():
            # Biases and norms at 0 and 1 would hide a term that is missing.
            if parameter.requires_grad and "W_" not in name:
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
        return model

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(1))
