from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)
from transformers.utils import logging as transformers_logging

from evaluations.core import hugging_face
from evaluations.core.model_source import ModelSource, load_model
from evaluations.core.models import COSMETIC, evaluation_mode, prepared
from evaluations.core.runner import model_key
from evaluations.core.text import evaluation_text
from evaluations.core.weights import weights_hash
from evaluations.suite.lm import SPEC
from evaluations.suite.lm.config import LanguageConfig
from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import train_bpe, vocabulary_hash
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.conftest import STORIES
from tests.evaluations.toy import run_on


@pytest.fixture(autouse=True)
def _no_progress_bars():
    transformers_logging.disable_progress_bar()


def gpt2(tokenizer, **settings) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "n_inner": 24,
        "initializer_range": 0.3,
        "vocab_size": len(tokenizer),
    }
    return GPT2LMHeadModel(GPT2Config(**{**shape, **settings})).eval()


def gpt_neo(tokenizer) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=32,
        window_size=4,
        attention_types=[[["global", "local"], 1]],
        vocab_size=len(tokenizer),
        initializer_range=0.3,
    )
    return GPTNeoForCausalLM(config).eval()


@pytest.mark.parametrize("make", [gpt2, gpt_neo])
def test_hugging_face_directories_compute_what_they_did(make, tokenizer, tmp_path):
    original = make(tokenizer)
    directory = tmp_path / "llama-like-name"  # TransformerLens would take it for a Llama
    original.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    loaded = load_model(str(directory), device="cpu")
    tokens = torch.randint(len(tokenizer), (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(tokens), original(tokens).logits, rtol=0, atol=1e-4)
    assert loaded.name == "llama-like-name"
    assert loaded.tokenizer.encode("Tom gave") == tokenizer.encode("Tom gave")
    assert loaded.ablation is None
    assert loaded.data is None
    # unprocessed: the embedding is the original's own, neither folded nor centred
    assert torch.equal(loaded.model.W_E, original.transformer.wte.weight)


def test_a_conversion_that_computes_something_else_is_refused(tokenizer, tmp_path, monkeypatch):
    gpt2(tokenizer).save_pretrained(tmp_path / "hf")
    true_sizes = hugging_face._true_sizes

    def spoil(cfg, state):
        true_sizes(cfg, state)
        cfg.use_attn_scale, cfg.attn_scale = False, 1.0

    monkeypatch.setattr(hugging_face, "_true_sizes", spoil)
    with pytest.raises(UserError, match="does not compute what the model does"):
        hugging_face.Decoder.of(tmp_path / "hf").load()


def test_a_window_beyond_the_first_tokens_is_compared_too(tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=96,
        window_size=40,
        attention_types=[[["global", "local"], 1]],
        vocab_size=len(tokenizer),
        initializer_range=0.3,
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "neo")
    assert hugging_face.Decoder.of(tmp_path / "neo").load().cfg.window_size == 40
    true_sizes = hugging_face._true_sizes

    def widen(cfg, state):
        true_sizes(cfg, state)
        cfg.window_size = 90

    monkeypatch.setattr(hugging_face, "_true_sizes", widen)
    with pytest.raises(UserError, match="does not compute what the model does"):
        hugging_face.Decoder.of(tmp_path / "neo").load()


def test_code_that_comes_with_a_model_is_refused(tokenizer, tmp_path, monkeypatch):
    gpt2(tokenizer).save_pretrained(tmp_path / "hf")
    load = AutoModelForCausalLM.from_pretrained
    told = {}

    def remember(*arguments, **settings):
        told.update(settings)
        return load(*arguments, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
    hugging_face.Decoder.of(tmp_path / "hf").load()
    assert told["trust_remote_code"] is False


def test_encoders_and_damaged_weights_are_refused(tokenizer, tmp_path):
    bert = BertForMaskedLM(
        BertConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            vocab_size=20,
            is_decoder=True,
        )
    )
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert"):
        load_model(str(tmp_path / "bert"))
    gpt2(tokenizer).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load a model from"):
        load_model(str(tmp_path / "cut"))


def test_a_missing_tokenizer_is_asked_for(tokenizer, tmp_path):
    gpt2(tokenizer).save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "tokens")
    with pytest.raises(UserError, match="--tokenizer"):
        load_model(str(tmp_path / "hf"))
    loaded = load_model(str(tmp_path / "hf"), tokenizer=str(tmp_path / "tokens"))
    assert len(loaded.tokenizer) == len(tokenizer)


def test_gpt2s_own_vocabulary_needs_no_tokenizer_files(tokenizer, tmp_path, caplog):
    gpt2(tokenizer, vocab_size=50_257, n_embd=4, n_head=1).save_pretrained(tmp_path / "hf")
    assert load_model(str(tmp_path / "hf")).tokenizer.encode("Once") == [7454]
    assert "using GPT-2's" in caplog.text


def test_another_tokenizer_than_the_models_own_is_noted(make_model, tokenizer, tmp_path, caplog):
    save_pretrained(make_model(), tmp_path / "ours")
    assert load_model(str(tmp_path / "ours")).tokenizer_note is None
    tokenizer.save_pretrained(tmp_path / "same")
    assert (
        load_model(str(tmp_path / "ours"), tokenizer=str(tmp_path / "same")).tokenizer_note is None
    )
    assert not caplog.records
    # as many tokens, other ones: nothing but their hashes tells them apart
    other = train_bpe([story.upper() for story in STORIES], 300)
    assert len(other) == len(tokenizer)
    other.save_pretrained(tmp_path / "other")
    loaded = load_model(str(tmp_path / "ours"), tokenizer=str(tmp_path / "other"))
    assert vocabulary_hash(tokenizer) in loaded.tokenizer_note
    assert vocabulary_hash(other) in loaded.tokenizer_note
    (warning,) = caplog.messages
    assert loaded.tokenizer_note in warning
    assert "\n" not in warning


def test_a_tokenizer_of_another_size_is_noted(make_model, tokenizer, tmp_path):
    directory = save_pretrained(make_model(), tmp_path / "ours")
    train_bpe(STORIES[:3], 270).save_pretrained(directory)
    note = load_model(str(directory)).tokenizer_note
    assert f"the model {len(tokenizer)} rows" in note


def test_the_steps_of_a_run_are_those_after_which_the_model_was_saved(make_model, tmp_path, caplog):
    run = tmp_path / "run"
    save_pretrained(make_model(), run / "best", card={"steps": 250, "data": "a.txt"})
    config = {
        "data": "/some/where/a.txt,/else/b.txt:story",
        "validation": "/some/v.txt",
        "steps": 500,
        "out": "/home/me/run",
        "tokenizer": "/home/me/tokens",
    }
    (run / "config.json").write_text(json.dumps({"config": config}))
    cut = load_model(str(run))
    assert (cut.training["steps"], cut.training["planned_steps"]) == (250, 500)
    assert cut.training["finished"] is False
    assert "run: its training has not finished" in caplog.text
    assert cut.data == "/some/where/a.txt,/else/b.txt:story"  # to be read again
    assert cut.validation == "/some/v.txt"
    assert "/" not in json.dumps(cut.training)
    (run / "summary.json").write_text("{}")
    caplog.clear()
    assert load_model(str(run)).training["finished"] is True
    assert not caplog.records


def test_a_matched_run_tells_the_length_that_was_chosen(make_model, tmp_path):
    run = tmp_path / "matched"
    config = {"data": "demo", "steps": 500, "match_perplexity": 3.0}
    save_pretrained(make_model(), run / "model")
    (run / "config.json").write_text(json.dumps({"config": config}))
    (run / "summary.json").write_text(json.dumps({"match": {"steps": 130}}))
    told = load_model(str(run)).training
    assert (told["steps"], told["planned_steps"], told["match_perplexity"]) == (130, 500, 3.0)


def test_a_training_run_gives_its_best_model_and_its_data(make_model, tmp_path):
    run = tmp_path / "my-run"
    save_pretrained(make_model(seed=1), run / "model")
    config = {"data": "demo:300", "validation": None, "seed": 3, "preset": "demo"}
    (run / "config.json").write_text(json.dumps({"config": config}))
    last = load_model(str(run))
    save_pretrained(make_model("local", seed=2), run / "best")
    best = load_model(str(run))
    assert (last.name, best.name) == ("my-run", "my-run")
    assert last.weights_hash == weights_hash(make_model(seed=1))
    assert best.weights_hash == weights_hash(make_model("local", seed=2))
    assert best.ablation["k_neurons"] == 5
    assert (best.data, best.validation) == ("demo:300", None)
    assert best.training == {"data": "demo:300", "seed": 3, "preset": "demo", "finished": False}
    assert load_model(str(run / "model")).name == "my-run"


def test_precision_changes_the_computation_not_the_hash(make_model, tokenizer):
    wide, narrow = (prepared(make_model(), "x", tokenizer, "cpu", d) for d in (None, "float32"))
    assert narrow.model.W_E.dtype == torch.float32
    assert wide.weights_hash == narrow.weights_hash
    assert wide.shape["dtype"] == "float64"
    assert wide.shape != narrow.shape


def test_loaded_models_keep_no_gradients(model_directory):
    model = load_model(str(model_directory)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert math.isfinite(float(model(torch.tensor([[1, 2]])).sum()))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "MODEL is empty"),
        ("demo:baselin", "did you mean 'demo:baseline'"),
        ("./nowhere/at/all", "there is no such directory"),
        ("someone/nothing", "Hugging Face hub"),
        ("demo-baseline", "did you mean 'demo:baseline'"),
    ],
)
def test_wrong_names_get_a_line_and_a_suggestion(spec, told):
    with pytest.raises(UserError, match=told) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_a_sibling_is_suggested(model_directory):
    with pytest.raises(UserError, match=f"did you mean '{model_directory}'"):
        load_model(str(model_directory) + "y")


def test_an_impossible_device_is_named(model_directory):
    with pytest.raises(UserError, match="device 'toaster' cannot be used"):
        load_model(str(model_directory), device="toaster")


def _other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return ["other"]


def test_every_field_of_the_configuration_is_part_of_the_model_but_the_cosmetic(
    make_model, tokenizer
):
    def key(model):
        return model_key(prepared(model, "x", tokenizer, "cpu"))

    model = make_model()
    before, fields = key(model), dict(vars(model.cfg))
    assert fields.keys() >= COSMETIC, "a field that TransformerLens no longer has"
    for name, value in fields.items():
        setattr(model.cfg, name, _other(value))
        assert (key(model) == before) == (name in COSMETIC), name
        setattr(model.cfg, name, value)
    assert key(model) == before
    model.cfg.something_new = 1
    assert key(model) != before


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, {}),
        ({"layer_norm_epsilon": 1e-3}, {}),
        ({"activation_function": "relu"}, {}),
    ],
)
def test_equal_weights_of_another_configuration_are_another_model(
    one, two, tokenizer, stories_file, tmp_path
):
    models = []
    for number, settings in enumerate((one, two)):
        model = gpt2(tokenizer, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        directory = tmp_path / str(number)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        models.append(str(directory))

    def text(loaded):
        return evaluation_text(loaded.tokenizer, str(stories_file))

    config = LanguageConfig(resamples=0, activation_stories=0)
    outcome = run_on(SPEC, models, text, config, tmp_path / "out")
    first, second = outcome.records
    assert outcome.skipped == 0
    assert first.model["weights_hash"] == second.model["weights_hash"]
    assert first.model["configuration"] != second.model["configuration"]
    assert first.metric("loss").value != second.metric("loss").value
    assert run_on(SPEC, models, text, config, tmp_path / "out").skipped == 2


def test_a_tokenizer_that_is_not_the_models_is_told_whatever_its_size(
    make_model, tokenizer, tmp_path, caplog
):
    directory = save_pretrained(make_model(), tmp_path / "tiny")
    other = train_bpe([story.upper() for story in STORIES], len(tokenizer))
    other.save_pretrained(tmp_path / "other")
    assert load_model(str(directory)).tokenizer_note is None
    given = load_model(str(directory), tokenizer=str(tmp_path / "other"))
    assert "is not the one the model was trained with" in given.tokenizer_note
    assert caplog.text.count("not the one") == 1
    caplog.clear()
    other.save_pretrained(directory)
    loaded = load_model(str(directory))
    assert "is not the one the model was trained with" in loaded.tokenizer_note
    assert caplog.text.count("not the one") == 1
    assert ModelSource.of(str(directory)).outline.tokenizer_note == loaded.tokenizer_note
    tokenizer.save_pretrained(tmp_path / "right")
    assert load_model(str(directory), tokenizer=str(tmp_path / "right")).tokenizer_note is None


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluation_mode_ends_with_the_block_errors_included(make_model, was_training):
    model = make_model().train(was_training)
    with evaluation_mode(model):
        assert not model.training
    assert model.training == was_training
    with contextlib.suppress(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.training == was_training
