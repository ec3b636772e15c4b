"""Runs that begin from a pretrained model: its weights, its tokenizer, what contradicts it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.cli import main, parse
from sat_interp.data.stories import stories
from sat_interp.data.tokenizer import train_bpe
from sat_interp.training.config import TrainConfig
from sat_interp.training.initial import is_gate
from sat_interp.training.loss import LossWeights, training_loss
from sat_interp.training.train import train
from sat_interp.training.trainer import with_starts

Maker = Callable[..., TrainConfig]
FROZEN = {"init": "x", "freeze": "base", "variant": "local"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer whose BOS token is not its end-of-text token."""
    from itertools import islice

    directory = tmp_path_factory.mktemp("llama") / "llama"
    tokenizer = train_bpe(islice(stories("train"), 60), 290)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def gated(text_files: dict[str, str], tmp_path: Path, llama: Path) -> Maker:
    """A short run with local gates from the tiny Llama, with some settings changed."""

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "init": str(llama),
            "variant": "local",
            "k": 4,
            "data": text_files["train"],
            "validation": text_files["validation"],
            "out": str(tmp_path / "run"),
            "steps": 8,
            "warmup_steps": 0,
            "batch_size": 2,
            "n_ctx": 24,
            "validate_every": 4,
            "checkpoint_every": 3,
            "log_every": 2,
            "device": "cpu",
            **changes,
        }
        return TrainConfig.from_preset(**settings)

    return make


def _weights(model: torch.nn.Module, gates: bool) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if is_gate(name) is gates
    }


def test_a_run_from_a_llama_is_trained_recorded_and_exported(gated, llama, tmp_path):
    result = train(gated(learning_rate=1e-2, gate_learning_rate=2e-2, steps=16))
    before, after = result.summary["initial"], result.summary["final"]
    assert before["step"] == 0
    assert after["clean_loss"] < before["clean_loss"]
    assert after["ablated_loss"] < before["ablated_loss"]
    assert result.summary["config"]["init"] == str(llama)
    assert result.summary["config"]["n_layers"] == 2
    assert result.summary["inputs"]["initial model"]

    model = SelfAblatingTransformer.from_pretrained(tmp_path / "run" / "model")
    assert model.has_own_bos
    assert model.tokenizer.bos_token == "<s>"
    assert model.card["init"] == "llama"
    model.to_hf(tmp_path / "hf")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(back).__name__ == "LlamaForCausalLM"
    tokens = torch.randint(290, (2, 20))
    assert torch.allclose(back(tokens).logits, model(tokens), atol=1e-5)


def test_a_run_that_is_interrupted_goes_on_bit_for_bit(gated, monkeypatch):
    whole = train(gated(out=str(Path(gated().out).parent / "whole"), hold_weight=0.5))
    from sat_interp.training.trainer import Trainer

    advance = Trainer.advance

    def stop(self: Trainer) -> None:
        if self.step == 5:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Trainer, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        train(gated(hold_weight=0.5))
    monkeypatch.setattr(Trainer, "advance", advance)
    resumed = train(gated(hold_weight=0.5, resume=True, gradient_checkpointing=True))
    mine, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert resumed.summary["initial"] == whole.summary["initial"]


@pytest.mark.parametrize("variant", ["local", "global"])
def test_a_frozen_base_stays_as_it_was_and_its_gates_learn(gated, variant):
    frozen = {"init": "demo:baseline", "freeze": "base", "variant": variant}
    result = train(gated(**frozen, learning_rate=1e-2))
    original = _weights(SelfAblatingTransformer.from_pretrained("demo:baseline"), gates=False)
    trained = _weights(result.model, gates=False)
    assert all(torch.equal(trained[name], original[name]) for name in original)
    before, after = result.summary["initial"], result.summary["final"]
    assert after["clean_loss"] == before["clean_loss"]
    assert after["ablated_loss"] < before["ablated_loss"]
    # the best model is the one of the best ablated stream, not the first of equal clean ones
    assert result.summary["best"]["ablated_loss"] <= after["ablated_loss"]


@pytest.mark.parametrize("variant", ["local", "global"])
def test_the_gradient_of_frozen_gates_is_that_of_the_whole(llama, variant):
    from sat_interp import SelfAblationConfig

    torch.manual_seed(0)
    model = SelfAblatingTransformer.from_hf(llama, SelfAblationConfig(variant, 4, 4))
    windows = torch.randint(290, (2, 17))
    gradients, values = [], []
    for is_frozen in (False, True):
        model.zero_grad()
        for name, parameter in model.named_parameters():
            if not is_gate(name):
                parameter.requires_grad_(not is_frozen)
        losses = training_loss(model, windows, LossWeights())
        losses.total.backward()
        values.append(losses.total.item())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if is_gate(n)})
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


def test_the_divergence_is_what_torch_says(llama):
    torch.manual_seed(0)
    original = SelfAblatingTransformer.from_hf(llama)
    model = SelfAblatingTransformer.from_hf(llama)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    windows = torch.randint(290, (2, 17))
    held = training_loss(model, windows, LossWeights(held=2.0), original=original)
    held.total.backward()
    ours = {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }

    model.zero_grad()
    inputs = windows[:, :-1]
    theirs = original(inputs).log_softmax(-1).detach()
    divergence = torch.nn.functional.kl_div(
        model(inputs).log_softmax(-1), theirs, reduction="none", log_target=True
    )
    divergence = divergence.sum(-1).mean()
    plain = training_loss(model, windows, LossWeights())
    (plain.total + 2.0 * divergence).backward()
    assert held.held.item() == pytest.approx(divergence.item(), rel=1e-4)
    assert held.held > 0.01
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(ours[name], parameter.grad, atol=1e-5), name


def test_a_heavy_weight_holds_the_clean_stream_to_the_original(gated, tmp_path):
    moved = {}
    for weight in (0.0, 50.0):
        held = {"learning_rate": 1e-2, "hold_weight": weight}
        result = train(gated(out=str(tmp_path / str(weight)), **held))
        lines = (tmp_path / str(weight) / "log.jsonl").read_text().splitlines()
        moved[weight] = abs(
            result.summary["final"]["clean_loss"] - result.summary["initial"]["clean_loss"]
        )
        assert any("held" in json.loads(line) for line in lines) is bool(weight)
    assert moved[50.0] < moved[0.0] / 2


def test_gates_have_a_learning_rate_of_their_own(gated, llama):
    result = train(gated(learning_rate=1e-9, gate_learning_rate=1e-2, steps=3))
    original = _weights(SelfAblatingTransformer.from_hf(llama), gates=False)
    trained = _weights(result.model, gates=False)
    assert max((trained[n] - original[n]).abs().max() for n in original) < 1e-6
    assert any(
        one.abs().max() > 5e-3 for n, one in _weights(result.model, True).items() if "b_" in n
    )


def test_stories_follow_the_bos_token_in_every_window():
    windows = torch.tensor([[5, 0, 6, 7, 0], [1, 2, 3, 4, 5]])
    assert with_starts(windows, 0, 9).tolist() == [[5, 0, 9, 6, 7], [1, 2, 3, 4, 5]]


def test_from_a_built_in_model_and_from_a_run(tmp_path, text_files):
    settings: dict[str, Any] = {
        "data": text_files["train"],
        "validation": text_files["validation"],
        "steps": 1,
        "warmup_steps": 0,
        "n_ctx": 16,
        "batch_size": 1,
        "device": "cpu",
        "variant": "global",
        "k": 4,
    }
    first = train(
        TrainConfig.from_preset(init="demo:baseline", out=str(tmp_path / "a"), **settings)
    )
    baseline = SelfAblatingTransformer.from_pretrained("demo:baseline")
    assert first.summary["parameters"] > sum(
        one.numel() for one in baseline.parameters() if one.requires_grad
    )
    again = train(
        TrainConfig.from_preset(init=str(tmp_path / "a"), out=str(tmp_path / "b"), **settings)
    )
    step_0 = again.summary["initial"]["clean_loss"]
    assert step_0 == pytest.approx(first.summary["final"]["clean_loss"], abs=1e-5)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 3}, "n_layers 3 contradicts init .*, which has 2"),
        ({"d_model": 64}, "d_model 64 contradicts"),
        ({"d_vocab": 7}, "d_vocab 7 contradicts"),
        ({"n_ctx": 33}, "n_ctx 33 contradicts init .*, whose context is 32"),
        ({"embedding_range": 0.3}, "embedding_range 0.3 contradicts"),
        ({"tokenizer": "bpe:300"}, "tokenizer 'bpe:300' contradicts"),
        ({"tokenizer": "gpt2"}, "the tokenizer has 50,257 tokens and .* an embedding of"),
        ({"k": 17}, "k_attention is 17"),
        ({"init": "nowhere/at/all"}, "there is no model directory"),
    ],
)
def test_what_contradicts_the_model_is_refused_before_anything_is_made(gated, changes, message):
    config = gated(**changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "base"}, "need a pretrained model"),
        ({"hold_weight": 1.0}, "need a pretrained model"),
        ({"init": "x", "freeze": "base"}, "there are none to train"),
        ({"init": "x", "freeze": "base", "variant": "local", "gates": "frozen"}, "none to train"),
        (
            {"init": "x", "freeze": "base", "variant": "local", "hold_weight": 1.0},
            "leave hold_weight",
        ),
        (
            {"init": "x", "freeze": "base", "variant": "local", "ablated_weight": 0.0},
            "raise ablated",
        ),
        ({"init": "x", "gate_learning_rate": 1e-3}, "needs gates that are trained"),
        ({"init": " "}, "init is empty"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TrainConfig.from_preset(**changes)


def test_a_changed_model_is_not_continued_from(gated, llama, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    train(gated(init=str(copy), steps=3))
    weights = SelfAblatingTransformer.from_hf(copy)
    with torch.no_grad():
        weights.ln_final.w += 1
    shutil.rmtree(copy)
    weights.to_hf(copy)
    with pytest.raises(UserError, match="initial model changed"):
        train(gated(init=str(copy), steps=3, resume=True))


def test_the_command_line(llama, tmp_path, capsys):
    """One line and exit code 2; the default of a preset is not a setting that contradicts."""
    settings = parse(["--init", str(llama), "--out", "x"])
    assert settings["preset"] == "fine-tune"
    assert settings["n_layers"] is settings["tokenizer"] is None
    assert parse(["--out", "x"])["n_layers"] == 4
    out = str(tmp_path / "out")
    assert main(["--init", str(llama), "--n-layers", "4", "--out", out]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "--n-layers 4 contradicts init" in error


def test_settings_of_earlier_runs_keep_their_identity(tiny):
    config = tiny()
    assert not {"init", "freeze", "hold_weight", "gate_learning_rate"} & set(config.to_dict())
    changed = dataclasses.replace(config, gradient_checkpointing=True)
    assert changed.hash() == config.hash()
