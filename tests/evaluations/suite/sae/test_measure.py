from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler

from evaluations.core import statistics
from evaluations.suite.sae import measure as measuring
from evaluations.suite.sae.measure import ce_loss_score, measure
from evaluations.suite.sae.metrics import (
    AutoencoderSums,
    autoencoder_metrics,
    density_histogram,
    replicates,
)
from sat_interp._util.errors import UserError
from sat_interp.data.batches import story_batches
from tests.unlike_ours import unlike_ours

HOOK = "blocks.0.hook_mlp_out"


def autoencoder(d_in=16, d_sae=64, hook=HOOK, seed=0, bias=0.0):
    """Random, and sparse where ``bias`` is far below zero."""
    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name=hook)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float64", metadata=metadata))
    sae.b_enc.data += bias
    sae.b_dec.data += 0.1 * torch.randn(d_in)
    return sae


def identity(d_in=16, hook=HOOK):
    """relu(x) - relu(-x) = x."""
    sae = autoencoder(d_in, 2 * d_in, hook)
    eye = torch.eye(d_in, dtype=torch.float64)
    sae.W_enc.data, sae.W_dec.data = torch.cat([eye, -eye], 1), torch.cat([eye, -eye])
    sae.b_dec.data.zero_()
    return sae


def zero(d_in=16, hook=HOOK):
    sae = autoencoder(d_in, 8, hook, bias=-1e9)
    sae.b_dec.data.zero_()
    return sae


def figures(found, seed=0, resamples=50):
    return {metric.name: metric for metric in autoencoder_metrics(found, seed, resamples)}


@pytest.mark.parametrize("hook", [HOOK, "blocks.1.attn.hook_z", "blocks.0.hook_resid_mid"])
def test_the_identity_loses_nothing_and_zero_is_the_zeroed_model(hook, make_model, text):
    model = make_model("local")
    whole = figures(measure(model, identity(hook=hook), hook, text))
    assert whole["ce_score"].value == pytest.approx(1, abs=1e-9)
    assert whole["explained_variance"].value == pytest.approx(1, abs=1e-12)
    assert whole["mse"].value == pytest.approx(0, abs=1e-20)
    assert whole["loss_sae"].value == pytest.approx(whole["loss_clean"].value, abs=1e-12)
    assert whole["l0"].value == pytest.approx(16)  # of x and -x one is active
    assert whole["dead_features"].value < 0.2
    nothing = figures(measure(model, zero(hook=hook), hook, text))
    assert nothing["ce_score"].value == pytest.approx(0, abs=1e-9)
    assert nothing["loss_sae"].value == pytest.approx(nothing["loss_zero"].value, abs=1e-12)
    assert nothing["l0"].value == 0
    assert nothing["dead_features"].value == 1
    assert nothing["median_density"].value is None
    assert nothing["median_density"].reasons == {"dead feature": 8}
    assert nothing["loss_clean"].value == pytest.approx(whole["loss_clean"].value)
    # explained variance of zero: 1 - E|x|^2 / var, below zero where the mean is not
    assert nothing["explained_variance"].value <= 0


@torch.no_grad()
def brute_force(model, sae, hook, text):
    """One story and one token at a time, through TransformerLens' hooks."""
    end, context = text.corpus.end_of_text, model.cfg.n_ctx
    nats, xs, outs, active = {"clean": 0.0, "sae": 0.0, "zero": 0.0}, [], [], 0
    for story in range(len(text)):
        targets = [*text.corpus.story(story).tolist(), end][:context]
        inputs = torch.tensor([[end, *targets[:-1]]])
        puts = {
            "clean": lambda value, hook: value,
            "sae": lambda value, hook: sae(value.flatten(2)).view(value.shape),
            "zero": lambda value, hook: 0 * value,
        }
        for name, put in puts.items():
            logits = model.run_with_hooks(inputs, fwd_hooks=[(hook, put)])[0]
            for place, target in enumerate(targets):
                nats[name] += float(logits[place].logsumexp(-1) - logits[place, target])
        x = model.run_with_cache(inputs)[1][hook].flatten(2)[0]
        active += int((sae.encode(x) != 0).sum())
        xs.append(x)
        outs.append(sae(x))
    x, out = torch.cat(xs), torch.cat(outs)
    error, spread = ((x - out) ** 2).sum(), ((x - x.mean(0)) ** 2).sum()
    return {
        "l0": active / len(x),
        "mse": float(error) / len(x),
        "explained_variance": 1 - float(error / spread),
        "ce_score": (nats["zero"] - nats["sae"]) / (nats["zero"] - nats["clean"]),
        **{f"loss_{name}": value / len(x) for name, value in nats.items()},
    }


@pytest.mark.parametrize("piece", [40, 1 << 22])
def test_figures_are_those_of_one_token_at_a_time(make_model, text, piece, monkeypatch):
    monkeypatch.setattr(measuring, "PIECE", piece)
    model, hook = make_model(n_ctx=20), "blocks.1.attn.hook_z"
    sae = autoencoder(hook=hook, bias=-0.05)
    found = figures(measure(model, sae, hook, text))
    for name, value in brute_force(model, sae, hook, text).items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
    assert found["l0"].n == int(text.scored(20).sum())


def test_any_other_hooked_transformer_goes_through(text):
    model = unlike_ours(n_layers=2, n_ctx=30, d_vocab=400, output_logits_soft_cap=2.0)
    hook = "blocks.0.mlp.hook_post"
    sae = autoencoder(12, 20, hook)
    found = figures(measure(model, sae, hook, text))
    for name, value in brute_force(model, sae, hook, text).items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name


class Store:
    """As much of an ActivationsStore as ``run_evals`` asks for: one batch of tokens."""

    store_batch_size_prompts = 1

    def __init__(self, tokens):
        self.tokens, self.context_size = tokens, tokens.shape[1]

    def get_batch_tokens(self, batch_size):
        return self.tokens

    def reset_input_dataset(self):
        pass


@pytest.mark.parametrize("hook", [HOOK, "blocks.1.attn.hook_z"])
def test_figures_are_those_of_saelens_run_evals_on_the_same_text(make_model, text, hook):
    model, sae = make_model("global", n_ctx=60), autoencoder(hook=hook, bias=-0.05)
    one = text.sample(1, seed=0)  # one story: run_evals wants tokens of one length
    found = figures(measure(model, sae, hook, one))
    tokens = next(story_batches(one.corpus, model.cfg.n_ctx)).tokens
    config = EvalConfig(
        n_eval_reconstruction_batches=1,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )

    def theirs(read):
        # the special tokens are scored here as any other
        found, _ = run_evals(
            sae, Store(read), model, ActivationScaler(), config, exclude_special_tokens=False
        )
        return found

    ce = theirs(tokens)["model_performance_preservation"]
    rest = theirs(tokens[:, :-1])  # the last token is a target, and no input
    assert found["ce_score"].value == pytest.approx(ce["ce_loss_score"], rel=1e-5)
    assert found["loss_sae"].value == pytest.approx(ce["ce_loss_with_sae"], rel=1e-6)
    assert found["loss_clean"].value == pytest.approx(ce["ce_loss_without_sae"], rel=1e-6)
    assert found["loss_zero"].value == pytest.approx(ce["ce_loss_with_ablation"], rel=1e-6)
    assert found["l0"].value == pytest.approx(rest["sparsity"]["l0"], rel=1e-6)
    quality = rest["reconstruction_quality"]
    assert found["mse"].value == pytest.approx(quality["mse"], rel=1e-6)
    assert found["explained_variance"].value == pytest.approx(
        quality["explained_variance"], rel=1e-6
    )


def by_hand():
    """Two stories of 2 and 4 tokens."""
    return AutoencoderSums(
        tokens=np.array([2, 4]),
        nats={
            "clean": np.array([2.0, 4.0]),
            "sae": np.array([3.0, 6.0]),
            "zero": np.array([8.0, 10.0]),
        },
        active=np.array([10.0, 8.0]),
        squares=np.array([1.0, 5.0]),
        variance=np.array([4.0, 8.0]),
        fired=np.array([0, 6, 3, 0]),
    )


def test_figures_by_hand(monkeypatch):
    monkeypatch.setattr(statistics, "ENOUGH", 2)
    found = figures(by_hand())
    assert found["l0"].value == 3
    # residuals 10 - 3 * 2 = 4 and 8 - 3 * 4 = -4: sqrt(2 / 1 * 32) / 6
    assert found["l0"].standard_error == pytest.approx(math.sqrt(64) / 6)
    assert found["ce_score"].value == pytest.approx((18 - 9) / (18 - 6))
    assert found["explained_variance"].value == pytest.approx(0.5)
    assert found["mse"].value == 1
    assert found["dead_features"].value == 0.5
    assert found["median_density"].value == pytest.approx(0.75)
    assert found["l0"].interval.low <= 3 <= found["l0"].interval.high
    low, high = found["explained_variance"].interval.low, found["explained_variance"].interval.high
    assert low == pytest.approx(1 - 5 / 8)
    assert high == pytest.approx(1 - 1 / 4)


def test_under_half_of_the_variance_the_cells_are_marked():
    worse = dataclasses.replace(by_hand(), squares=np.array([2.0, 5.0]))
    for name in ("l0", "ce_score"):
        assert figures(by_hand())[name].reasons == {}
        assert figures(worse)[name].reasons == {"not converged": 1}
        assert figures(worse)[name].value is not None


def test_the_density_histogram_counts_each_living_feature_once():
    told = density_histogram(np.array([0, 1, 10, 1000, 0]), 1000, bins=3)
    assert told["log10_edges"].tolist() == [-3, -2, -1, 0]
    assert told["features"].tolist() == [1, 1, 1]
    assert told["dead"] == 2


def test_replicates_are_paired_and_seeded():
    told = replicates(by_hand(), 0, 40)
    assert told == replicates(by_hand(), 0, 40)
    assert told != replicates(by_hand(), 1, 40)
    assert set(zip(told["l0"], told["ce_score"], strict=True)) <= {
        (5.0, 5 / 6),
        (2.0, 4 / 6),
        (3.0, 9 / 12),
    }


def test_the_score_of_the_progress_bar(make_model):
    model, tokens = make_model(), torch.arange(24).view(2, 12)
    assert ce_loss_score(model, HOOK, tokens, lambda x: x) == pytest.approx(1)
    assert ce_loss_score(model, HOOK, tokens, torch.zeros_like) == pytest.approx(0)
    model.blocks[0].mlp.W_out.data.zero_()
    model.blocks[0].mlp.b_out.data.zero_()
    assert ce_loss_score(model, HOOK, tokens, lambda x: x) is None


def test_a_site_that_does_nothing_has_no_score(make_model, text):
    model = make_model()
    model.blocks[0].mlp.W_out.data.zero_()
    model.blocks[0].mlp.b_out.data.zero_()
    found = figures(measure(model, autoencoder(), HOOK, text))
    assert found["ce_score"].value is None
    assert found["explained_variance"].value is None


def test_what_cannot_be_measured_is_told_in_one_line(make_model, text):
    model = make_model()
    with pytest.raises(UserError, match="reads 12 dimensions, but blocks.0.hook_mlp_out .* has 16"):
        measure(model, autoencoder(12), HOOK, text)
    with pytest.raises(UserError, match="hook point"):
        measure(model, autoencoder(), "blocks.0.hook_mlp", text)
    model.W_E.data[:] = math.nan
    with pytest.raises(UserError, match="not finite"):
        measure(model, autoencoder(), HOOK, text)


def test_topk_counts_its_k(make_model, text):
    sae: SAE = TopKSAE(TopKSAEConfig(d_in=16, d_sae=40, k=7, dtype="float64"))
    assert figures(measure(make_model(), sae, HOOK, text))["l0"].value <= 7
