from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.losses import token_losses
from evaluations.core.text import evaluation_text
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.evaluation import evaluate, story_losses
from sat_interp._util.errors import UserError
from sat_interp.model import unembedding
from tests.sat_interp.model.plain import plain_dual
from tests.unlike_ours import unlike_ours

CONFIG = LanguageConfig(resamples=100, activation_stories=2)


def figures(model, text, config=CONFIG):
    return {metric.name: metric for metric in evaluate(model, text, config).metrics}


@torch.no_grad()
def brute_force(text, context, logits_of):
    """(nats, tokens scored, tokens cut), one story and one token at a time, in float64."""
    total, scored, cut = 0.0, 0, 0
    end = text.corpus.end_of_text
    for story in range(len(text)):
        targets = [*text.corpus.story(story).tolist(), end]
        inputs = torch.tensor([[end, *targets[:-1]][:context]])
        for logits, target in zip(logits_of(inputs)[0], targets, strict=False):
            total += float(logits.logsumexp(-1) - logits[target])
            scored += 1
        cut += max(0, len(targets) - context)
    return total, scored, cut


@pytest.mark.parametrize("context", [5, 24, 60])
def test_perplexity_is_that_of_one_story_and_token_at_a_time(make_model, text, context):
    model = make_model(n_ctx=context)
    nats, scored, cut = brute_force(text, context, model)
    found = figures(model, text)
    assert found["loss"].value == pytest.approx(nats / scored, rel=1e-10)
    assert found["perplexity"].value == pytest.approx(math.exp(nats / scored), rel=1e-10)
    assert found["loss"].n == scored
    assert found["cut_tokens"].value == cut
    assert (cut > 0) == (context < 60)
    assert "ablated_loss" not in found


@pytest.mark.parametrize("variant", ["local", "global"])
def test_both_streams_are_those_of_the_plain_twin(make_model, text, variant):
    model = make_model(variant)
    found = figures(model, text)
    for stream, place in {"": 0, "ablated_": 1}.items():
        nats, scored, _ = brute_force(
            text, model.cfg.n_ctx, lambda tokens, place=place: plain_dual(model, tokens)[place]
        )
        assert found[f"{stream}loss"].value == pytest.approx(nats / scored, rel=1e-9)
    gap = found["ablated_loss"].value - found["loss"].value
    assert found["ablation_gap"].value == pytest.approx(gap, rel=1e-9)
    assert abs(gap) > 1e-3


def test_a_uniform_model_has_the_vocabularys_size_and_its_bits_per_byte(make_model, text):
    model = make_model()
    model.W_E.data.zero_()
    found = figures(model, text)
    size = model.cfg.d_vocab
    assert found["perplexity"].value == pytest.approx(size, rel=1e-12)
    assert found["perplexity"].standard_error == pytest.approx(0, abs=1e-9)
    scored = int(text.scored(model.cfg.n_ctx).sum())
    bits = scored * math.log2(size) / text.scored_bytes(model.cfg.n_ctx).sum()
    assert found["bits_per_byte"].value == pytest.approx(bits, rel=1e-12)
    assert found["bits_per_byte"].interval.low < bits < found["bits_per_byte"].interval.high


def test_bits_per_byte_by_hand(make_model, tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text("é!", encoding="utf-8")  # three bytes
    text = evaluation_text(tokenizer, str(tmp_path / "one.txt"))
    model = make_model()
    model.W_E.data.zero_()
    tokens = len(text.corpus.story(0)) + 1
    found = figures(model, text)
    assert found["bits_per_byte"].value == pytest.approx(
        tokens * math.log2(model.cfg.d_vocab) / 3, rel=1e-12
    )
    # one story: a value, but no uncertainty to be had
    assert found["perplexity"].interval is None
    assert found["perplexity"].standard_error is None


def test_batches_and_chunks_change_nothing(make_model, text, monkeypatch):
    model = make_model("local")
    whole = story_losses(model, text)
    monkeypatch.setattr(unembedding, "CHUNK", 3)
    monkeypatch.setattr(unembedding, "BLOCK", 50)
    chopped = story_losses(model, text, batch_tokens=7)
    for stream, nats in whole.nats.items():
        np.testing.assert_allclose(chopped.nats[stream], nats, rtol=1e-12)


def test_a_plain_hooked_transformer_goes_through_with_bias_and_soft_cap(text):
    model = unlike_ours(n_layers=1, n_ctx=30, d_vocab=400, output_logits_soft_cap=2.0)
    model.unembed.b_U.data.normal_()
    nats, scored, _ = brute_force(text, 30, model)
    found = figures(model, text)
    assert found["loss"].value == pytest.approx(nats / scored, rel=1e-10)
    assert found["post_hoyer"].value is not None


def test_attention_only_models_have_no_mlp_figures(text):
    cfg = HookedTransformerConfig(
        n_layers=1,
        d_model=8,
        n_heads=2,
        d_head=4,
        n_ctx=30,
        d_vocab=400,
        attn_only=True,
        normalization_type=None,
        seed=0,
        device="cpu",
    )
    found = figures(HookedTransformer(cfg), text)
    assert found["perplexity"].value is not None
    assert found["z_hoyer"].value is not None
    assert found["post_hoyer"].reasons == {"no mlp.hook_post in the model": 1}
    assert found["l1_mlp"].value is None


def test_the_standard_error_is_clustered_over_stories(make_model, text):
    losses = story_losses(make_model(), text)
    mean = losses.nats["clean"].sum() / losses.tokens.sum()
    residuals = losses.nats["clean"] - mean * losses.tokens
    n = len(text)
    error = math.sqrt(n / (n - 1) * (residuals**2).sum()) / losses.tokens.sum()
    found = figures(make_model(), text)
    assert found["loss"].standard_error == pytest.approx(error, rel=1e-9)
    assert found["perplexity"].standard_error == pytest.approx(error * math.exp(mean), rel=1e-9)
    assert found["loss"].interval.low < mean < found["loss"].interval.high


def test_random_gates_are_seeded_and_leave_the_callers_generator_alone(make_model, text):
    model = make_model("local", gates="random")
    before = torch.get_rng_state()
    first = figures(model, text)["ablated_loss"].value
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert figures(model, text)["ablated_loss"].value == first
    assert figures(model, text, replace(CONFIG, seed=1))["ablated_loss"].value != first


def test_a_loss_that_is_not_finite_has_no_value_and_is_counted(make_model, text):
    model = make_model()
    model.pos_embed.W_pos.data[20] = math.nan
    found = figures(model, text)
    reached = int((text.scored(model.cfg.n_ctx) > 20).sum())
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert found[name].value is None
        assert found[name].interval is None
        assert found[name].reasons["loss not finite"] == reached > 0
        assert found[name].n_failed == reached


def test_token_losses_in_half_precision_are_summed_in_float32(make_model):
    model = make_model().to(torch.bfloat16, print_details=False)
    states = torch.randn(1, 3, 16, dtype=torch.bfloat16)
    assert token_losses(model, states, torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float32


def test_the_models_mode_is_given_back(make_model, text):
    model = make_model().train()
    evaluate(model, text, CONFIG)
    assert model.training


@pytest.mark.parametrize(
    "settings", [{"resamples": -1}, {"activation_stories": -1}, {"l0_threshold": 1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError):
        LanguageConfig(**settings)


def test_a_model_worse_than_a_guess_is_marked(make_model, text):
    model = make_model()
    config = LanguageConfig(resamples=0, activation_stories=0)
    model.W_E.data *= 0.01
    assert "health" not in evaluate(model, text, config).extra
    model.W_E.data *= 1000
    (told,) = evaluate(model, text, config).extra["health"]
    assert "worse than a uniform guess" in told
