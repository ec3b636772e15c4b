"""Models that are broken or of odd shapes: one clear line, or figures that are right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedTransformer

from evaluations.core.models import prepared
from evaluations.core.record import Record
from evaluations.suite.gates import SPEC
from evaluations.suite.gates.config import GatesConfig
from evaluations.suite.gates.evaluation import evaluate as gates
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp._util.errors import UserError
from tests.evaluations.toy import run_on

CONFIG = GatesConfig(resamples=50, probe_classes=20, picture_tokens=6)
QUICK = replace(CONFIG, probe_stories=0)
GATES = {"local": "blocks.1.gates.scores", "global": "gates"}


def figures(model, text, config=CONFIG):
    return {metric.name: metric for metric in gates(model, text, config).metrics}


def spoiled(model, changes):
    with torch.no_grad():
        for name, value in changes.items():
            dict(model.named_parameters())[name].view(-1)[3] = value
    return model


def shaped(tokenizer, ablation=None, **shape):
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_ctx": 24, **shape}
    cfg = gpt_neo_config(d_vocab=len(tokenizer), initializer_range=0.3, **sizes)
    config = SelfAblationConfig(
        variant="local", **{"k_attention": 3, "k_neurons": 5, **(ablation or {})}
    )
    return SelfAblatingTransformer(cfg, config, tokenizer=tokenizer).eval()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("variant", ["local", "global"])
def test_weights_that_are_not_finite_are_refused_in_one_line(make_model, text, variant, value):
    gate = GATES[variant]
    for name in (
        f"{gate}.W_attention",
        f"{gate}.b_attention",
        f"{gate}.W_neurons",
        f"{gate}.b_neurons",
    ):
        with pytest.raises(
            UserError, match=r"^this model's gates have weights that are NaN or .*$"
        ):
            gates(spoiled(make_model(variant), {name: value}), text, CONFIG)
    for name in ("blocks.0.attn.W_O", "blocks.1.mlp.W_in", "ln_final.w", "pos_embed.W_pos"):
        with pytest.raises(UserError, match=r"^the clean stream is NaN or infinite, so .*$"):
            gates(spoiled(make_model(variant), {name: value}), text, CONFIG)


def test_random_gates_of_a_broken_model_are_refused_too(make_model, text):
    model = spoiled(make_model("local", gates="random"), {"blocks.0.mlp.W_out": float("nan")})
    with pytest.raises(UserError, match="^the clean stream is NaN"):
        gates(model, text, CONFIG)


@pytest.mark.parametrize("forward_mask", ["hard", "soft"])
@pytest.mark.parametrize("variant", ["local", "global"])
def test_scores_that_overflow_are_refused(make_model, text, variant, forward_mask):
    model = make_model(variant, forward_mask=forward_mask).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gates" in name:
                weight.copy_(weight.sign() * 3e38)
    with pytest.raises(UserError, match="^the gates' scores are NaN or infinite"):
        gates(model, text, CONFIG)


@pytest.mark.parametrize("change", [{"unembed.b_U": float("nan")}, {"ln_final.w": 1e308}])
def test_losses_that_are_not_finite_are_counted_by_their_reason(make_model, text, change):
    healthy, found = (
        figures(model, text, QUICK)
        for model in (make_model("local"), spoiled(make_model("local"), change))
    )
    for name in ("own_loss", "shuffled_cost", "random_cost"):
        metric = found[f"masks_{name}"]
        assert (metric.value, metric.interval, metric.n) == (None, None, 0)
        assert metric.reasons == {"loss not finite": 8}
    assert found["neuron_entropy"] == healthy["neuron_entropy"]  # masks do not read the output


def test_an_infinite_loss_and_a_story_alone_are_two_reasons(make_model, text):
    model = spoiled(make_model("local", n_ctx=60), {"unembed.b_U": float("nan")})
    found = figures(model, text, QUICK)["masks_other_story_loss"]
    assert found.reasons == {"no other story is as long": 1, "loss not finite": 7}


def test_units_that_no_gate_selects_are_counted_as_dead(make_model, text):
    model = make_model("local")
    with torch.no_grad():
        for block in model.blocks:
            block.gates.scores.b_neurons[5:] = -1e6  # of 64; k is 5, so the others always win
    found = figures(model, text)
    assert found["neuron_dead"].value == pytest.approx(59 / 64)
    assert found["neuron_entropy"].value == pytest.approx(torch.tensor(5.0).log2().item())
    assert (found["neuron_overlap"].value, found["neuron_overlap_chance"].value) == (1.0, 1.0)
    assert found["neuron_similarity"].reasons == {"overlap of masks is constant": 1}
    assert found["attention_dead"].value < 0.5


def test_one_neuron_a_layer_has_no_share_of_entropy(tokenizer, text):
    found = figures(shaped(tokenizer, {"k_neurons": 1}, d_mlp=1), text)
    assert found["neuron_entropy"].value == 0.0
    share = found["neuron_entropy_share"]
    assert (share.value, share.interval, share.reasons) == (None, None, {"one unit": 1})
    assert found["neuron_dead"].value == 0.0
    assert found["attention_entropy_share"].value is not None


def test_a_context_of_one_token_has_no_neighbours(make_model, text):
    found = figures(make_model("local", n_ctx=1), text)
    for name in ("attention_overlap", "neuron_overlap_excess"):
        assert found[name].value is None
        assert found[name].reasons == {"no story has two tokens": 1}


def test_models_without_an_mlp_are_refused(make_model, text, tokenizer):
    cfg = make_model().cfg
    cfg.attn_only = True
    with pytest.raises(UserError, match="^this model has no gates"):
        gates(HookedTransformer(cfg), text, CONFIG)
    with pytest.raises(UserError, match="attn_only"):
        SelfAblatingTransformer(cfg, SelfAblationConfig(variant="local"))


def test_broken_models_cost_no_other_model_its_record(make_model, text, tokenizer, tmp_path):
    models = [
        prepared(model, name, tokenizer, "cpu", dtype)
        for name, model, dtype in (
            ("broken", spoiled(make_model("local"), {"blocks.0.mlp.W_out": math.nan}), "float64"),
            ("one", shaped(tokenizer, {"k_neurons": 1}, d_mlp=1), "float32"),
        )
    ]
    outcome = run_on(SPEC, models, lambda loaded: text, QUICK, tmp_path)
    assert list(outcome.failures) == ["broken"]
    (record,) = outcome.records
    assert Record.from_json(record.to_json()).metric("neuron_entropy_share").value is None
