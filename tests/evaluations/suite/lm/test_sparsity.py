from __future__ import annotations

import math

import pytest
import torch

from evaluations.suite.lm.sparsity import gini, hoyer, l0_fraction, measure

ONE_UNIT = torch.tensor([0.0, -4.0, 0.0, 0.0], dtype=torch.float64)
ALL_EQUAL = torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
MIXED = torch.tensor([1.0, -2.0, 3.0, 0.0], dtype=torch.float64)


def test_l0_by_hand():
    assert l0_fraction(ONE_UNIT, 0.01) == 0.25
    assert l0_fraction(ALL_EQUAL, 0.01) == 1.0
    assert l0_fraction(MIXED, 0.5) == 0.5  # above 1.5: two of four
    assert l0_fraction(MIXED, 0.0) == 0.75
    assert l0_fraction(MIXED * 1e-200, 0.5) == 0.5  # scale does not matter


def test_hoyer_by_hand():
    assert hoyer(ONE_UNIT) == pytest.approx(1.0, abs=1e-12)
    assert hoyer(ALL_EQUAL) == pytest.approx(0.0, abs=1e-12)
    assert hoyer(MIXED) == pytest.approx((2 - 6 / math.sqrt(14)) / (2 - 1), rel=1e-12)
    assert hoyer(MIXED * 1e-200) == pytest.approx(float(hoyer(MIXED)), rel=1e-12)


def test_gini_by_hand():
    assert gini(ONE_UNIT) == 1 - 1 / 4
    assert gini(ALL_EQUAL) == 0.0
    # ascending 0 1 2 3: (-3*0 - 1*1 + 1*2 + 3*3) / (4 * 6)
    assert gini(MIXED) == pytest.approx(10 / 24, rel=1e-12)


def test_gini_is_the_mean_absolute_difference():
    x = torch.rand(7, dtype=torch.float64)
    pairs = (x[:, None] - x[None]).abs().mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(float(pairs), rel=1e-12)


@pytest.mark.parametrize("function", [gini, hoyer, lambda a: l0_fraction(a, 0.01)])
def test_all_zeros_have_no_sparsity(function):
    assert function(torch.zeros(5)).isnan()


def test_streamed_means_are_those_of_one_cache(make_model, text):
    model = make_model("local")
    found = measure(model, text, n_stories=100, threshold=0.01, seed=0)
    per_layer = {"z": [[], []], "post": [[], []]}
    for story in range(len(text)):
        tokens = [text.corpus.end_of_text, *text.corpus.story(story).tolist()]
        _, cache = model.run_with_cache(torch.tensor([tokens[: model.cfg.n_ctx]]))
        for layer in range(2):
            per_layer["z"][layer].append(cache[f"blocks.{layer}.attn.hook_z"][0].flatten(1))
            per_layer["post"][layer].append(cache[f"blocks.{layer}.mlp.hook_post"][0])
    metrics = {metric.name: metric for metric in found.metrics()}
    for site, layers in per_layer.items():
        tokens = [torch.cat(layer) for layer in layers]
        for name, function in {"hoyer": hoyer, "gini": gini}.items():
            means = [float(function(layer).mean()) for layer in tokens]
            told = found.per_layer()[f"{site}_{name}"]["value"]
            assert told == pytest.approx(means, rel=1e-9)
            assert metrics[f"{site}_{name}"].value == pytest.approx(sum(means) / 2, rel=1e-9)
    assert metrics["z_l0"].n == len(torch.cat(per_layer["z"][0]))


def test_the_sample_is_seeded(make_model, text):
    model = make_model()
    first, again, other = (measure(model, text, 3, 0.01, seed).per_layer() for seed in (0, 0, 1))
    assert first == again != other
    assert first["stories"] == 3


def test_what_is_not_measured_has_a_reason_and_no_value(make_model, text):
    dead = make_model()
    for block in dead.blocks:
        block.attn.W_V.data.zero_()
        block.attn.b_V.data.zero_()
    metrics = {metric.name: metric for metric in measure(dead, text, 2, 0.01, 0).metrics()}
    assert metrics["z_gini"].value is None
    assert metrics["z_gini"].reasons == {
        "all activations zero, or not finite": 2 * metrics["z_gini"].n
    }
    assert metrics["post_gini"].value is not None
    for metric in measure(dead, text, 0, 0.01, 0).metrics():
        assert metric.value is None
        assert metric.reasons == {"not asked for": 1}
