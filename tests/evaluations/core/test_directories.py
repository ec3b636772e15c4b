"""Hugging Face directories that are not whole, or not to be trusted: one line each."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evaluations.core.model_source import ModelSource, load_model
from sat_interp._util.errors import UserError


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


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_noted(saved, tokenizer):
    directory = saved()
    content = json.loads((directory / "tokenizer.json").read_text())
    more = {"id": len(tokenizer), "content": "<more>", "special": False}
    more |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append(more)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    note = ModelSource.of(str(directory)).outline.tokenizer_note
    assert f"{len(tokenizer) + 1:,} tokens and the model {len(tokenizer):,} rows" in note
