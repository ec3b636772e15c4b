from __future__ import annotations

import dataclasses
import inspect

import pytest

from sat_interp._util.errors import UserError
from sat_interp.training.build import build_model, shape_of
from sat_interp.training.config import PRESETS, TrainConfig, first_difference


def test_the_papers_preset_is_its_table_3() -> None:
    config = TrainConfig.from_preset("tinystories-3m", variant="local", k=2)
    expected = {
        "d_model": 128,
        "n_layers": 8,
        "n_heads": 16,
        "d_mlp": 512,
        "n_ctx": 256,
        "tokenizer": "gpt2",
        "data": "tinystories",
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "learning_rate": 1.4e-3,
        "warmup_steps": 0,
        "clip_norm": 1.0,
        "batch_size": 24,
        "accumulate": 1,
        "steps": 400_000,
        "initializer_range": 0.02,
        "clean_weight": 1.0,
        "ablated_weight": 1.0,
        "reconstruction_weight": 0.0,
        "soft": "softmax",
        "forward_mask": "hard",
        "temperature": 1.0,
        "unit": "coordinate",
        "k_attention": 2,
        "k_neurons": 2,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    tokens = config.steps * config.batch_size * config.n_ctx
    assert round(tokens / 1e9, 2) == 2.46
    shape = shape_of(config, 50_257)
    assert (shape.d_head, shape.use_attn_scale, shape.eps) == (8, False, 1e-5)


def test_the_papers_model_has_its_parameters() -> None:
    import torch

    from sat_interp.data.tokenizer import load_tokenizer

    config = TrainConfig.from_preset("tinystories-3m", variant="global")
    model = build_model(config, load_tokenizer("gpt2"), torch.device("cpu"))
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    gates = sum(size for name, size in sizes.items() if "gates." in name)
    assert (sum(sizes.values()) - gates, gates) == (8_049_024, 660_480)
    assert model.W_E.std().item() == pytest.approx(0.02, rel=0.01)


def test_the_demo_preset_is_the_default() -> None:
    assert TrainConfig.from_preset("demo") == TrainConfig()
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert all(set(settings) <= names for settings in PRESETS.values())


def test_k_is_both_and_each_can_be_overridden() -> None:
    config = TrainConfig.from_preset("demo", k=8, k_neurons=2)
    assert (config.k_attention, config.k_neurons) == (8, 2)


def test_unknown_names_come_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'tinystories-3m'"):
        TrainConfig.from_preset("tinystories-33m")
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        TrainConfig.from_preset("demo", batchsize=3)


def test_every_field_says_what_it_is() -> None:
    source = inspect.getsource(TrainConfig)
    lines = [line.strip() for line in source.splitlines()]
    for name in TrainConfig.__annotations__:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
        assert lines[at + 1].startswith('"""'), name


def test_identity_is_what_decides_the_outcome() -> None:
    config = TrainConfig(seed=1, out="a")
    free = dataclasses.replace(config, out="b", resume=True, wandb="p", checkpoint_every=1)
    assert config.hash() == free.hash()
    for change in ({"seed": 2}, {"k_neurons": 5}, {"device": "cpu"}, {"log_every": 7}):
        other = dataclasses.replace(config, **change)
        assert config.hash() != other.hash()
        difference = first_difference(config.identity(), other.identity())
        assert difference is not None
        assert difference.startswith(next(iter(change)))
    assert first_difference(config.identity(), free.identity()) is None
    assert first_difference({"gone": 1}, {}) == "gone (1 there, None here)"
