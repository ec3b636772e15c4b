from __future__ import annotations

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core import weights
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config


def plain_model(**settings) -> HookedTransformer:
    config = {
        "n_layers": 1,
        "d_model": 8,
        "n_heads": 2,
        "d_head": 4,
        "d_mlp": 12,
        "n_ctx": 6,
        "d_vocab": 11,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "device": "cpu",
        "seed": 0,
    }
    return HookedTransformer(HookedTransformerConfig(**{**config, **settings}))


@pytest.mark.parametrize("variant", ["none", "local", "global"])
def test_parameter_counts_of_the_papers_shape(variant):
    cfg = gpt_neo_config(n_layers=8, d_model=128, n_heads=16, d_vocab=50_257, n_ctx=256)
    model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant=variant))
    assert weights.count(weights.exported_parameters(model)) == 14_535_249
    assert weights.count(weights.tied_parameters(model)) == 8_049_024
    assert weights.count(weights.gate_parameters(model)) == (0 if variant == "none" else 660_480)


def test_exported_parameters_are_those_of_a_plain_hooked_transformer(make_model):
    exported = weights.exported_parameters(make_model("local"))
    cfg = make_model("local").cfg
    plain = HookedTransformer(cfg)
    assert {name: value.shape for name, value in exported.items()} == {
        name: value.shape for name, value in plain.named_parameters()
    }


def test_mean_absolute_by_hand():
    found = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([[0.0, 2.0, -2.0]])}
    assert weights.mean_absolute(found) == 8 / 5
    assert str(weights.mean_absolute({})) == "nan"


def test_w_u_counts_twice_in_the_exported_mean_only(make_model):
    model = make_model()
    exported, tied = weights.exported_parameters(model), weights.tied_parameters(model)
    total = sum(value.abs().sum() for value in tied.values()) + tied["embed.W_E"].abs().sum()
    mean = float(total) / weights.count(exported)
    assert weights.mean_absolute(exported) == pytest.approx(mean, rel=1e-12)


def test_every_parameter_belongs_to_one_component(make_model):
    names = weights.exported_parameters(make_model())
    parts = {name: weights.component(name) for name in names}
    assert set(parts.values()) == set(weights.COMPONENTS)
    assert parts["blocks.1.attn.b_O"] == "attention"
    assert parts["blocks.1.mlp.W_in"] == "mlp"
    assert parts["blocks.0.ln2.b"] == parts["ln_final.w"] == "norms"
    assert parts["embed.W_E"] == parts["pos_embed.W_pos"] == parts["unembed.W_U"] == "embeddings"


def test_an_untied_unembedding_and_trained_biases_are_parameters_of_their_own():
    model = plain_model()
    assert "unembed.W_U" in weights.tied_parameters(model)
    assert "blocks.0.attn.b_Q" not in weights.tied_parameters(model)
    model.blocks[0].attn.b_Q.data[0, 0] = 1.0
    assert "blocks.0.attn.b_Q" in weights.tied_parameters(model)


def test_the_hash_knows_weights_gates_and_dtype_and_nothing_else(make_model):
    model = make_model("local", seed=1)
    digest = weights.weights_hash(model)
    assert digest == weights.weights_hash(make_model("local", seed=1))
    assert digest != weights.weights_hash(make_model("local", seed=2))
    assert digest != weights.weights_hash(make_model("none", seed=1))
    assert digest != weights.weights_hash(make_model("local", seed=1).float())
    with torch.no_grad():
        next(iter(weights.gate_parameters(model).values())).view(-1)[0] += 1e-9
    assert digest != weights.weights_hash(model)


def test_the_hash_survives_export_to_a_plain_hooked_transformer(make_model):
    model = make_model("none")
    plain = HookedTransformer(model.cfg)
    plain.load_state_dict(model.full_state_dict(), strict=False)
    assert weights.weights_hash(plain) == weights.weights_hash(model)


def test_half_precision_weights_are_hashed():
    assert len(weights.weights_hash(plain_model().to(torch.bfloat16, print_details=False))) == 64
