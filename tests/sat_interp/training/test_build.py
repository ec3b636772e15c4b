"""Fresh weights: as wide as asked for, the same for a seed on any device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sat_interp.data.stories import stories
from sat_interp.data.tokenizer import train_bpe
from sat_interp.training.build import build_model
from sat_interp.training.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    source = stories("validation")
    return train_bpe([next(source) for _ in range(30)], 400)


def test_embeddings_may_start_wider_than_the_rest(
    tiny: Callable[..., TrainConfig], tokenizer
) -> None:
    model = build_model(tiny(initializer_range=0.02, embedding_range=0.5), tokenizer, CPU)
    assert model.W_E.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.W_pos.std().item() == pytest.approx(0.5, rel=0.15)
    assert model.W_in.std().item() == pytest.approx(0.02, rel=0.1)
    plain = build_model(tiny(initializer_range=0.02, embedding_range=None), tokenizer, CPU)
    assert plain.W_E.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_seed_decides_the_weights(tiny: Callable[..., TrainConfig], tokenizer) -> None:
    one, same, other = (
        build_model(tiny(seed=seed, variant="local"), tokenizer, CPU) for seed in (1, 1, 2)
    )
    for (name, weight), twin in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, twin), name
    assert not torch.equal(one.W_E, other.W_E)
