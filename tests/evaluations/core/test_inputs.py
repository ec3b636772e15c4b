"""What needs a model's configuration only is checked before its weights are read."""

from __future__ import annotations

import json

import pytest
from transformers import Olmo2Config

import evaluations as ev
from evaluations.cli import main
from evaluations.core.model_source import ModelSource
from evaluations.core.record import read_records
from sat_interp._util.errors import UserError

WITH_TEXT = ("lm", "sae", "neurons", "n2g")


@pytest.fixture
def together(tokenizer, tmp_path):
    directory = tmp_path / "olmo-without-weights"
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=20,
        max_position_embeddings=32,
    )
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("command", WITH_TEXT)
def test_a_model_of_unknown_training_text_is_not_measured_on_the_toy_corpus(
    command, foreign, tmp_path
):
    with pytest.raises(UserError, match="name text to measure it on with --data"):
        getattr(ev, command)([str(foreign)], out=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("command", "settings", "reason"),
    [
        ("gates", {}, "has no gates"),
        ("acdc", {"edges": 10**6, "method": "eap"}, "not 1,000,000"),
        ("sae", {"tokens": 10}, "less than one buffer"),
        ("sae", {"hook": "blocks.9.hook_mlp_out"}, "unknown hook point"),
        ("neurons", {"hook": "blocks.*.hook_nothing"}, "unknown hook point"),
        ("n2g", {"stream": "ablated"}, "no ablated stream"),
    ],
)
def test_a_shape_that_cannot_be_measured_is_refused_before_weights_are_read(
    command, settings, reason, foreign, stories_file, tmp_path
):
    data = {} if command == "acdc" else {"data": str(stories_file)}
    with pytest.raises(UserError, match=reason):
        getattr(ev, command)([str(foreign)], out=str(tmp_path / "out"), **data, **settings)


def test_an_architecture_without_a_graph_is_named_before_weights_are_read(together, tmp_path):
    with pytest.raises(UserError, match="queries and keys of all heads are normalised together"):
        ev.acdc([str(together)], out=str(tmp_path / "out"))


def test_a_model_that_is_refused_costs_no_other_its_record(
    foreign, model_directory, stories_file, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["gates", str(foreign), str(model_directory), "--out", str(out)]
    assert main([*arguments, "--data", str(stories_file)]) == 2
    arguments = ["lm", str(foreign), str(model_directory), "--out", str(out)]
    assert main([*arguments, "--data", str(stories_file), "--activation-stories", "0"]) == 2
    assert "foreign" in capsys.readouterr().err
    assert [record.model["name"] for record in read_records(out)[0]] == ["tiny"]


def test_an_outline_has_the_shape_and_no_weights(foreign, model_directory):
    for directory in (foreign, model_directory):
        model = ModelSource.of(str(directory)).outline.model
        assert {value.device.type for value in model.parameters()} == {"meta"}
        assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_heads) == (2, 16, 4)
        assert "blocks.1.mlp.hook_post" in model.hook_dict


def test_an_outline_of_no_model_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}), encoding="utf-8")
    with pytest.raises(UserError, match="cannot load a model"):
        _ = ModelSource.of(str(tmp_path)).outline
