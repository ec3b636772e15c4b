"""Control models: the same shape and nothing learned."""

from __future__ import annotations

import math

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.comparison.selection import counts
from evaluations.core.controls import Control, make_control, parse_controls, split
from evaluations.core.model_source import load_model, sources, with_controls
from evaluations.core.models import LoadedModel, prepared
from evaluations.core.runner import describe_model
from evaluations.core.text_source import text_finder
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained
from sat_interp.training.build import build_model
from sat_interp.training.config import TrainConfig

FAMILIES = {
    "gpt2": {"act_fn": "gelu_new", "normalization_type": "LN"},
    "pythia": {
        "act_fn": "gelu",
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
    },
    "llama": {
        "act_fn": "silu",
        "normalization_type": "RMS",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "qwen3": {
        "act_fn": "silu",
        "normalization_type": "RMS",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "use_qk_norm": True,
    },
    "mixtral": {
        "act_fn": "silu",
        "normalization_type": "RMS",
        "gated_mlp": True,
        "num_experts": 3,
        "experts_per_token": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "solu": {"act_fn": "solu_ln", "normalization_type": "LN"},
    "attention only": {"attn_only": True, "normalization_type": None},
}


def family(tokenizer, name: str, tied: float | None = None, **settings) -> LoadedModel:
    """A model of a family with random numbers in every parameter, norms and biases included."""
    config = {
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "d_head": 8,
        "d_mlp": 64,
        "n_ctx": 16,
        "d_vocab": 50,
        "device": "cpu",
        "seed": 7,
        "initializer_range": 0.05,
        "init_weights": False,
        **FAMILIES[name],
        **settings,
    }
    model = HookedTransformer(HookedTransformerConfig(**config), move_to_device=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.5)
        if tied is not None:
            model.embed.W_E.copy_(tied * model.unembed.W_U.T)
    return prepared(model, "runs/mine", tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_is_initialised_as_the_configuration_says(name, tokenizer):
    loaded = family(tokenizer, name)
    before = {key: value.clone() for key, value in loaded.model.named_parameters()}
    state = torch.get_rng_state()
    control = make_control(loaded, "untrained", 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert {key: value.shape for key, value in control.model.named_parameters()} == {
        key: value.shape for key, value in before.items()
    }
    for key, value in control.model.named_parameters():
        if "W_" in key:
            assert float(value.std()) == pytest.approx(0.05, rel=6 / math.sqrt(value.numel())), key
            assert abs(float(value.mean())) < 5 * 0.05 / math.sqrt(value.numel()), key
        else:
            is_gain = key.endswith((".w", ".weight"))
            assert bool((value == (1.0 if is_gain else 0.0)).all()), key
        assert torch.equal(before[key], dict(loaded.model.named_parameters())[key]), key
    assert control.weights_hash == make_control(loaded, "untrained", 3).weights_hash
    assert control.weights_hash != make_control(loaded, "untrained", 4).weights_hash
    logits = control.model(torch.arange(8)[None])
    assert logits.shape == (1, 8, 50)
    assert bool(logits.isfinite().all())
    assert (control.model.cfg.seed, loaded.model.cfg.seed) == (7, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_shuffled_permutes_each_matrix_and_leaves_vectors(name, tokenizer):
    loaded = family(tokenizer, name)
    control = make_control(loaded, "shuffled", 5)
    mine = dict(control.model.named_parameters())
    for key, value in loaded.model.named_parameters():
        if "W_" in key:
            assert not torch.equal(mine[key], value), key
            assert torch.equal(mine[key].flatten().sort()[0], value.flatten().sort()[0]), key
        else:
            assert torch.equal(mine[key], value), key
    assert control.weights_hash == make_control(loaded, "shuffled", 5).weights_hash
    assert control.weights_hash != make_control(loaded, "shuffled", 6).weights_hash


@pytest.mark.parametrize("kind", ["untrained", "shuffled"])
@pytest.mark.parametrize("ratio", [1.0, 4.0])  # Gemma's embedding is scaled by sqrt(d_model)
def test_a_tied_unembedding_stays_tied(kind, ratio, tokenizer):
    loaded = family(tokenizer, "gpt2", tied=ratio)
    model = make_control(loaded, kind).model
    assert torch.allclose(model.W_E, ratio * model.W_U.T, rtol=1e-5)
    assert not torch.equal(model.W_E, loaded.model.W_E)
    free = make_control(family(tokenizer, "gpt2"), kind).model
    assert not torch.allclose(free.W_E, free.W_U.T)


@pytest.mark.parametrize("variant", ["none", "local", "global"])
@pytest.mark.parametrize("embedding_range", [None, 0.2])
def test_untrained_is_what_training_begins_with(variant, embedding_range, tokenizer, tmp_path):
    config = TrainConfig(
        variant=variant,
        n_layers=2,
        d_model=16,
        n_heads=4,
        n_ctx=12,
        k_attention=2,
        k_neurons=3,
        seed=11,
        initializer_range=0.07,
        embedding_range=embedding_range,
    )
    begun = build_model(config, tokenizer, torch.device("cpu"))
    trained = build_model(config, tokenizer, torch.device("cpu"))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    card = {"seed": 11, "embedding_range": embedding_range, "data": "demo"}
    loaded = load_model(str(save_pretrained(trained, tmp_path / "trained", card)), "cpu")
    control = make_control(loaded, "untrained", 11)
    wanted = dict(begun.named_parameters())
    for key, value in control.model.named_parameters():
        assert torch.equal(value, wanted[key]), key
    assert control.ablation == loaded.ablation
    if variant != "none":
        out = control.model.dual(torch.arange(8)[None])
        assert bool(out.ablated_logits.isfinite().all())
    # a model from a notebook has its card only
    alone = prepared(loaded.model, "mine", tokenizer)
    assert make_control(alone, "untrained", 11).weights_hash == control.weights_hash


@pytest.mark.parametrize("kind", ["untrained", "shuffled"])
def test_a_control_has_one_hash_in_every_precision(kind, tokenizer, tmp_path, make_model):
    directory = str(save_pretrained(make_model().to(torch.float32), tmp_path / "tiny"))
    for dtype in ("float32", "float64"):
        control = make_control(load_model(directory, "cpu", dtype), kind)
        assert str(control.model.W_E.dtype) == f"torch.{dtype}"
        assert control.model.cfg.dtype == control.model.W_E.dtype
        assert control.weights_hash == make_control(load_model(directory, "cpu"), kind).weights_hash


def test_a_control_is_named_and_is_no_training_run_of_its_own(tokenizer, make_record):
    loaded = family(tokenizer, "gpt2")
    loaded.training, loaded.data = {"seed": 0, "steps": 9}, "demo"
    control = make_control(loaded, "shuffled", 2)
    told = describe_model(control)
    assert (told["name"], told["spec"], told["training"]) == (*2 * ["runs/mine [shuffled:2]"], {})
    assert told["control"] == {"kind": "shuffled", "seed": 2, "of": loaded.weights_hash}
    assert (control.data, control.tokenizer) == ("demo", tokenizer)
    assert "control" not in describe_model(loaded)
    assert counts(make_record(model=describe_model(loaded)))
    assert not counts(make_record(model=told))


def test_what_cannot_be_initialised_is_refused(tokenizer):
    odd = family(tokenizer, "gpt2")
    odd.model.register_parameter("mystery", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(UserError, match="mystery"):
        make_control(odd, "untrained")
    other = family(tokenizer, "gpt2")
    other.model.cfg.init_mode = "of their own"
    with pytest.raises(UserError, match="'of their own' does not initialise"):
        make_control(other, "untrained")
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match="seed"):
            make_control(other, "shuffled", seed)


def test_model_arguments_with_their_controls(tmp_path, monkeypatch):
    def labels(models, controls):
        return [source.label for source in with_controls(sources(models), controls)]

    assert labels(["a", "b/c"], None) == labels(["a", "b/c"], "none") == ["a", "b/c"]
    assert labels(["a", "b"], " untrained, shuffled:3,untrained:0 ,") == [
        "a",
        "a [untrained]",
        "a [shuffled:3]",
        "b",
        "b [untrained]",
        "b [shuffled:3]",
    ]
    assert labels(["a [shuffled]"], "untrained") == ["a [shuffled]"]
    assert split("x y [untrained:12]") == ("x y", Control("untrained", 12))
    for plain in ("a", "a [trained]", "a[untrained]", " [untrained", "a [untrained:-1]"):
        assert split(plain) == (plain, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "really [untrained]").mkdir()
    assert split("really [untrained]") == ("really [untrained]", None)
    with pytest.raises(UserError, match="did you mean 'untrained'"):
        parse_controls("untraind")
    for seed in ("x", "-1", "1.5", "9" * 30):
        with pytest.raises(UserError, match="whole number"):
            parse_controls(f"shuffled:{seed}")


def test_a_control_is_loaded_by_name_and_reads_its_models_text(make_model, stories_file, tmp_path):
    card = {"data": str(stories_file)}
    directory = str(save_pretrained(make_model(), tmp_path / "mine", card))
    chosen = sources([directory, f"{directory} [untrained]"])
    own, control = (source.load("cpu") for source in chosen)
    assert control.name == chosen[1].name == "mine [untrained]"
    find = text_finder(chosen[1:], None, None, None)
    assert find(own).content == find(control).content
