"""The authors' parameter names: their vectors, round trips, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sat_interp._util.errors import UserError
from sat_interp.io.released import to_released
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.loss import LossWeights, next_token_loss

VARIANTS = ["none", "local", "global"]
ORACLES = sorted((Path(__file__).parents[4] / "shared" / "oracles").glob("*.safetensors"))


@pytest.mark.skipif(not ORACLES, reason="needs the published implementation's vectors")
@pytest.mark.parametrize("file", ORACLES, ids=lambda file: file.stem)
@pytest.mark.parametrize("path", ["fast", "hooked"])
def test_the_published_implementations_vectors(file, path):
    with safe_open(file, "pt") as handle:
        settings = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    weights = {
        name.removeprefix("param."): tensor
        for name, tensor in tensors.items()
        if name.startswith("param.")
    }
    ablation = SelfAblationConfig(
        variant=settings["variant"],
        k_attention=json.loads(settings["k_attention"]),
        k_neurons=json.loads(settings["k_neurons"]),
        soft=settings["soft"],
        forward_mask=settings["forward_mask"],
        temperature=json.loads(settings["temperature"]),
    )
    model = SelfAblatingTransformer.from_released(weights, int(settings["n_heads"]), ablation)
    out = model.dual(tensors["input_ids"], path)
    for ours, theirs in (
        (out.clean_logits, "logits_clean"),
        (out.ablated_logits, "logits_ablated"),
        (out.attention_masks, "attention_mask_units"),
        (out.neuron_masks, "neuron_mask_units"),
    ):
        assert (ours - tensors[theirs]).abs().max() < 1e-6
    again = to_released(model)
    assert set(again) == set(weights) | {"lm_head.weight"}
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    loss_weights = LossWeights(*json.loads(settings["loss_weights"]))
    losses = next_token_loss(
        model, tensors["input_ids"], tensors["targets"], loss_weights, chunk=5, path=path
    )
    assert losses.clean.item() == pytest.approx(tensors["loss_clean"].item(), abs=1e-9)
    assert losses.ablated.item() == pytest.approx(tensors["loss_ablated"].item(), abs=1e-9)
    assert losses.total.item() == pytest.approx(tensors["loss"].item(), abs=1e-6)  # theirs: float32
    losses.total.backward()
    found = _gradients_under_released_names(model)
    theirs = {
        name.removeprefix("grad."): tensor
        for name, tensor in tensors.items()
        if name.startswith("grad.")
    }
    assert theirs.keys() <= found.keys()
    assert all((found[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)


def _gradients_under_released_names(model: SelfAblatingTransformer) -> dict[str, torch.Tensor]:
    """Gradients put in the place of weights, so that the export names them."""
    bearer = copy.deepcopy(model)
    with torch.no_grad():
        for ours, parameter in zip(model.parameters(), bearer.parameters(), strict=True):
            if ours.grad is None:
                parameter.zero_()
            else:
                parameter.copy_(ours.grad)
    return to_released(bearer)


def _random_weights(variant: str = "none") -> dict[str, torch.Tensor]:
    """2 layers, d 8, 2 heads, 12 neurons, 19 tokens, context 6, written down name by name."""
    generator = torch.Generator().manual_seed(3)
    d, m, vocabulary, context, layers = 8, 12, 19, 6, 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.6

    weights = {
        "transformer.wte.weight": draw(vocabulary, d),
        "transformer.wpe.weight": draw(context, d),
        "transformer.ln_f.weight": 1 + draw(d),
        "transformer.ln_f.bias": draw(d),
    }
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    for layer in range(layers):
        p = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            weights |= {f"{p}{norm}.weight": 1 + draw(d), f"{p}{norm}.bias": draw(d)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights[f"{p}attn.attention.{name}.weight"] = draw(d, d)
        weights[f"{p}attn.attention.out_proj.bias"] = draw(d)
        weights |= {f"{p}mlp.c_fc.weight": draw(m, d), f"{p}mlp.c_fc.bias": draw(m)}
        weights |= {f"{p}mlp.c_proj.weight": draw(d, m), f"{p}mlp.c_proj.bias": draw(d)}
        if variant == "local":
            for name, n in (("attention", d), ("neuron", m)):
                head = f"{p}{name}_ablation_head"
                weights |= {f"{head}.weight": draw(n, d), f"{head}.bias": draw(n)}
    if variant == "global":
        for name, n in (("attention", layers * d), ("neuron", layers * m)):
            head = f"{name}_ablations_head"
            weights |= {f"{head}.weight": draw(n, d), f"{head}.bias": draw(n)}
    return weights


def _ablation(variant: str) -> SelfAblationConfig:
    return SelfAblationConfig(variant=variant, k_attention=3, k_neurons=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_clean_stream_is_transformers_gpt_neo(variant):
    weights = _random_weights(variant)
    theirs = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=19,
            hidden_size=8,
            num_layers=2,
            num_heads=2,
            intermediate_size=12,
            max_position_embeddings=6,
            attention_types=[[["global"], 2]],
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs.load_state_dict({name: t for name, t in weights.items() if "_ablation" not in name})
    tokens = torch.randint(19, (4, 6))
    model = SelfAblatingTransformer.from_released(weights, 2, _ablation(variant))
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-4)
    assert theirs(tokens).logits.std() > 1  # weights large enough to tell models apart


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant, make_model, tokens):
    weights = _random_weights(variant)
    again = to_released(SelfAblatingTransformer.from_released(weights, 2, _ablation(variant)))
    assert set(again) == set(weights)
    assert all(torch.equal(again[name], weights[name]) for name in weights)

    model = make_model(variant)
    other = SelfAblatingTransformer.from_released(to_released(model), 4, model.ablation)
    assert torch.allclose(other(tokens), model(tokens), atol=1e-10)
    if variant != "none":
        ours, theirs = model.dual(tokens), other.dual(tokens)
        assert torch.allclose(ours.ablated_logits, theirs.ablated_logits, atol=1e-10)
        assert torch.equal(ours.neuron_masks, theirs.neuron_masks)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_prefixes_and_causal_masks_are_passed_over(prefix):
    weights = _random_weights("local")
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    wrapped[f"{prefix}transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 6, 6)
    wrapped[f"{prefix}transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
    tokens = torch.randint(19, (2, 6))
    expected = SelfAblatingTransformer.from_released(weights, 2, _ablation("local"))
    model = SelfAblatingTransformer.from_released(wrapped, 2, _ablation("local"))
    assert torch.equal(model(tokens), expected(tokens))


@pytest.mark.parametrize("dropped", ["lm_head.weight", "transformer.wte.weight"])
def test_either_name_of_the_tied_embedding_will_do(dropped):
    weights = _random_weights()
    model = SelfAblatingTransformer.from_released(
        {n: t for n, t in weights.items() if n != dropped}, 2
    )
    assert torch.equal(model.W_E, weights["lm_head.weight"])


def _without(name: str, variant: str = "none") -> dict[str, torch.Tensor]:
    weights = _random_weights(variant)
    del weights[name]
    return weights


def _with(name: str, tensor: torch.Tensor, variant: str = "none") -> dict[str, torch.Tensor]:
    return _random_weights(variant) | {name: tensor}


HEAD = "transformer.h.1.neuron_ablation_head.weight"
REFUSED = {
    "nothing": ({}, 2, None, "lack transformer.wte.weight"),
    "other names": ({"embed.W_E": torch.ones(3, 3)}, 2, None, "not the authors' names"),
    "missing": (_without("transformer.ln_f.bias"), 2, None, "lack transformer.ln_f.bias"),
    "missing gate": (_without(HEAD, "local"), 2, _ablation("local"), f"lack {HEAD}"),
    "unknown": (_with("extra.weight", torch.ones(2)), 2, None, "unknown names: extra.weight"),
    "untied": (_with("lm_head.weight", torch.ones(19, 8)), 2, None, "differs from"),
    "shape": (
        _with("transformer.h.1.mlp.c_fc.bias", torch.ones(11)),
        2,
        None,
        r"c_fc.bias has shape \(11,\), the others ask for \(12,\)",
    ),
    "flat": (
        _with("transformer.h.0.attn.attention.q_proj.weight", torch.ones(64)),
        2,
        None,
        "q_proj.weight has shape",
    ),
    "heads": (_random_weights(), 3, None, "not divisible by n_heads 3"),
    "no k": (_random_weights("global"), 2, None, "k_attention=..., k_neurons=..."),
    "wrong variant": (_random_weights("local"), 2, _ablation("global"), "pass variant='local'"),
    "gates unasked": (_random_weights("local"), 2, _ablation("none"), "hold local gates"),
    "no gates": (_random_weights(), 2, _ablation("local"), "hold no gates"),
    "unit": (
        _random_weights("local"),
        2,
        SelfAblationConfig("local", 1, 4, unit="head"),
        "check n_heads, the attention unit",
    ),
    "k": (_random_weights("local"), 2, SelfAblationConfig("local", 9, 4), "k_attention is 9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case):
    weights, n_heads, ablation, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        SelfAblatingTransformer.from_released(weights, n_heads, ablation)
    assert "\n" not in str(refusal.value)


def test_controls_without_gate_weights_need_none():
    ablation = SelfAblationConfig("local", 3, 4, gates="random")
    model = SelfAblatingTransformer.from_released(_random_weights(), 2, ablation)
    assert set(to_released(model)) == set(_random_weights())


def test_only_the_authors_architecture_gets_the_authors_names(make_model):
    model = make_model("local")
    model.cfg.act_fn = "relu"
    with pytest.raises(UserError, match="the authors' model has gelu_new"):
        to_released(model)
