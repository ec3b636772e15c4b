"""Hugging Face directories that are not whole, or not to be trusted: one line each."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evaluations.core.model_source import ModelSource, load_model
from sat_interp._util.errors import UserError
from sat_interp.io.initial import InitialModel


@pytest.fixture
def saved(tokenizer, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=20, max_position_embeddings=24, **shape
    )
    model, directory = LlamaForCausalLM(config), tmp_path / "model"

    def save(**settings):
        model.save_pretrained(directory, **settings)
        tokenizer.save_pretrained(directory)
        return directory

    return save


def pickled(directory):
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def without_weights(directory):
    (directory / "model.safetensors").unlink()


def cut_off(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def one_missing(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def changed(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def own_code(directory):
    changed(directory, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (directory / "mine.py").write_text("raise SystemExit('this code was run')\n")


def cut_configuration(directory):
    path = directory / "config.json"
    path.write_text(path.read_text()[:40])


def without_kind(directory):
    config = json.loads((directory / "config.json").read_text())
    del config["model_type"]
    (directory / "config.json").write_text(json.dumps(config))


def quantised(directory):
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.qweight"] = torch.zeros(3, dtype=torch.int32)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def code_of_the_tokenizer(directory):
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    path.write_text(json.dumps(settings))
    (directory / "mine.py").write_text("raise SystemExit('this code was run')\n")


def without_configuration(directory):
    (directory / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, r"a pickle \(pytorch_model\.bin\), and only safetensors are read"),
        (without_weights, r"no weights \(\*\.safetensors\): download it again"),
        (cut_off, "model.safetensors is damaged"),
        (one_missing, r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight: download"),
        (lambda directory: changed(directory, vocab_size=7), "config.json asks for"),
        (own_code, r"code of its own \(auto_map\), which is never run"),
        (without_configuration, "weights and no config.json"),
        (cut_configuration, r"config\.json cannot be read as JSON"),
        (without_kind, r"config\.json has no model_type"),
        (quantised, r"up_proj\.qweight' has type I32, and quantised weights are not read"),
        (lambda directory: changed(directory, num_key_value_heads=0), "num_key_value_heads must"),
        (
            lambda directory: changed(directory, max_position_embeddings=-5),
            "embeddings must be a w",
        ),
        (lambda directory: changed(directory, hidden_act="mish"), "activation 'mish' is not cov"),
    ],
)
def test_a_directory_that_is_not_whole_is_one_line(damage, message, saved):
    directory = saved()
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(directory))
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_that_the_index_names_is_missing(saved):
    directory = saved(max_shard_size="8KB")
    parts = sorted(directory.glob("model-*.safetensors"))
    parts[1].unlink()
    with pytest.raises(UserError, match=f"1 of {len(parts)} files of weights are missing"):
        load_model(str(directory))


def test_code_beside_a_kind_that_is_known_is_not_run(saved):
    directory = saved()
    changed(directory, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.M"})
    (directory / "mine.py").write_text("raise SystemExit('this code was run')\n")
    assert load_model(str(directory)).model.cfg.n_layers == 2


def test_code_of_a_tokenizer_is_not_run(saved, monkeypatch):
    directory = saved()
    code_of_the_tokenizer(directory)
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked {asked}"))
    with pytest.raises(UserError, match=r"tokenizer") as caught:
        load_model(str(directory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [cut_configuration, without_kind])
def test_training_does_not_begin_from_a_damaged_configuration(damage, saved):
    directory = saved()
    damage(directory)
    with pytest.raises(UserError, match=r"config\.json (cannot be read|has no model_type)"):
        InitialModel.find(str(directory))


def test_a_user_who_does_not_exist_is_one_line():
    for find in (load_model, InitialModel.find):
        with pytest.raises(UserError, match="there is no user '~nosuchuser'"):
            find("~nosuchuser/model")


def test_a_repository_of_pickles_is_one_line(saved, monkeypatch):
    directory = saved()
    without_weights(directory)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: directory)
    for find in (load_model, InitialModel.find):
        with pytest.raises(UserError, match="'owner/name' on the Hugging Face hub holds no safet"):
            find("owner/name")


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_noted(saved, tokenizer):
    directory = saved()
    content = json.loads((directory / "tokenizer.json").read_text())
    more = {"id": len(tokenizer), "content": "<more>", "special": False}
    more |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append(more)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    note = ModelSource.of(str(directory)).outline.tokenizer_note
    assert f"{len(tokenizer) + 1:,} tokens and the model {len(tokenizer):,} rows" in note
