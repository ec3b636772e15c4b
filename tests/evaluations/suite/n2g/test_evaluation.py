"""The whole evaluation on tiny models: figures, resumption, one neuron, the command."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections import Counter

import networkx as nx
import pytest
from scipy.stats import binomtest, ttest_1samp

from evaluations import tables
from evaluations.cli import main
from evaluations.core.excerpts import GatherConfig
from evaluations.core.record import read_records
from evaluations.core.units import find_units
from evaluations.suite.n2g.config import N2gConfig, Thresholds
from evaluations.suite.n2g.evaluation import N2gData, choose, neuron_graph
from evaluations.suite.n2g.evaluation import evaluate as neuron_graphs
from evaluations.suite.n2g.layer import NO_EXAMPLE, Explainer
from evaluations.suite.n2g.substitutes import Neighbours
from evaluations.suite.n2g.table import ROWS, graph_metrics
from evaluations.suite.n2g.vocabulary import Vocabulary
from sat_interp._util.errors import UserError

CONFIG = N2gConfig(neurons_per_layer=6, examples=4, gather=GatherConfig(top=4, sample=4, random=4))


@pytest.fixture
def data(text, tmp_path):
    vocabulary = Vocabulary.of(text.tokenizer)
    return N2gData(text, vocabulary, Neighbours.of(text, vocabulary), tmp_path / "n2g", "tiny")


def test_every_figure_of_table_2_is_there_with_its_error(make_model, data):
    result = neuron_graphs(make_model(), data, CONFIG)
    found = {metric.name: metric for metric in result.metrics}
    layers = [json.loads((data.directory / name).read_text()) for name in result.extra["files"]]
    assert [layer["layer"] for layer in layers] == [0, 1]
    neurons = [one for layer in layers for one in layer["neurons"]]
    assert len(neurons) == 12
    alive = [one for one in neurons if "metrics" in one]
    dead = [one for one in neurons if "metrics" not in one]
    assert found["density"].n == len(alive)
    assert found["density"].n_failed == len(dead)
    for name in (
        "density",
        "density_undirected",
        "transitivity",
        "edges_to_activation",
        "out_degree",
        "entropy",
        "diversity",
    ):
        values = [one["metrics"][name] for one in alive]
        assert found[name].value == pytest.approx(sum(values) / len(values))
        assert found[name].standard_error is not None
        assert found[f"{name}.layer1"].n == sum(one["unit"][0] == "1" for one in alive)
        edged = [one["metrics"][name] for one in alive if one["metrics"]["edges"]]
        assert found[f"{name}_nonempty"].n == len(edged)
    assert found["empty"].value == pytest.approx(1 - len(edged) / len(alive))
    assert found["tokens_per_unit"].value > 0
    for layer in layers:
        assert set(layer["cost"]["windows"]) <= {"prune", "saliency", "augment"}
    classes = sum((Counter(one["classes"]) for one in alive), Counter())
    assert result.extra["classes"] == dict(classes)
    assert [one["importance"] for one in result.extra["sensitivity"]] == [
        0.5,
        0.9,
        0.75,
        0.75,
        0.75,
    ]
    own = result.extra["sensitivity"][2]["metrics"]
    assert own["density"] == pytest.approx(found["density"].value)


SCORED = ("trie", "lookup", "lookup_windows", "lookup_published", "always")


def test_scores_are_over_the_same_units(make_model, data):
    result = neuron_graphs(make_model(), data, CONFIG)
    found = {metric.name: metric for metric in result.metrics}
    layers = [json.loads((data.directory / name).read_text()) for name in result.extra["files"]]
    neurons = [one for layer in layers for one in layer["neurons"] if "metrics" in one]
    counts = [one["scores"] for one in neurons]
    fires = [one for one in counts if one["trie"]["hits"] + one["trie"]["missed"]]
    both = [one for one in fires if all(one[name]["hits"] + one[name]["false"] for name in SCORED)]
    assert len(counts) > len(fires) > len(both) > 0
    for name in SCORED:
        for score in ("precision", "recall", "f1"):
            metric = found[f"{score}_{name}_predicting"]
            values = [_score(one[name], score) for one in both]
            assert metric.value == pytest.approx(sum(values) / len(values))
            assert metric.n == len(both)
            assert metric.n_failed == 12 - len(both)
        for score in ("recall", "f1"):
            values = [_score(one[name], score) for one in fires]
            assert found[f"{score}_{name}"].value == pytest.approx(sum(values) / len(values))
            assert found[f"{score}_{name}"].n == len(fires)
    silent = len(counts) - len(fires)
    assert found["f1_trie"].reasons["fires on no held-out token"] == silent
    for name in ("", "_windows", "_published"):
        for kind in ("", "_predicting"):
            gain = found[f"f1_trie{kind}"].value - found[f"f1_lookup{name}{kind}"].value
            assert found[f"f1_gain{name}{kind}"].value == pytest.approx(gain)
    predicts = sum(bool(one["trie"]["hits"] + one["trie"]["false"]) for one in fires)
    assert found["predicts"].value == pytest.approx(predicts / len(fires))


def _score(counts, score):
    """From the counts alone: 2 hits of twice the hits, the false and the missed for F1."""
    hits, false, missed = counts["hits"], counts["false"], counts["missed"]
    if score == "f1":
        return 2 * hits / (2 * hits + false + missed)
    return hits / (hits + (false if score == "precision" else missed))


def _unit(name, edges, f1=None):
    metrics = {row.name: float(edges) for row in ROWS}
    scores = {"f1": f1, "precision": f1, "recall": f1, "hits": 1, "false": 0, "missed": 0}
    return {
        "unit": name,
        "reason": None,
        "excerpts": 4,
        "unfaithful": 0,
        "metrics": {**metrics, "edges": edges},
        "scores": dict.fromkeys(SCORED, scores),
    }


def _of(units):
    layer = {
        "layer": 0,
        "neurons": units,
        "sensitivity": [],
        "cost": {"tokens": {}, "seconds": 0.0, "masked_model_seconds": 0.0},
    }
    return {metric.name: metric for metric in graph_metrics([layer])[0]}


def test_shares_have_wilson_intervals_and_few_units_none():
    found = _of([_unit(f"0.{i}", edges=int(i == 0), f1=0.5) for i in range(10)])["empty"]
    assert found.value == 0.9
    wilson = binomtest(9, 10).proportion_ci(0.95, method="wilson")
    assert (found.interval.low, found.interval.high) == pytest.approx((wilson.low, wilson.high))
    assert found.interval.high < 1
    few = _of([_unit("0.0", edges=3, f1=0.5), _unit("0.1", edges=10, f1=0.7)])
    assert few["edges_to_activation"].value == 6.5
    assert few["edges_to_activation"].n == 2
    assert few["edges_to_activation"].interval is few["empty"].interval is None


def test_intervals_of_means_are_students():
    edges = [1, 2, 4, 8, 16, 32]
    found = _of([_unit(f"0.{i}", edges=one, f1=0.5) for i, one in enumerate(edges)])["density"]
    low, high = ttest_1samp(edges, 0).confidence_interval()
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_an_interrupted_run_goes_on_with_the_next_layer(make_model, data, monkeypatch):
    asked = []
    whole = Explainer.layer

    def layer(self, units):
        asked.append(self.reader.layer)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return whole(self, units)

    monkeypatch.setattr(Explainer, "layer", layer)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        neuron_graphs(model, data, CONFIG)
    resumed = neuron_graphs(model, data, CONFIG)
    assert asked == [0, 1, 1]
    monkeypatch.setattr(Explainer, "layer", whole)
    for path in data.directory.iterdir():
        path.unlink()
    again = neuron_graphs(model, data, CONFIG)
    strip = lambda found: [m for m in found.metrics if "seconds" not in m.name]  # noqa: E731
    assert strip(resumed) == strip(again)


def test_a_damaged_layer_is_explained_again(make_model, data, caplog):
    model = make_model()
    first = neuron_graphs(model, data, CONFIG)
    path = data.directory / first.extra["files"][0]
    whole = path.read_text()
    odd = json.loads(whole)
    odd["neurons"][0] = {"unit": "0.1", "reason": None, "metrics": 3}
    for damaged in (
        whole[:100],
        "",
        "[]",
        "3",
        '{"neurons": 3}',
        '{"neurons": [{}]}',
        '{"neurons": []}',
        json.dumps(odd),
        "[" * 100_000,
        '{"a":' * 100_000,
    ):
        caplog.clear()
        path.write_text(damaged)
        assert neuron_graphs(model, data, CONFIG).extra["files"] == first.extra["files"]
        assert "computed again" in caplog.text, damaged[:50]
        assert len(json.loads(path.read_text())["neurons"]) == 6


def test_a_pipe_in_a_layers_place_is_not_waited_for(make_model, data, caplog):
    model = make_model()
    first = neuron_graphs(model, data, CONFIG)
    path = data.directory / first.extra["files"][0]
    path.unlink()
    os.mkfifo(path)
    assert neuron_graphs(model, data, CONFIG).metrics[:9] == first.metrics[:9]
    assert "not a file" in caplog.text


def test_other_thresholds_or_words_are_another_layer(make_model, data, text):
    units = find_units(make_model())
    other = N2gConfig(thresholds=Thresholds(importance=0.5))
    assert data.place(units, CONFIG, 0) != data.place(units, other, 0)
    assert data.place(units, CONFIG, 0) != data.place(units, CONFIG, 1)


def test_the_choice_of_units_is_drawn_and_the_same_for_all_models(make_model):
    units = find_units(make_model())
    first = choose(units, CONFIG)
    assert first == choose(find_units(make_model(seed=1)), CONFIG)
    assert first[0] != first[1]
    assert first[0] != list(range(6))
    assert choose(units, N2gConfig(neurons_per_layer=None))[0] == list(range(64))
    assert choose(units, N2gConfig(seed=1, neurons_per_layer=6)) != first


def test_one_neuron_is_that_of_its_layer_or_explained_alone(make_model, data):
    model = make_model()
    unit = choose(find_units(model), CONFIG)[1][0]
    alone = neuron_graph(model, data, CONFIG, f"1.{unit}")
    assert not data.directory.exists()
    neuron_graphs(model, data, CONFIG)
    assert neuron_graph(model, data, CONFIG, f"1.{unit}") == json.loads(json.dumps(alone))
    with pytest.raises(UserError, match="no neuron 1.64"):
        neuron_graph(model, data, CONFIG, "1.64")


def test_a_neuron_that_never_fires_is_counted_and_no_empty_graph(make_model, data):
    model = make_model()
    model.blocks[0].mlp.W_in.data[:] = 0
    model.blocks[0].mlp.b_in.data[:] = -1.0  # gelu is negative there
    silent = dataclasses.replace(data, model="silent")  # the gathered excerpts are kept by it
    result = neuron_graphs(model, silent, CONFIG)
    found = {metric.name: metric for metric in result.metrics}
    assert found["density.layer0"].value is None
    assert found["density.layer0"].reasons == {NO_EXAMPLE: 6}
    assert found["density"].n == found["density.layer1"].n
    assert result.extra["reasons"][NO_EXAMPLE] >= 6


def test_stories_of_one_token_are_no_trouble(make_model, tokenizer, tmp_path):
    from evaluations.core.text import evaluation_text

    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(json.dumps({"text": letter}) for letter in "abcdefghijk"))
    text = evaluation_text(tokenizer, str(path))
    assert text.lengths.max() == 2
    vocabulary = Vocabulary.of(tokenizer)
    data = N2gData(text, vocabulary, Neighbours.of(text, vocabulary), tmp_path / "n2g", "short")
    result = neuron_graphs(make_model(), data, CONFIG)
    assert next(m for m in result.metrics if m.name == "empty").value == 1.0


def test_figures_of_no_unit_do_not_exist():
    found = _of([])
    assert all(found[name].value is None for name in ("density", "empty", "f1_trie", "predicts"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"neurons_per_layer": 0},
        {"examples": 0},
        {"context": -1},
        {"thresholds": Thresholds(activation=1.0)},
        {"kept": 1.0},
    ],
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(UserError):
        N2gConfig(**wrong)


@pytest.fixture
def evaluate(model_directory, stories_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        quick = ["--data", str(stories_file), "--out", "res", "--neurons-per-layer", "5"]
        code = main(["n2g", str(model_directory), *quick, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_the_command_writes_table_2_in_four_formats(evaluate, tmp_path):
    code, out, _ = evaluate()
    assert code == 0
    assert "Table 2" in out
    assert "F1 graph" in out
    (record,) = read_records("res")[0]
    assert record.data["substitutes"] == "neighbours"
    assert record.config["thresholds"] == {"activation": 0.5, "importance": 0.75}
    stem = tmp_path / "res" / tables.stem("n2g", [record])
    files = {
        ending: stem.with_name(f"{stem.name}{ending}")
        for ending in (".md", ".tex", ".csv", ".png", ".svg", "-n2g-graphs.csv")
    }
    assert all(path.is_file() for path in files.values())
    markdown, latex = files[".md"].read_text(), files[".tex"].read_text()
    assert "| Neuron entropy, bits ↓ | tiny |" in markdown
    assert "graphs with edges only" in markdown
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 4
    assert "↓" not in latex
    assert "[" in markdown.split("Table 2")[1].split("\n")[4]
    assert "±" not in markdown + latex
    with files["-n2g-graphs.csv"].open() as file:
        lines = {line["metric"]: line for line in csv.DictReader(file)}
    assert float(lines["entropy"]["layer_1"]) == record.metric("entropy.layer1").value


def test_a_control_is_a_row_of_its_own(evaluate, tmp_path):
    code, out, _ = evaluate("--control", "untrained")
    assert code == 0
    records = read_records("res")[0]
    names = {record.model["name"]: record.model.get("control") for record in records}
    assert set(names) == {"tiny", "tiny [untrained]"}
    assert names["tiny [untrained]"]["kind"] == "untrained"
    assert "tiny [untrained]" in out


def test_the_command_draws_one_neuron(evaluate, tmp_path):
    code, out, _ = evaluate("--neuron", "1.3")
    assert code == 0
    (directory,) = (tmp_path / "res").glob("tiny-*/n2g")
    names = {path.name for path in directory.iterdir()}
    assert names == {"1.3.png", "1.3.svg", "1.3.graphml", "1.3.graph"}
    told = json.loads((directory / "1.3.graph").read_text())
    assert told["unit"] == "1.3"
    graph = nx.read_graphml(directory / "1.3.graphml")
    assert len(graph) == len(told["graph"]["nodes"])
    assert "1.3.png" in out
    assert read_records("res")[0] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--neuron", "3"), "LAYER.NUMBER"),
        (("--neuron", "9.1"), "no neuron 9.1"),
        (("--substitutes", "no-such-directory"), "no masked language model"),
        (("--neurons-per-layer", "0"), "at least 1"),
        (("--neurons-per-layer", "some"), "neurons"),
        (("--activation", "2"), "between 0 and 1"),
        (("--hook", "blocks.*.mlp.hook_pots"), "did you mean"),
    ],
)
def test_mistakes_are_one_line(evaluate, arguments, message):
    code, _, err = evaluate(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
