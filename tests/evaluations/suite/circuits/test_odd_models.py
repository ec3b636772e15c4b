"""``sat-eval acdc`` on broken and unusual models, each beside a healthy one; odd names."""

from __future__ import annotations

import math
import re

import pytest
import torch

from evaluations.cli import main
from evaluations.core.record import read_records
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.io.pretrained import save_pretrained
from sat_interp.model.shape import gpt_neo_config
from tests.evaluations.suite.circuits.cases import write_prompts

QUICK = ["--random-circuits", "2", "--bootstrap", "0", "--prompts", "3", "--null-draws", "1"]


@pytest.fixture
def make(tokenizer):
    def made(seed=0, **changes):
        torch.manual_seed(seed)
        settings = {
            "n_layers": 2,
            "d_model": 16,
            "n_heads": 2,
            "d_vocab": len(tokenizer),
            "n_ctx": 24,
            "initializer_range": 0.3,
            "dtype": torch.float64,
            **changes,
        }
        config = SelfAblationConfig(variant="none")
        model = SelfAblatingTransformer(gpt_neo_config(**settings), config, tokenizer=tokenizer)
        return model.eval().requires_grad_(False)

    return made


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Run ``sat-eval acdc`` on saved models; return exit code, stdout, stderr, records."""
    monkeypatch.chdir(tmp_path)

    def run(models, task="pairs", save=save_pretrained):
        write_prompts(tmp_path / f"{task}.json", ("Tom", "Anna", "cat"))
        for name, model in models.items():
            (save if name == "odd" else save_pretrained)(model, tmp_path / name)
        code = main(["acdc", *QUICK, "--out", "res", "--task", f"{task}.json", *models])
        told = capsys.readouterr()
        return code, told.out, told.err, read_records("res")[0]

    return run


def dead(model):
    for block in model.blocks:
        for name in ("W_in", "b_in", "W_out", "b_out"):
            getattr(block.mlp, name).zero_()
    return model


def zero(model):
    for parameter in model.parameters():
        parameter.zero_()
    return model


def filled(model, value):
    model.blocks[0].mlp.W_in[0, 0] = value
    return model


def check_healthy(out, records, tmp_path, name="healthy"):
    (record,) = [record for record in records if record.model["name"] == name]
    assert name in out
    assert f"{record.metric('edges').value:,.0f}" in out
    for pattern in (".md", ".svg", "-curves.png", "/healthy.circuit"):
        assert list((tmp_path / "res").glob(f"acdc-pairs-*{pattern}")), pattern


@pytest.mark.parametrize(
    "odd",
    [lambda make: dead(make()), lambda make: make(d_mlp=1), lambda make: zero(make())],
    ids=["dead MLPs", "one neuron", "all zero"],
)
def test_a_model_that_does_nothing_has_a_row_with_reasons(odd, make, evaluate, tmp_path, caplog):
    code, out, err, records = evaluate({"odd": odd(make), "healthy": make(seed=1)})
    assert (code, err) == (0, "")
    check_healthy(out, records, tmp_path)
    assert len(records) == 2
    (record,) = [record for record in records if record.model["name"] == "odd"]
    assert "odd †" in out
    assert "odd does not do the task" in caplog.text
    for metric in record.metrics:
        assert math.isfinite(metric.value) if metric.value is not None else metric.reasons


def attention_only(model, directory):
    """Save a model with the setting that leaves out its MLPs."""
    save_pretrained(model, directory)
    path = directory / "cfg.json"
    path.write_text(path.read_text().replace('"d_mlp"', '"attn_only": true, "d_mlp"'))


@pytest.mark.parametrize(
    ("odd", "save", "message"),
    [
        (lambda make: filled(make(), math.nan), save_pretrained, "logits are not finite"),
        (lambda make: filled(make(), math.inf), save_pretrained, "logits are not finite"),
        (lambda make: filled(make(), -math.inf), save_pretrained, "logits are not finite"),
        (lambda make: make(), attention_only, "does not support attn_only=True"),
    ],
    ids=["NaN", "infinite", "minus infinite", "attention only"],
)
def test_a_model_without_figures_is_one_line(odd, save, message, make, evaluate, tmp_path):
    code, out, err, records = evaluate({"odd": odd(make), "healthy": make(seed=1)}, save=save)
    assert code == 2
    check_healthy(out, records, tmp_path)
    assert len(records) == 1
    assert err.startswith("error: 1 of 2 models failed: odd: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_model_and_a_task_named_like_a_formula_are_drawn(make, evaluate, tmp_path):
    name = "cost$a{$b"
    code, out, err, _ = evaluate({name: make(seed=1)}, task=name)
    assert (code, err) == (0, "")
    assert name in out
    drawings = list((tmp_path / "res").glob("acdc-cost-*.svg"))
    assert len(drawings) == 2
    for path in drawings:
        assert name in re.sub(r"<!--|-->", "", path.read_text())
