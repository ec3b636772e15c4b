"""Models whose activations are nothing to learn from: one line, or figures that say so."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.suite.sae.evaluation import check, evaluate
from sat_interp._util.errors import UserError


def hooked(**changes):
    settings = {
        "n_layers": 2,
        "d_model": 8,
        "n_heads": 2,
        "d_head": 4,
        "d_mlp": 12,
        "n_ctx": 30,
        "d_vocab": 400,
        "seed": 0,
        "act_fn": "gelu",
        "device": "cpu",
        **changes,
    }
    return HookedTransformer(HookedTransformerConfig(**settings))


@torch.no_grad()
def constant(value):
    model = hooked()
    model.blocks[0].mlp.W_out.zero_()
    model.blocks[0].mlp.b_out.fill_(value)
    return model


def test_a_model_without_an_mlp(make_data, tiny):
    model = hooked(attn_only=True, d_mlp=None)
    for run in (lambda: check(model, tiny), lambda: evaluate(model, make_data(), tiny)):
        with pytest.raises(UserError, match="hook point") as told:
            run()
        assert "\n" not in str(told.value)
    elsewhere = dataclasses.replace(tiny, hook="blocks.0.hook_attn_out")
    assert evaluate(model, make_data(), elsewhere).metrics[0].value is not None


@pytest.mark.parametrize(
    ("value", "match"),
    [(0.0, "are all zero"), (math.nan, "are not finite"), (math.inf, "are not finite")],
)
def test_activations_that_are_none(make_data, tiny, value, match):
    data = make_data()
    with pytest.raises(UserError, match=match) as told:
        evaluate(constant(value), data, tiny)
    assert "\n" not in str(told.value)
    assert not list(data.directory.glob("blocks*"))


def test_activations_that_do_not_vary(make_data, tiny):
    result = evaluate(constant(0.5), make_data(), tiny)
    found = {one.name: one for one in result.metrics}
    assert found["explained_variance"].value is None
    assert found["explained_variance"].reasons == {"the activation does not vary": 1}
    assert "the activation does not vary: explained variance is undefined" in result.extra["health"]
    assert found["mse"].value is not None


def test_one_neuron(make_data, tiny):
    config = dataclasses.replace(tiny, hook="blocks.0.mlp.hook_post")
    result = evaluate(hooked(d_mlp=1), make_data(), config)
    assert result.extra["sae"]["d_in"] == 1
    assert all(one.value is None or math.isfinite(one.value) for one in result.metrics)


def test_a_model_left_as_it_was_found_when_it_fails(make_data, tiny):
    model = constant(math.nan).train()
    with pytest.raises(UserError):
        evaluate(model, make_data(), tiny)
    assert model.training
