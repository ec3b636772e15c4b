"""Every architecture that gates cover: in, through our directory, and out again as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from sat_interp._util.errors import UserError
from sat_interp.io.initial import InitialModel
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.transformer import SelfAblatingTransformer

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": 61,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _rope(share: float = 1.0, **others: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    return {"rope_parameters": {**rope, **others}}


def _neo(**changes: Any) -> GPTNeoConfig:
    sizes = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    kept = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "initializer_range")}
    return GPTNeoConfig(
        **kept, **sizes, max_position_embeddings=32, bos_token_id=None, eos_token_id=None, **changes
    )


FAMILIES = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2, scaled by layer": GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True, n_inner=20),
    "gpt-neo with windows": _neo(window_size=4),
    "neox, parallel": GPTNeoXConfig(**SMALL, **_rope(0.5)),
    "neox, sequential and tied": GPTNeoXConfig(
        **SMALL, **_rope(), use_parallel_residual=False, tie_word_embeddings=True
    ),
    "llama, grouped": LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama 3, tied": LlamaConfig(
        **SMALL,
        num_key_value_heads=1,
        head_dim=6,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3,
    ),
    "llama, stretched": LlamaConfig(**SMALL, **_rope(rope_type="linear", factor=4.0)),
    "mistral with windows": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=5),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}


def make(config: Any) -> PreTrainedModel:
    """A model of random weights, none of them 0 or 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.3)
    return model


@pytest.fixture
def long_tokens() -> torch.Tensor:
    """More tokens than any window of the models here."""
    return torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_in_and_out_again(family, tmp_path, long_tokens):
    theirs = make(FAMILIES[family])
    theirs.save_pretrained(tmp_path / "theirs")
    expected = theirs(long_tokens).logits
    ablation = SelfAblationConfig("local", k_attention=3, k_neurons=4)

    model = SelfAblatingTransformer.from_hf(tmp_path / "theirs", ablation)
    assert torch.allclose(model(long_tokens), expected, atol=1e-5)
    dual = model.dual(long_tokens)
    assert torch.allclose(dual.clean_logits, expected, atol=1e-5)
    hooked = model.dual(long_tokens, path="hooked")
    assert torch.allclose(dual.ablated_logits, hooked.ablated_logits, atol=1e-4)

    model.save_pretrained(tmp_path / "ours")
    saved = SelfAblatingTransformer.from_pretrained(tmp_path / "ours")
    assert torch.equal(saved.dual(long_tokens).ablated_logits, dual.ablated_logits)
    plain = saved.to_hooked_transformer()
    assert torch.allclose(plain(long_tokens), expected, atol=1e-5)

    saved.to_hf(tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(back) is type(theirs)
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(back(long_tokens).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_the_class_has(family):
    theirs = make(FAMILIES[family])
    model = SelfAblatingTransformer.from_hf(theirs)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trained == sum(one.numel() for one in theirs.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlamaConfig(**SMALL, attention_bias=True), "biases of attention"),
        (LlamaConfig(**SMALL, mlp_bias=True), "biases of the MLP"),
        (LlamaConfig(**SMALL, hidden_act="tanh"), "activation 'tanh'"),
        (LlamaConfig(**SMALL, **_rope(rope_type="dynamic", factor=2.0)), "scaled by 'dynamic'"),
        (GPTNeoXConfig(**SMALL, **_rope(0.25)), "odd number of rotary dimensions"),
    ],
)
def test_features_that_gates_do_not_cover_are_named(config, message):
    with pytest.raises(UserError, match=message):
        SelfAblatingTransformer.from_hf(make(config))


# Directories that are not whole -----------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make(FAMILIES["llama, grouped"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _only_pickles(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _cut(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


def _shard_missing(directory: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _incomplete(directory: Path) -> None:
    (directory / "model.safetensors.incomplete").write_bytes(b"")


def _code(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (directory / "config.json").write_text(json.dumps(config))


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _weight_missing(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_only_pickles, r"are a pickle \(pytorch_model.bin\), and only safetensors are read"),
        (_no_weights, "has no weights"),
        (_cut, "is damaged"),
        (_shard_missing, r"files of weights are missing \(model-00002-of-00002.safe"),
        (_incomplete, "half downloaded"),
        (_code, "code of its own .*never run"),
        (_no_config, "neither cfg.json .sat_interp. nor config.json .transformers."),
        (_weight_missing, "lack model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_directory_that_is_not_whole_is_one_line(saved, spoil, message):
    spoil(saved)
    with pytest.raises(UserError, match=message) as raised:
        InitialModel.find(str(saved)).load(SelfAblatingTransformer, SelfAblationConfig(), None)
    assert "\n" not in str(raised.value)
