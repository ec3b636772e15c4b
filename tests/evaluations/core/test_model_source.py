"""One way from a MODEL argument to a model: names, paths and models in memory."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model

from evaluations.core import hugging_face, model_tokenizer
from evaluations.core.model_source import ModelSource, load_model, sources, with_controls
from evaluations.core.origin import Origin
from evaluations.core.runner import describe_model
from evaluations.core.weights import weights_hash
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained


def attention_only(seed: int = 0, d_vocab: int = 40) -> HookedTransformer:
    """A two-layer attention-only model with an untied unembedding and no tokenizer."""
    torch.manual_seed(seed)
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_heads=2,
        d_head=8,
        n_ctx=24,
        d_vocab=d_vocab,
        attn_only=True,
        normalization_type="LN",
        device="cpu",
    )
    return HookedTransformer(config)


def gpt2(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=32,
        n_inner=24,
        vocab_size=len(tokenizer),
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def test_a_hooked_transformer_in_memory_stays_as_it_is():
    model = attention_only()
    model.train()
    loaded = load_model(model, dtype="float64")
    assert (loaded.name, loaded.spec, loaded.dtype) == ("model", "in memory", "float64")
    assert not loaded.model.training
    assert (model.training, model.W_E.dtype) == (True, torch.float32)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert loaded.weights_hash == weights_hash(model)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(loaded.model(tokens).float(), model.eval()(tokens))
    assert loaded.tokenizer.decode([3, 39]) == " 3 39"
    assert loaded.tokenizer_note == "it has no tokenizer: its tokens are shown as numbers"
    assert describe_model(loaded)["spec"] == "in memory"


def test_what_is_loaded_in_the_same_precision_shares_its_numbers():
    model = attention_only()
    loaded = load_model(model)
    assert loaded.model.W_E.data_ptr() == model.W_E.data_ptr()
    assert loaded.model is not model


def test_a_hugging_face_model_is_what_its_directory_is(tokenizer, tmp_path):
    model = gpt2(tokenizer)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    named = load_model(tmp_path / "saved")
    source = ModelSource.of(model.half(), tokenizer, name="mine")
    held = source.load()
    assert held.model.W_E.dtype == torch.float32
    assert model.transformer.wte.weight.dtype == torch.float16
    assert (held.name, held.spec, held.tokenizer_note) == ("mine", "in memory", None)
    assert held.configuration == named.configuration
    again = load_model(gpt2(tokenizer), tokenizer=tokenizer)
    assert again.weights_hash == named.weights_hash
    assert again.tokenizer.encode("Tom gave") == named.tokenizer.encode("Tom gave")
    assert source.outline.model.W_E.is_meta
    with pytest.raises(UserError, match="mine"):
        ModelSource.of(GPT2Model(model.config), tokenizer, name="mine").load()


def test_a_trained_model_in_memory_has_the_origin_of_its_card(make_model):
    model = make_model("local")
    model.card = {"data": "demo", "seed": 3, "steps": 9}
    source = ModelSource.of(model, name="mine")
    assert source.origin == Origin({"data": "demo", "seed": 3, "steps": 9}, "demo")
    loaded = source.load()
    assert (loaded.data, loaded.training["seed"]) == ("demo", 3)
    assert loaded.ablation["variant"] == "local"
    assert loaded.tokenizer_note is None
    assert ModelSource.of(attention_only()).origin == Origin()


def test_names_paths_and_loaded_models_give_one_model(model_directory):
    by_name, by_path = load_model(str(model_directory)), load_model(model_directory)
    assert by_name.weights_hash == by_path.weights_hash
    assert by_name.name == by_path.name == "tiny"
    assert load_model(by_name) is by_name
    source = ModelSource.of(by_name)
    assert ModelSource.of(source) is source
    assert (source.label, source.load(), source.outline) == ("tiny", by_name, by_name)


@pytest.mark.parametrize("many", [list, tuple, iter])
def test_one_or_several_models(many, model_directory):
    names = [str(model_directory), model_directory, attention_only()]
    found = sources(many(names))
    assert [source.label for source in found] == [*[str(model_directory)] * 2, "model"]
    for one in names:
        assert len(sources(one)) == 1
    assert [source.label for source in sources("demo:baseline")] == ["demo:baseline"]


def test_models_in_memory_of_one_name_are_told_apart_by_their_weights():
    one, other = attention_only(0), attention_only(1)
    assert {source.name for source in sources([one, other])} == {
        f"model {weights_hash(model)[:8]}" for model in (one, other)
    }
    assert [source.name for source in sources({"first": one, "second": other})] == [
        "first",
        "second",
    ]
    loaded = sources([one, other])[0].load()
    assert loaded.name == f"model {weights_hash(one)[:8]}"


def test_controls_of_a_model_in_memory():
    model = attention_only()
    own, control = with_controls(sources(model), "untrained:2")
    made = control.load()
    assert (made.name, control.name) == ("model [untrained:2]",) * 2
    assert made.control == {"kind": "untrained", "seed": 2, "of": own.load().weights_hash}
    assert made.weights_hash != own.load().weights_hash
    assert control.outline.name == "model"


@pytest.mark.parametrize("wrong", [3, None, [3], {"a": 3}, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_named(wrong):
    with pytest.raises(UserError, match="a model is a name, a Path, a HookedTransformer") as caught:
        sources(wrong)
    assert "\n" not in str(caught.value)


def test_no_model_is_refused():
    with pytest.raises(UserError, match="no model is given"):
        sources([])


def test_a_path_is_never_a_name_on_the_hub(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        load_model(tmp_path / "gpt2")


def test_a_name_that_stands_for_nothing_costs_no_other_source(model_directory):
    bad, good = sources(["demo:baselin", str(model_directory)])
    assert good.load().name == "tiny"
    for ask in (lambda: bad.name, lambda: bad.origin, bad.load):
        with pytest.raises(UserError, match="did you mean 'demo:baseline'"):
            ask()


def test_a_tokenizer_that_is_none_is_named():
    with pytest.raises(UserError, match="a tokenizer is a name or a fast tokenizer"):
        load_model(attention_only(), tokenizer=ByT5Tokenizer())


def test_where_a_model_lies(model_directory, tokenizer, tmp_path):
    gpt2(tokenizer).save_pretrained(tmp_path / "hf")
    run = save_pretrained(load_model(model_directory).model, tmp_path / "run" / "best").parent
    (run / "config.json").write_text('{"config": {"data": "demo"}}', encoding="utf-8")
    kinds = {
        "demo:baseline": "bundled",
        model_directory: "ours",
        tmp_path / "hf": "hugging face",
        run: "training run",
    }
    for given, kind in kinds.items():
        assert ModelSource.of(given).location.kind == kind
    assert ModelSource.of(attention_only()).location is None


def test_a_hugging_face_directory_is_read_once(tokenizer, tmp_path, monkeypatch):
    gpt2(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    times: Counter[str] = Counter()
    for module, name in (
        (hugging_face, "_read_configuration"),
        (model_tokenizer, "load_tokenizer"),
    ):
        read = getattr(module, name)

        def count(given, read=read, name=name):
            times[name] += 1
            return read(given)

        monkeypatch.setattr(module, name, count)
    source = ModelSource.of(tmp_path)
    assert source.outline.model.W_E.is_meta
    source.load()
    source.load(dtype="float64")
    assert times == {"_read_configuration": 1, "load_tokenizer": 1}
