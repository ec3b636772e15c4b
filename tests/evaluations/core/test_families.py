"""Tiny random models of each family: same logits as Hugging Face's, within the declared context."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from benchmarks.families import LLAMA3, YARN
from evaluations.core import families
from evaluations.core.hugging_face import Decoder
from sat_interp._util.errors import UserError

VOCABULARY, POSITIONS = 50, 24
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": POSITIONS,
    "num_key_value_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
ALTERNATING = ["sliding_attention", "full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture(autouse=True)
def _no_progress_bars():
    transformers_logging.disable_progress_bar()


def save(kind: str, directory, settings) -> torch.nn.Module:
    """Save a random model of ``kind`` ('Llama', 'Gemma2', ...) whose norms and biases count."""
    torch.manual_seed(0)
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, name)(**settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.15)
    model.save_pretrained(directory)
    return model


CASES = {
    "llama": ("Llama", SHAPE),
    "llama-head-width": ("Llama", {**SHAPE, "head_dim": 8}),
    "llama-grouped": ("Llama", {**GROUPED, "head_dim": 6}),
    "llama-base": ("Llama", {**SHAPE, "rope_parameters": {**ROPE, "rope_theta": 300.0}}),
    "llama-linear": (
        "Llama",
        {**SHAPE, "rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": None}),
    "mistral-window": ("Mistral", {**GROUPED, "sliding_window": 5}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 3, "head_dim": 8}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 12}),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 5,
            "layer_types": ALTERNATING,
        },
    ),
    "gemma3-linear": (
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ALTERNATING,
            "rope_parameters": {
                "sliding_attention": ROPE,
                "full_attention": {**ROPE, "rope_type": "linear", "factor": 8.0},
            },
        },
    ),
    "phi": ("Phi", {**SHAPE, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {**SHAPE, "sliding_window": None}),
    "olmo": ("Olmo", {**SHAPE, "clip_qkv": 0.5}),
    "olmo2": ("Olmo2", SHAPE),
    "neox": (
        "GPTNeoX",
        {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
        | {"rope_parameters": {**ROPE, "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_context_are_the_models_own(name, tmp_path):
    original = save(CASES[name][0], tmp_path, CASES[name][1])
    model = Decoder.of(tmp_path).load()
    tokens = torch.randint(VOCABULARY, (3, POSITIONS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = original(tokens).logits
        torch.testing.assert_close(
            model(tokens).log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=1e-4
        )
    assert model.cfg.n_ctx == POSITIONS


def bloom(directory, **settings):
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4}
    return save("Bloom", directory, {**shape, **settings})


def test_a_model_without_positions_has_the_context_it_or_its_tokenizer_declares(tmp_path):
    bloom(tmp_path, seq_length=40)
    assert Decoder.of(tmp_path).load().cfg.n_ctx == 40
    bloom(tmp_path)
    assert Decoder.of(tmp_path).load().cfg.n_ctx == families.LONGEST_CONTEXT
    limit = tmp_path / "tokenizer_config.json"
    limit.write_text(json.dumps({"model_max_length": 33}), encoding="utf-8")
    assert Decoder.of(tmp_path).load().cfg.n_ctx == 33
    for undeclared in (int(1e30), "long", None, -1, [3]):
        limit.write_text(json.dumps({"model_max_length": undeclared}), encoding="utf-8")
        assert families.tokenizer_limit(tmp_path) is None
    limit.write_text("[" * 10, encoding="utf-8")
    assert families.tokenizer_limit(tmp_path) is None


@pytest.mark.parametrize(("scaled", "is_bridged"), [(YARN, True), (LLAMA3, False)])
def test_scaled_rotary_positions_are_read_by_what_computes_them(scaled, is_bridged, tmp_path):
    original = save("Llama", tmp_path, {**GROUPED, "rope_parameters": scaled})
    decoder = Decoder.of(tmp_path)
    assert decoder.is_bridged == is_bridged
    tokens = torch.arange(POSITIONS)[None] % VOCABULARY
    with torch.inference_mode():
        expected = original(tokens).logits.log_softmax(-1)
        found = decoder.load()(tokens).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_long_rotary_context_is_bounded_by_memory(tmp_path):
    save("Qwen2", tmp_path, {**SHAPE, "max_position_embeddings": 131_072})
    assert Decoder.of(tmp_path).load().cfg.n_ctx == families.LONGEST_CONTEXT


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Phi", {**SHAPE, "qk_layernorm": True, "partial_rotary_factor": 0.5}, "q_layernorm"),
        ("Helium", {**SHAPE, "head_dim": 4}, "HeliumForCausalLM is not currently supported"),
        ("Phi", {**SHAPE, "hidden_act": "mish"}, "activation 'mish' is not covered"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(kind, settings, reason, tmp_path):
    save(kind, tmp_path, settings)
    with pytest.raises(UserError, match=reason):
        Decoder.of(tmp_path).load()
