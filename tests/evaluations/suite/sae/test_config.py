from __future__ import annotations

import dataclasses

import pytest

from evaluations.suite.sae.config import PRESETS, SaeConfig, preset
from sat_interp._util.errors import UserError


@pytest.mark.parametrize("layers", [1, 2, 8])
def test_the_default_site_is_the_mlps_output_of_the_last_block_but_one(layers, make_model):
    model = make_model()
    model.cfg.n_layers = layers
    assert SaeConfig().hook_in(model) == f"blocks.{max(layers - 2, 0)}.hook_mlp_out"
    assert SaeConfig(hook="blocks.0.hook_resid_post").hook_in(model) == "blocks.0.hook_resid_post"


def test_the_context_is_the_models_where_that_is_shorter(make_model):
    assert SaeConfig().context_in(make_model(n_ctx=24)) == 24
    assert SaeConfig().context_in(make_model(n_ctx=500)) == 128


def test_the_demo_is_the_papers_autoencoder_on_a_small_budget():
    paper, demo = PRESETS["paper"], PRESETS["demo"]
    for name in (
        "unit_norm",
        "sparsity",
        "expansion",
        "adam_beta1",
        "lr_decay",
        "warm_up",
        "apply_b_dec_to_input",
        "decoder_init_norm",
    ):
        assert getattr(paper, name) == getattr(demo, name), name
    assert demo.lr == 100 * paper.lr
    assert demo.tokens < paper.tokens / 100
    assert demo.tokens >= demo.buffer_prompts * demo.context


def test_sparsity_is_of_the_architectures_own_kind():
    assert [preset("demo", kind).label for kind in ("standard", "gated", "jumprelu", "topk")] == [
        "L1 5",
        "gated L1 5",
        "jumprelu L0 1",
        "topk k 32",
    ]
    assert dataclasses.replace(preset("demo"), sparsity=0.5).label == "L1 0.5"


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="--preset"):
        preset("papre")
    with pytest.raises(UserError, match="--architecture"):
        SaeConfig(architecture="relu")
    for changes in ({"sparsity": -1.0}, {"tokens": 0}, {"expansion": 0}):
        with pytest.raises(UserError):
            SaeConfig(**changes)
    for k in (0.5, 0.0, 3.5):
        with pytest.raises(UserError, match="--k"):
            SaeConfig(architecture="topk", sparsity=k)
