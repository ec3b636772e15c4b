"""sat-eval neurons from end to end."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations import tables
from evaluations.cli import main
from evaluations.core.models import prepared
from evaluations.core.options import make_request
from evaluations.core.record import read_records
from evaluations.suite.neurons import SPEC, evaluation
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.toy import run_on


@pytest.fixture
def evaluate(make_model, stories_file, tmp_path, monkeypatch, capsys):
    """Run ``sat-eval neurons``; returns exit code, stdout, stderr, records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    save_pretrained(make_model(), tmp_path / "base")
    save_pretrained(make_model("local"), tmp_path / "gated")

    def run(*arguments: str):
        code = main(
            [
                "neurons",
                "--out",
                "res",
                "--data",
                str(stories_file),
                "--resamples",
                "50",
                *arguments,
            ]
        )
        told = capsys.readouterr()
        return code, told.out, told.err, read_records("res")[0]

    return run


def test_two_models_get_tables_a_figure_and_a_page(evaluate, tmp_path):
    code, out, err, records = evaluate("gated", "base", "--sample", "9", "--html")
    assert (code, err) == (0, "")
    assert {record.model["name"] for record in records} == {"base", "gated"}
    for record in records:
        assert f"{record.metric('simulation').value:.3f}" in out
        assert len(record.extra["units"]["index"]) == 18
    stem = tables.stem("neurons", records)
    files = [f"{stem}{ending}" for ending in (".md", ".csv", ".png", ".svg", "-differences.csv")]
    for name in ("neurons.html", *files):
        assert (tmp_path / "res" / name).stat().st_size > 100, name
    assert f"{stem}.md, neurons.html, and " in out
    assert "gated minus base" in (tmp_path / "res" / f"{stem}.md").read_text()
    page = (tmp_path / "res" / "neurons.html").read_text()
    assert "gated minus base" in page
    assert "fires " in page
    for path in tmp_path.glob("res/*/neurons/*.gz"):
        path.unlink()
    options = {"out": str(tmp_path / "res"), "html": True}
    asked = make_request([], SPEC.options, SPEC.shared, options)
    with pytest.raises(UserError, match="--force"):
        SPEC.report.pages(records, asked)


def test_one_examiner_serves_all_models(evaluate, monkeypatch):
    made = []
    monkeypatch.setattr(evaluation, "LookupExaminer", lambda: made.append(1) or LookupExaminer())
    code, _, err, records = evaluate("gated", "base", "--sample", "2")
    assert (code, err, len(records), len(made)) == (0, "", 2, 1)
    assert records[0].config["examiner"] == LookupExaminer().describe()


def test_controls_are_rows_of_their_own(evaluate):
    code, out, err, records = evaluate(
        "gated", "--sample", "5", "--scores", "simulation", "--control", "untrained,shuffled:1"
    )
    assert (code, err) == (0, "")
    assert len({record.model["weights_hash"] for record in records}) == 3
    controls = {record.model["name"]: record.model.get("control") for record in records}
    own = next(one.model["weights_hash"] for one in records if one.model["name"] == "gated")
    assert controls == {
        "gated": None,
        "gated [untrained]": {"kind": "untrained", "seed": 0, "of": own},
        "gated [shuffled:1]": {"kind": "shuffled", "seed": 1, "of": own},
    }
    assert len({record.data["content"] for record in records}) == 1
    for name in controls:
        assert name in out
    again = evaluate(
        "gated", "--sample", "5", "--scores", "simulation", "--control", "untrained,shuffled:1"
    )
    assert again[:1] == (0,)
    assert "3 were there already" in again[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["base", "--examiner", "lokup"], "unknown examiner 'lokup': did you mean 'lookup'?"),
        (["base", "--examiner", "openai"], "OPENAI_API_KEY"),
        (["base", "--max-spend", "2"], "apply to the examiner openai"),
        (["base", "--model", "gpt-4o-mini"], "choose another --examiner"),
        (["base", "--examiner", "local", "--model", "./nothing.gguf"], "nothing.gguf"),
        (["base", "--scores", "simulation,fuzing"], "did you mean 'fuzzing'"),
        (["base", "--hook", "blocks.*.hook_nothing"], "hook_nothing"),
        (["base", "--stream", "ablated"], "no ablated stream"),
        (["base", "--sae", "nowhere"], "nowhere"),
        (["base", "--sample", "0"], "sample"),
        (["base", "--control", "untraned"], "did you mean 'untrained'"),
        (["base", "--control", "shuffled:one"], "whole number"),
    ],
)
def test_bad_input_is_one_line(evaluate, arguments, told):
    code, _, err, _ = evaluate(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def _all_nan(model):
    for parameter in model.parameters():
        parameter.fill_(float("nan"))


def _one_nan(model):
    model.blocks[1].mlp.b_in[3] = float("nan")


def _infinite(model):
    model.blocks[0].mlp.W_in.fill_(float("inf"))


def _dead(model):
    for block in model.blocks:
        block.mlp.W_in.zero_()
        block.mlp.b_in.fill_(-100.0)


def _constant(model):
    for block in model.blocks:
        block.mlp.W_in.zero_()
        block.mlp.b_in.fill_(1.0)


@pytest.mark.parametrize("order", [("base", "odd"), ("odd", "base")])
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_all_nan, "not finite (NaN)"),
        (_one_nan, "layer 1 are not finite"),
        (_infinite, "not finite"),
        (_dead, "n/a: dead"),
        (_constant, "n/a: constant"),
    ],
)
def test_an_odd_model_costs_no_other_its_table(
    edit, told, order, evaluate, make_model, stories_file, tmp_path
):
    model = make_model()
    with torch.no_grad():
        edit(model)
    save_pretrained(model, tmp_path / "odd")
    code, out, err, records = evaluate(*order, "--sample", "9", "--html")
    found = {record.model["name"]: record for record in records}
    assert f"{found['base'].metric('simulation').value:.3f}" in out
    assert (tmp_path / "res" / "neurons.html").exists()
    if "n/a" in told:
        assert code == 0
        assert told.split(":")[0] in out
        odd = found["odd"]
        assert odd.metric("simulation").value is None
        assert (odd.metric("simulation").n_failed, odd.metric("simulation").n) == (18, 0)
        assert odd.metric("simulation_scored").value == 0
    else:
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: 1 of 2 models failed: odd: ")
        assert told in err


def test_a_model_of_one_neuron_and_one_without_any(tokenizer, text, tmp_path):
    outcome = run_on(
        SPEC,
        [_tiny(tokenizer, "one", d_mlp=1), _tiny(tokenizer, "none", attn_only=True, d_mlp=None)],
        lambda loaded: NeuronsData(
            text, loaded.weights_hash, loaded.name, tmp_path, cache=tmp_path
        ),
        NeuronsConfig(LookupExaminer(), resamples=20),
        tmp_path / "res",
    )
    (record,) = outcome.records
    assert record.metric("simulation_scored").n == 2
    assert record.metric("control").reasons == {"no other neuron": 2}
    assert set(outcome.failures) == {"none"}
    assert "MLP" in outcome.failures["none"]


def _tiny(tokenizer, name, **settings):
    torch.manual_seed(0)
    shape = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_heads=4,
        d_head=4,
        d_vocab=len(tokenizer),
        n_ctx=24,
        act_fn="gelu",
        initializer_range=0.3,
        device="cpu",
        **settings,
    )
    return prepared(HookedTransformer(shape), name, tokenizer, "cpu")
