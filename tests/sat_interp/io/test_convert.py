"""Conversions: equal logits in each direction, one tied parameter, clear refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import train_bpe
from sat_interp.io.convert import to_hooked_transformer
from sat_interp.io.hugging_face import to_hf
from sat_interp.io.released import to_released
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config
from sat_interp.model.transformer import SelfAblatingTransformer

VARIANTS = ["none", "local", "global"]


def _names_of_parameters(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


# Plain HookedTransformer ----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_hooked_transformer_and_back(make_model, tokens, variant):
    model = make_model(variant)
    plain = model.to_hooked_transformer()
    assert type(plain) is HookedTransformer
    assert not any("gates" in name for name in _names_of_parameters(plain))
    assert torch.allclose(plain(tokens), model(tokens), atol=1e-10)
    back = SelfAblatingTransformer.from_hooked_transformer(plain, model.ablation)
    assert torch.allclose(back(tokens), model(tokens), atol=1e-10)
    assert _names_of_parameters(back) == _names_of_parameters(model)
    if variant != "none":
        back.dual(tokens)


def test_conversions_copy(make_model, tokens):
    model = make_model("local")
    before = model(tokens)
    plain, exported = model.to_hooked_transformer(), model.to_hf()
    again = SelfAblatingTransformer.from_hooked_transformer(plain)
    for other in (plain, exported, again):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
    assert torch.equal(model(tokens), before)


def test_fresh_gates_are_drawn_and_the_seed_of_a_config_reseeds_nothing(make_model):
    plain = make_model("none").to_hooked_transformer()
    plain.cfg.seed = 7
    torch.manual_seed(1)
    first = SelfAblatingTransformer.from_hooked_transformer(plain, SelfAblationConfig("local"))
    second = SelfAblatingTransformer.from_hooked_transformer(plain, SelfAblationConfig("local"))
    gates = [model.blocks[0].gates.scores.W_neurons for model in (first, second)]
    assert gates[0].std() > 0.1
    assert not torch.equal(*gates)


def test_exporting_leaves_the_random_state_alone(make_model):
    model = make_model("global")
    before = torch.get_rng_state()
    model.to_hooked_transformer()
    model.to_hf()
    assert torch.equal(torch.get_rng_state(), before)


def test_conversions_follow_the_weights_not_the_config(make_model, tokens):
    model = make_model("local")
    expected = model(tokens).float()
    torch.nn.Module.float(model)  # passes TransformerLens' config by
    plain = model.to_hooked_transformer()
    assert plain.W_E.dtype == plain.cfg.dtype == torch.float32
    assert torch.allclose(plain(tokens), expected, atol=1e-4)
    assert next(model.to_hf().parameters()).dtype == torch.float32


def _plain(**changes: object) -> HookedTransformer:
    shape: dict[str, object] = {
        "n_layers": 2,
        "d_model": 12,
        "n_heads": 3,
        "d_head": 4,
        "d_mlp": 20,
        "d_vocab": 31,
        "n_ctx": 10,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "init_mode": "gpt2",
        "initializer_range": 0.4,
        "dtype": torch.float64,
        "device": "cpu",
    }
    model = HookedTransformer(HookedTransformerConfig(**{**shape, **changes}))
    with torch.no_grad():
        model.unembed.W_U.copy_(model.embed.W_E.T)
    return model


def test_a_scaled_gpt2_shaped_model_with_biases_comes_in(tokens):
    plain = _plain(use_attn_scale=True)
    for block in plain.blocks:
        torch.nn.init.normal_(block.attn.b_Q)
    model = SelfAblatingTransformer.from_hooked_transformer(plain, SelfAblationConfig("local"))
    short = tokens % 31
    assert torch.allclose(model(short), plain(short), atol=1e-10)
    assert torch.allclose(model.dual(short).clean_logits, plain(short), atol=1e-10)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.b_Q, blocks\.1\.attn\.b_Q"):
        model.to_hf()


def test_the_scale_of_scores_goes_into_the_queries_of_gpt_neo(tokens):
    plain = _plain(use_attn_scale=True)
    short = tokens % 31
    exported = SelfAblatingTransformer.from_hooked_transformer(plain).to_hf()
    assert torch.allclose(exported(short).logits, plain(short), atol=1e-5)


def test_untied_processed_and_foreign_models_are_refused(make_model):
    untied = _plain()
    with torch.no_grad():
        untied.unembed.W_U[0, 0] += 1
    with pytest.raises(UserError, match="W_U is not the transpose of W_E"):
        SelfAblatingTransformer.from_hooked_transformer(untied)
    processed = _plain()
    processed.process_weights_()
    with pytest.raises(UserError, match="from_pretrained_no_processing"):
        SelfAblatingTransformer.from_hooked_transformer(processed)
    centred = _plain()
    centred.process_weights_(fold_ln=False, center_writing_weights=True, center_unembed=True)
    with pytest.raises(UserError, match="from_pretrained_no_processing"):
        SelfAblatingTransformer.from_hooked_transformer(centred)
    with pytest.raises(UserError, match="positional_embedding_type='alibi'"):
        SelfAblatingTransformer.from_hooked_transformer(_plain(positional_embedding_type="alibi"))
    with pytest.raises(UserError, match="k_neurons is 21"):
        SelfAblatingTransformer.from_hooked_transformer(
            _plain(), SelfAblationConfig("local", k_neurons=21)
        )


@pytest.mark.parametrize("export", [to_hooked_transformer, to_hf])
def test_our_own_processed_weights_are_refused(make_model, export):
    model = make_model("local")
    model.process_weights_()
    with pytest.raises(UserError, match="processed"):
        export(model)
    with pytest.raises(UserError, match="processed"):
        SelfAblatingTransformer.from_hooked_transformer(model)


# Hugging Face ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_hugging_face_and_back(make_model, tokens, variant):
    model = make_model(variant).to(torch.float32)
    exported = model.to_hf()
    assert type(exported) is GPTNeoForCausalLM
    assert exported.lm_head.weight is exported.transformer.wte.weight
    assert torch.allclose(exported(tokens).logits, model(tokens), atol=1e-4)
    back = SelfAblatingTransformer.from_hf(exported, model.ablation)
    assert torch.allclose(back(tokens), model(tokens), atol=1e-5)
    assert _names_of_parameters(back) == _names_of_parameters(model)


def test_more_tokens_than_any_window_of_local_attention(tokens):
    cfg = gpt_neo_config(
        n_layers=2, d_model=8, n_heads=2, d_vocab=20, n_ctx=300, initializer_range=0.5
    )
    model = SelfAblatingTransformer(cfg)
    long = torch.randint(20, (1, 300))
    assert torch.allclose(model.to_hf()(long).logits, model(long), atol=1e-4)


def test_saved_loaded_by_auto_model_and_booted_in_a_bridge(make_model, tokens, tmp_path):
    model = make_model("local").to(torch.float32)
    tokenizer = train_bpe(["Lily found a red ball."] * 9, 257 + 20)
    model = SelfAblatingTransformer.from_hf(model.to_hf(), model.ablation, tokenizer)
    expected = model(tokens)
    model.to_hf(tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.allclose(loaded(tokens).logits, expected, atol=1e-4)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").get_vocab() == tokenizer.get_vocab()

    back = SelfAblatingTransformer.from_hf(tmp_path / "hf")
    assert torch.allclose(back(tokens), expected, atol=1e-5)
    assert back.tokenizer.get_vocab() == tokenizer.get_vocab()

    bridge = TransformerBridge.boot_transformers(
        str(tmp_path / "hf"), hf_model=loaded, tokenizer=tokenizer, device="cpu"
    )
    assert torch.allclose(bridge(tokens), expected, atol=1e-4)
    logits, cache = bridge.run_with_cache(tokens)
    assert torch.allclose(logits, expected, atol=1e-4)
    _, ours = model.run_with_cache(tokens)
    name = "blocks.1.hook_resid_post"
    assert torch.allclose(cache[name], ours[name], atol=1e-4)


def _neo(**changes: object) -> GPTNeoForCausalLM:
    shape: dict[str, object] = {
        "vocab_size": 61,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "initializer_range": 0.5,
        "attention_types": [[["global"], 2]],
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = GPTNeoForCausalLM(GPTNeoConfig(**{**shape, **changes})).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("ln" in name), std=0.3)
    return model


def test_a_gpt_neo_of_transformers_own_making(tokens):
    theirs = _neo()
    model = SelfAblatingTransformer.from_hf(theirs, SelfAblationConfig("global", 3, 5))
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-4)
    assert torch.allclose(model.dual(tokens).clean_logits, theirs(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_pytorch_tanh"])
def test_other_activations_come_in_and_go_out(tokens, activation):
    theirs = _neo(activation_function=activation, layer_norm_epsilon=1e-3)
    model = SelfAblatingTransformer.from_hf(theirs)
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-4)
    assert torch.allclose(model.to_hf()(tokens).logits, model(tokens), atol=1e-4)


def test_local_attention_wider_than_the_context_is_global(tokens):
    theirs = _neo(attention_types=[[["global", "local"], 1]], window_size=12)
    model = SelfAblatingTransformer.from_hf(theirs)
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-4)


def test_what_cannot_come_from_hugging_face_is_refused(tmp_path):
    with pytest.raises(UserError, match="activation 'tanh'"):
        SelfAblatingTransformer.from_hf(_neo(activation_function="tanh"))
    untied = _neo(tie_word_embeddings=False)
    with pytest.raises(UserError, match="lm_head.weight differs"):
        SelfAblatingTransformer.from_hf(untied)
    bloom = BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(UserError, match="'bloom' model, whose blocks gates cannot cover"):
        SelfAblatingTransformer.from_hf(bloom)
    bloom.save_pretrained(tmp_path / "bloom")
    with pytest.raises(UserError, match="'bloom' model"):
        SelfAblatingTransformer.from_hf(tmp_path / "bloom")
    with pytest.raises(UserError, match="cannot load a model from"):
        SelfAblatingTransformer.from_hf(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot load a model from"):
        SelfAblatingTransformer.from_hf("nobody/nothing")


def test_heads_that_do_not_fill_d_model_stay_out_of_gpt_neo():
    model = SelfAblatingTransformer.from_hooked_transformer(_plain(d_head=5))
    with pytest.raises(UserError, match="3 heads of 5 are not 12"):
        model.to_hf()


# One tied parameter ---------------------------------------------------------------------------


def _through_save(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return SelfAblatingTransformer.from_pretrained(tmp_path / "saved")


WAYS = {
    "as made": lambda model, _: model,
    "saved and loaded": _through_save,
    "deepcopied": lambda model, _: copy.deepcopy(model),
    "to float32": lambda model, _: model.to(torch.float32),
    "through hugging face": lambda model, _: SelfAblatingTransformer.from_hf(
        model.to_hf(), model.ablation
    ),
    "through a plain model": lambda model, _: SelfAblatingTransformer.from_hooked_transformer(
        model.to_hooked_transformer(), model.ablation
    ),
    "through the authors' names": lambda model, _: SelfAblatingTransformer.from_released(
        to_released(model), 4, model.ablation
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_embedding_is_one_parameter_stepped_once(make_model, tokens, tmp_path, way, variant):
    model = WAYS[way](make_model(variant), tmp_path)
    assert "unembed.W_U" not in model.state_dict()
    assert model.W_U.data_ptr() == model.W_E.data_ptr()
    held_by = [p for p in model.parameters() if p.data_ptr() == model.W_E.data_ptr()]
    assert len(held_by) == 1

    # By hand: in a plain model the two uses are two parameters, whose gradients add up.
    plain = model.to_hooked_transformer()
    plain(tokens, return_type="loss").backward()
    before = model.W_E.detach().clone()
    expected = before - 0.5 * (plain.embed.W_E.grad + plain.unembed.W_U.grad.T)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(tokens, return_type="loss").backward()
    optimiser.step()
    assert not torch.equal(model.W_E, before)
    assert torch.allclose(model.W_E, expected, atol=1e-5)
    assert torch.equal(model.W_U, model.W_E.T)


def test_parameters_at_the_papers_shape():
    def count(parameters) -> int:
        return sum(parameter.numel() for parameter in parameters)

    cfg = gpt_neo_config(n_layers=8, d_model=128, n_heads=16, d_vocab=50257, n_ctx=256)
    baseline = SelfAblatingTransformer(copy.deepcopy(cfg))
    assert count(p for p in baseline.parameters() if p.requires_grad) == 8_049_024
    assert count(baseline.to_hf().parameters()) == 8_049_024
    assert count(baseline.to_hooked_transformer().parameters()) == 14_535_249
    cfg.init_weights = False
    for variant in ("local", "global"):
        gated = SelfAblatingTransformer(copy.deepcopy(cfg), SelfAblationConfig(variant))
        gates = count(p for name, p in gated.named_parameters() if "gates." in name)
        assert gates == 660_480
        assert count(p for p in gated.parameters() if p.requires_grad) == 8_049_024 + gates
