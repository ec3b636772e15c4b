"""Decoders behind TransformerLens' bridge: transformers' numbers at TransformerLens' hooks."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from evaluations.core.bridged import BridgedTransformer
from evaluations.core.controls import make_control
from evaluations.core.hugging_face import Decoder
from evaluations.core.model_source import ModelSource
from evaluations.core.weights import component
from evaluations.registry import find_spec
from sat_interp._util.errors import UserError
from sat_interp.model.fast import fast_activations
from sat_interp.model.splice import splice
from tests.evaluations.core.test_families import GROUPED, POSITIONS, SHAPE, VOCABULARY

SMALL = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "rotary_dim": 2}
FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "stablelm": ("StableLm", {**GROUPED, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": (
        "StableLm",
        {
            **SHAPE,
            "partial_rotary_factor": 0.5,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
        },
    ),
    "falcon": ("Falcon", FALCON),
    "codegen": ("CodeGen", SMALL),
    "granite": ("Granite", {**GROUPED, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "glm": ("Glm", {**GROUPED, "head_dim": 4, "pad_token_id": 0}),
    "llama-biases": ("Llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "olmo-grouped": ("Olmo", GROUPED),
    "bloom-uneven": ("Bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 3}),
}


@pytest.fixture(autouse=True)
def _no_progress_bars():
    transformers_logging.disable_progress_bar()


def random_model(name):
    """A random model whose norms and biases count."""
    kind, settings = KINDS[name]
    torch.manual_seed(0)
    settings = {**settings, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**settings)
    )
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.15)
    return model.eval()


def tokens(rows=3, length=12):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
def test_logits_states_and_outline_are_the_models_own(name, tmp_path):
    original = random_model(name)
    original.save_pretrained(tmp_path)
    decoder = Decoder.of(tmp_path)
    outline, model = decoder.outline(), decoder.load()
    with torch.no_grad():
        wanted = original(tokens(), output_hidden_states=True)
        logits, cache = model.run_with_cache(tokens())
        torch.testing.assert_close(logits, wanted.logits, rtol=0, atol=1e-5)
        for layer in range(2):
            before = model(tokens(), stop_at_layer=layer)
            torch.testing.assert_close(before, wanted.hidden_states[layer], rtol=0, atol=1e-5)
            assert torch.equal(before, cache[f"blocks.{layer}.hook_resid_pre"])
        end = model(tokens(), stop_at_layer=2)
        again = model.ln_final(end) @ model.W_U + model.unembed.b_U
    assert torch.equal(end, cache["blocks.1.hook_resid_post"])
    torch.testing.assert_close(again, wanted.logits, rtol=0, atol=1e-5)
    assert isinstance(outline, BridgedTransformer)
    assert outline.W_E.device.type == "meta"
    assert set(outline.hook_dict) == set(model.hook_dict)
    assert cache["blocks.0.mlp.hook_post"].shape[-1] == model.cfg.d_mlp
    assert set(model.hook_dict) == set(cache.keys())


@pytest.mark.parametrize("name", ["stablelm", "falcon"])
def test_a_replaced_activation_counts(name):
    original = random_model(name)
    model = ModelSource.of(original).load().model

    def double(value, hook=None):
        return 2 * value

    block = (original.model.layers if name == "stablelm" else original.transformer.h)[1]
    with torch.no_grad():
        found = model.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.hook_mlp_out", double)])
        block.mlp.register_forward_hook(lambda module, read, written: double(written))
        wanted = original(tokens()).logits
        assert not torch.allclose(model(tokens()), wanted, atol=0.1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_spliced_activation_counts():
    model = ModelSource.of(random_model("stablelm")).load().model
    with torch.no_grad():
        stopped = splice(model, tokens(), "blocks.0.hook_mlp_out")
        same, other = stopped.finish(stopped.activation), stopped.finish(0 * stopped.activation)
        wanted = model.run_with_hooks(
            tokens(), fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: 0 * value)]
        )
        assert torch.equal(same, model.ln_final(model(tokens(), stop_at_layer=2)))
        torch.testing.assert_close(other @ model.W_U + model.unembed.b_U, wanted)


def test_a_directory_and_a_model_in_memory_have_one_hash_and_the_model_stays_as_it_is(tmp_path):
    original = random_model("falcon")
    with torch.no_grad():
        before = original(tokens()).logits
    original.save_pretrained(tmp_path)
    names = [name for name, _ in original.named_parameters()]
    loaded = ModelSource.of(original).load(dtype="float64")
    again = ModelSource.of(original).load()
    assert loaded.weights_hash == again.weights_hash
    assert (loaded.dtype, original.dtype) == ("float64", torch.float32)
    assert [name for name, _ in original.named_parameters()] == names
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(tokens()), before.double(), rtol=0, atol=1e-4)
        assert torch.equal(original(tokens()).logits, before)
        next(iter(original.parameters())).add_(1)
    assert ModelSource.of(original).load().weights_hash != loaded.weights_hash


def test_each_parameter_is_counted_once_and_belongs_to_a_part():
    original = random_model("falcon")
    model = ModelSource.of(original).load().model
    parts = {name: component(name) for name, _ in model.named_parameters()}
    assert len(parts) == len(list(original.parameters()))
    assert parts["embed.W_E"] == "embeddings"
    assert parts["transformer.h.0.self_attention.query_key_value.weight"] == "attention"
    assert parts["transformer.h.0.mlp.dense_h_to_4h.weight"] == "mlp"
    assert parts["transformer.h.1.input_layernorm.bias"] == "norms"
    assert parts["transformer.ln_f.weight"] == "norms"


@pytest.mark.parametrize("name", ["falcon", "glm"])
@pytest.mark.parametrize("kind", ["shuffled", "untrained"])
def test_controls_have_changed_what_the_bridge_reads(name, kind):
    loaded = ModelSource.of(random_model(name)).load()
    control = make_control(loaded, kind)
    own, changed = (dict(one.model.named_parameters()) for one in (loaded, control))
    with torch.no_grad():
        wanted = control.model.unwrapped()(tokens()).logits
        torch.testing.assert_close(control.model(tokens()), wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(wanted, loaded.model(tokens()), atol=0.1)
    assert own.keys() == changed.keys()
    assert control.weights_hash != loaded.weights_hash
    for name, value in own.items():
        entries = (value.flatten().sort().values, changed[name].flatten().sort().values)
        assert torch.equal(*entries) == (kind == "shuffled")
        assert not torch.equal(value, changed[name]) or value.ndim == 1
    assert make_control(loaded, kind).weights_hash == control.weights_hash
    assert make_control(loaded, kind, 1).weights_hash != control.weights_hash


@pytest.mark.parametrize("name", ["stablelm", "falcon"])
def test_a_window_is_read_at_its_own_positions(name):
    """As in the whole text where all but the first token and the window are masked."""
    original = random_model(name)
    model = ModelSource.of(original).load().model
    text, window = tokens(2), torch.tensor([0, 5, 6, 7])
    visible = torch.zeros(12, dtype=torch.bool)
    visible[window] = True
    mask = (torch.ones(12, 12).tril().bool() & visible)[None, None].expand(2, 1, 12, 12)
    mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        states = original(text, attention_mask=mask, output_hidden_states=True).hidden_states
        found = fast_activations(
            model, text[:, window], ["blocks.0.hook_resid_post"], window.expand(2, 4)
        )["blocks.0.hook_resid_post"]
        unmoved = model(text[:, window], stop_at_layer=1)
    torch.testing.assert_close(found, states[1][:, window], rtol=0, atol=1e-5)
    assert not torch.allclose(unmoved, found, atol=1e-3)


def test_a_hook_point_that_does_not_fire_is_refused_by_name():
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    KINDS["experts"] = "Qwen3Moe", {**GROUPED, **experts, "head_dim": 4}
    loaded = ModelSource.of(random_model("experts")).load()
    with pytest.raises(UserError, match=r"blocks\.0\.hook_mlp_out does not fire in Qwen3Moe"):
        splice(loaded.model, tokens(), "blocks.0.hook_mlp_out")


@pytest.mark.parametrize("name", ["lens", "ablate", "trace", "acdc"])
def test_what_runs_parts_of_blocks_is_refused_by_name(name):
    outline, spec = ModelSource.of(random_model("stablelm")).outline, find_spec(name)
    message = f"StableLmForCausalLM is read through TransformerLens' bridge.*; {name} runs parts"
    with pytest.raises(UserError, match=message):
        spec.check(outline.model, spec.options())


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Falcon", {**FALCON, "alibi": True, "multi_query": False}, "log-probabilities differ by"),
        ("Helium", {**GROUPED, "head_dim": 4}, "HeliumForCausalLM is not currently supported"),
        ("Cohere", GROUPED, "log-probabilities differ by"),
    ],
)
def test_what_the_bridge_does_not_compute_is_refused(kind, settings, reason):
    KINDS["refused"] = kind, settings
    with pytest.raises(UserError, match=reason):
        Decoder.of(random_model("refused"), "mine").load()
