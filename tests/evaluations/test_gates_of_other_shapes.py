"""Every evaluation takes a gated model of another shape than the paper's as one object."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast

from evaluations.core.losses import streams
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp._util.errors import UserError
from sat_interp.model import transformer
from tests.evaluations.test_devices import MEASURES

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}
SHAPES: dict[str, Any] = {
    "llama": lambda size: LlamaConfig(**SIZES, vocab_size=size, num_key_value_heads=2),
    "neox": lambda size: GPTNeoXConfig(
        **SIZES,
        vocab_size=size,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
}
OWN = [name for name in MEASURES if not name.startswith(("acdc", "circuits"))]
"""Circuits of these shapes have tests of their own."""


@pytest.fixture
def gated(tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(shape: str, variant: Any = "local") -> SelfAblatingTransformer:
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(SHAPES[shape](len(tokenizer)))
        ablation = SelfAblationConfig(variant, k_attention=3, k_neurons=5)
        model = SelfAblatingTransformer.from_hf(theirs, ablation, tokenizer)
        return model.eval().requires_grad_(False)

    return make


PARALLEL = {(name, "neox") for name in OWN if name.startswith(("trace", "lens"))}
"""Evaluations that need blocks whose MLP reads what attention has written."""


@pytest.mark.parametrize(("name", "shape"), sorted(PARALLEL))
def test_parallel_blocks_are_refused_where_they_cannot_be_measured(
    name, shape, gated, text, tmp_path
):
    with pytest.raises(UserError, match="parallel blocks"):
        MEASURES[name](gated(shape), text, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"), sorted({(name, shape) for name in OWN for shape in SHAPES} - PARALLEL)
)
def test_it_is_measured(name, shape, gated, text, tmp_path):
    measured = MEASURES[name](gated(shape), text, tmp_path)
    values = [metric.value for metric in measured.metrics if metric.value is not None]
    assert values
    assert all(abs(value) < 1e9 for value in values)


@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_streams_are_those_of_dual(shape, variant, gated):
    model = gated(shape, variant)
    tokens = torch.randint(200, (2, 9))
    dual = model.dual(tokens, path="hooked")
    clean, ablated = (model.unembed(each.states) for each in streams(model, tokens))
    assert torch.allclose(clean, dual.clean_logits, atol=1e-4)
    assert torch.allclose(ablated, dual.ablated_logits, atol=1e-4)


def test_a_batch_beyond_the_memory_is_read_in_pieces(gated, monkeypatch):
    model = gated("llama")
    tokens = torch.randint(200, (5, 9))
    whole = [each.states for each in streams(model, tokens)]
    monkeypatch.setattr(transformer, "MOST_BYTES", 20 * 2 * 208 * 4)  # 20 tokens: two rows
    assert transformer.tokens_at_once(model) == 20
    parts = [each.states for each in streams(model, tokens)]
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(whole, parts, strict=True))
