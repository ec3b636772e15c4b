from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from evaluations.suite.sae import train as training
from evaluations.suite.sae.train import TRAINING, train
from sat_interp._util.errors import UserError

KINDS = ("standard", "gated", "jumprelu", "topk", "batchtopk")


def silent(hook, trainer):
    return 0.25


def run(model, corpus, targets, state, probe=silent):
    train(model, corpus, targets, state, {"model_name": "tiny"}, probe)


def of(directory):
    return load_file(directory / "sae_weights.safetensors")


def same(one, other):
    one, other = of(one), of(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_and_what_it_leaves_is_a_saelens_directory(make_model, corpus, tiny, tmp_path):
    model = make_model().to(torch.float32, print_details=False)
    config = dataclasses.replace(tiny, tokens=16_384, lr=1e-2, sparsity=0.01)
    run(model, corpus, {tmp_path / "a": config}, tmp_path / "state")
    told = json.loads((tmp_path / "a" / TRAINING).read_text())
    curve = told["curve"]["mse"]
    assert curve[-1] < 0.3 * curve[0]
    assert told["tokens"] == 16_384
    assert told["curve"]["ce_score"][-1] == [512, 0.25]
    assert not (tmp_path / "state").exists()
    sae = SAE.load_from_disk(tmp_path / "a")
    assert (sae.cfg.architecture(), sae.cfg.d_in, sae.cfg.d_sae) == ("standard", 16, 64)
    assert sae.cfg.metadata.hook_name == "blocks.0.hook_mlp_out"
    assert sae.cfg.metadata.model_name == "tiny"
    # the scale is folded in: it reads activations as the model has them
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.arange(20)[None])
        x = cache["blocks.0.hook_mlp_out"]
        assert (sae(x) - x).square().sum() / (x - x.mean((0, 1))).square().sum() < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_it_is_the_same_bit_for_bit(
    kind, make_model, corpus, tiny, tmp_path, monkeypatch
):
    model = make_model().to(torch.float32, print_details=False)
    sparsity = 4.0 if "topk" in kind else 0.1
    config = dataclasses.replace(tiny, architecture=kind, sparsity=sparsity)
    run(model, corpus, {tmp_path / "whole": config}, tmp_path / "none")

    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    steps = []

    def killed(hook, trainer):
        steps.append(trainer.n_training_steps)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return 0.25

    targets = {tmp_path / "cut": config}
    with pytest.raises(KeyboardInterrupt):
        run(model, corpus, targets, tmp_path / "state", killed)
    assert not (tmp_path / "cut").exists()
    assert any((tmp_path / "state").iterdir())
    resumed = []
    run(
        model,
        corpus,
        targets,
        tmp_path / "state",
        lambda hook, trainer: resumed.append(trainer.n_training_steps) or 0.25,
    )
    assert min(resumed) > 11  # it did not begin again
    assert same(tmp_path / "whole", tmp_path / "cut")
    told = [json.loads((tmp_path / name / TRAINING).read_text()) for name in ("whole", "cut")]
    for key in ("curve", "loss_fall", "dead_in_training", "scaling_factor"):
        assert told[0][key] == told[1][key]


def test_one_beside_others_is_the_one_alone(make_model, corpus, tiny, tmp_path):
    model = make_model("local").to(torch.float32, print_details=False)
    other = dataclasses.replace(tiny, sparsity=1.0)
    elsewhere = dataclasses.replace(tiny, hook="blocks.1.attn.hook_z", architecture="gated")
    run(model, corpus, {tmp_path / "alone": tiny}, tmp_path / "state")
    three = {tmp_path / "b": other, tmp_path / "a": tiny, tmp_path / "c": elsewhere}
    run(model, corpus, three, tmp_path / "state")
    assert same(tmp_path / "alone", tmp_path / "a")
    assert not same(tmp_path / "a", tmp_path / "b")
    assert SAE.load_from_disk(tmp_path / "c").cfg.architecture() == "gated"


def test_float64_models_get_float64_autoencoders(make_model, corpus, tiny, tmp_path):
    run(make_model(), corpus, {tmp_path / "a": tiny}, tmp_path / "state")
    assert of(tmp_path / "a")["W_enc"].dtype == torch.float64


def test_what_cannot_be_trained_is_told_in_one_line(make_model, corpus, tiny, tmp_path):
    model, state = make_model().to(torch.float32, print_details=False), tmp_path / "state"

    def refused(match, **changes):
        with pytest.raises(UserError, match=match) as told:
            run(model, corpus, {tmp_path / "a": dataclasses.replace(tiny, **changes)}, state)
        assert "\n" not in str(told.value)

    refused("--tokens 100 is less than one buffer of 128", tokens=100)
    refused("hook point", hook="blocks.0.hook_nothing")
    refused("became NaN", lr=1e38)
    refused("more than the 64 features", architecture="topk", sparsity=65.0)
    both = {tmp_path / "a": tiny, tmp_path / "b": dataclasses.replace(tiny, tokens=2560)}
    with pytest.raises(ValueError, match="differ in tokens"):
        run(model, corpus, both, state)
