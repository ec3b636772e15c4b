"""What should not be there: one line for each, and no other model or table pays for it."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.cli import main
from evaluations.core.excerpts import GatherConfig
from evaluations.core.units import find_units
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.draw import draw_graph, write_graphml
from evaluations.suite.n2g.evaluation import N2gData, evaluate
from evaluations.suite.n2g.substitutes import Neighbours
from evaluations.suite.n2g.vocabulary import Vocabulary
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained

CONFIG = N2gConfig(neurons_per_layer=5, examples=3, gather=GatherConfig(top=3, sample=3, random=3))


@pytest.fixture
def data(text, tmp_path):
    def make(key):
        vocabulary = Vocabulary.of(text.tokenizer)
        return N2gData(text, vocabulary, Neighbours.of(text, vocabulary), tmp_path / "n2g", key)

    return make


def _constant(model):
    for block in model.blocks:
        block.mlp.W_in.data[:] = 0
        block.mlp.b_in.data[:] = 1


def _silent(model):
    _constant(model)
    for block in model.blocks:
        block.mlp.b_in.data[:] = -9


def _huge(model):
    for block in model.blocks:
        block.mlp.W_in.data *= 1e30


def _tiny(model):
    for block in model.blocks:
        block.mlp.W_in.data *= 1e-30


@pytest.mark.parametrize("change", [_constant, _silent, _huge, _tiny])
def test_degenerate_units_have_figures_or_reasons(make_model, data, change):
    model = make_model()
    change(model)
    result = evaluate(model, data(change.__name__), CONFIG)
    for metric in result.metrics:
        assert metric.value is not None or metric.reasons, metric.name
        assert "nan" not in metric.reasons
        assert "infinite" not in metric.reasons
    found = {metric.name: metric for metric in result.metrics}
    if change is _silent:
        assert found["density"].value is None
        assert found["density"].reasons == {"no activating example": 10}
    if change is _constant:
        assert found["entropy"].interval is None  # ten equal values: no spread is known
        assert found["empty"].interval.low < 1


def test_a_word_that_breaks_the_model_is_one_line(planted):
    units = planted.units

    class Broken(type(units)):
        def read(self, model, tokens, layers=None, positions=None):
            found = super().read(model, tokens, layers, positions)
            found[0][tokens == 5] = np.nan
            return found

    planted.units = Broken(units.hooks, units.layers, units.sizes)
    with pytest.raises(UserError, match="not finite"):
        planted.read(np.array([[1, 5]]), np.array([0]), np.array([0]), "here")


def test_a_model_without_an_mlp_is_one_line(data, tokenizer):
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=1,
            d_model=8,
            n_heads=2,
            d_head=4,
            n_ctx=24,
            d_vocab=len(tokenizer),
            attn_only=True,
            device="cpu",
            seed=0,
        )
    )
    with pytest.raises(UserError, match=r"attention only, and no MLP neurons"):
        evaluate(model, data("attention"), CONFIG)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1",
        "1.2.3",
        "-1.2",
        "1.-2",
        "1.2e1",
        "a.b",
        "1.١",
        f"1.{'9' * 5000}",
        "../1.2",
        "1 .2",
        "0.64",
        "7.1",
    ],
)
def test_names_of_no_neuron_are_refused(make_model, name):
    with pytest.raises(UserError):
        find_units(make_model()).parse(name)


@pytest.mark.parametrize("examples", [0, -1, 1001, 10**11])
def test_numbers_of_examples_have_bounds(examples):
    with pytest.raises(UserError, match="examples must be at"):
        N2gConfig(examples=examples)


@pytest.fixture
def models(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(make_model(), tmp_path / "sound")
    broken = make_model(seed=1)
    broken.blocks[0].mlp.W_in.data[0, 0] = float("nan")
    save_pretrained(broken, tmp_path / "broken")
    return ["n2g", "broken", "sound", "--out", "out", "--neurons-per-layer", "4"]


def test_a_neuron_is_drawn_in_the_models_that_are_sound(models, stories_file, capsys, tmp_path):
    code = main([*models, "--data", str(stories_file), "--neuron", "1.2"])
    told = capsys.readouterr()
    assert code == 2
    assert "1 of 2 models failed: broken: " in told.err
    assert "not finite" in told.err
    assert "sound 1.2: " in told.out
    assert len(list((tmp_path / "out").glob("sound-*/n2g/1.2.*"))) == 4


def test_a_figure_that_fails_costs_no_table(models, stories_file, capsys, tmp_path, monkeypatch):
    def fail(*arguments):
        raise TypeError("None + float")

    monkeypatch.setattr("evaluations.suite.n2g.report.draw_sensitivity", fail)
    code = main([*models, "--data", str(stories_file)])
    told = capsys.readouterr()
    assert code == 2
    assert "Table 2" in told.out
    assert "F1 graph" in told.out
    assert "no figure (TypeError: None + float)" in told.err
    assert "1 of 2 models failed: broken: " in told.err
    assert "Traceback" not in told.err
    assert {path.suffix for path in (tmp_path / "out").glob("n2g-sound-*")} == {
        ".md",
        ".tex",
        ".csv",
    }


ODD = ("", "$a{$b", "\x1b[31m", "\x00", "<b>", "=1+1", "\u202e", "\U0001f600", "_x", "\\frac", "\n")


def test_odd_tokens_are_drawn_and_written(tmp_path):
    nodes = [
        {"id": i, "token": token, "depth": i % 3, "kind": "important", "activation": None}
        for i, token in enumerate(ODD)
    ]
    edges = [{"source": 1, "target": 0, "count": 1}]
    neuron = {"unit": "0.1", "excerpts": 1, "graph": {"nodes": nodes, "edges": edges}}
    draw_graph(neuron).savefig(tmp_path / "odd.png")
    path = write_graphml(tmp_path / "odd.graphml", neuron)
    assert len(nx.read_graphml(path)) == len(ODD)


def test_a_tokenizer_with_odd_tokens_has_a_text_for_each_id(make_tokenizer):
    vocabulary = Vocabulary.of(make_tokenizer)
    assert all(vocabulary.texts)
    assert len(vocabulary.texts) == 43
    assert vocabulary.texts[17] == "<17>"
    assert vocabulary.words([0, 2, 17, 42])
    assert json.loads(json.dumps(vocabulary.texts))


@pytest.fixture
def make_tokenizer():
    """Ids with holes; tokens of no characters, of a space, of a mark, of a control character."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens = {"": 0, " ": 1, "##": 2, "\x00": 3, "▁": 4, "\ufffd": 5, "a": 42, "<unk>": 6}
    backend = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "option",
    [
        "--activation=nan",
        "--activation=inf",
        "--activation=-1",
        "--activation=1e400",
        "--importance=0",
        "--importance=1",
        "--importance=",
        "--importance=*",
        "--seed=-1",
        f"--seed={2**70}",
        "--seed=é",
        "--examples=0",
        f"--examples={2**70}",
        "--stories=0",
        f"--stories={2**63}",
        f"--stories={2**70}",
        "--neurons-per-layer=0",
        "--neurons-per-layer=-1",
        "--neurons-per-layer=nan",
        "--hook=",
        "--hook=*",
        "--hook=é",
        "--hook=hook_embed",
        f"--hook={'a' * 5000}",
        "--hook=blocks.*.ln1.hook_scale",
        "--substitutes=",
        "--substitutes=é",
        "--substitutes=\x1b",
        f"--substitutes={'a' * 5000}",
        "--device=",
        "--device=é",
        "--device=meta",
    ],
)
def test_an_odd_option_is_one_line_and_nothing_is_written(option, models, stories_file, capsys):
    command = [one for one in models if one != "broken"]
    code = main([*command, "--data", str(stories_file), option])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert (code, line[:7]) == (2, "error: ")
    assert len(line) < 1200
    assert line.isprintable()
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
