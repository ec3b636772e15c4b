"""The public face: what a notebook does with the evaluations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import networkx as nx
import pandas as pd
import pytest

import evaluations as ev
from evaluations.registry import SPECS
from tests.evaluations.suite.circuits.cases import doable, task
from tests.evaluations.suite.circuits.tiny import tiny_model


@pytest.fixture
def lm(make_model, tokenizer):
    """lm of a model in memory, on a list of strings; keyword arguments are options."""
    model = make_model("local")

    def run(**options):
        texts = ["Tom gave the ball to Anna.", "A cat."]
        return ev.lm(model, data=texts, tokenizer=tokenizer, resamples=10, **options)

    return run


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = (
        "import time, sys; t = time.perf_counter(); import evaluations as ev; "
        "names = dir(ev); s = time.perf_counter() - t; "
        "print(s < 1, [m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules], *names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    quick, heavy, *names = done.stdout.split()
    assert (quick, heavy) == ("True", "[]")
    wanted = {"load_model", "lm", "gates", "acdc", "sae", "neurons", "n2g", "report"}
    assert set(names) >= wanted | {"results_frame", "Graph"}


def test_every_public_name_is_there_and_documented():
    for name in ev.__all__:
        assert getattr(ev, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ev.nonsense


def test_a_function_has_the_options_of_its_command():
    import inspect

    for spec in SPECS:
        parameters = inspect.signature(getattr(ev, spec.name)).parameters
        assert list(parameters)[0] == "models"
        assert {"out", "force", "device", "dtype", "seed"} <= set(parameters)


def test_a_model_and_texts_in_memory_give_a_result_and_no_file(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = lm()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")
    assert isinstance(result.frame, pd.DataFrame)
    assert {"perplexity", "ablated_perplexity"} <= set(result.frame["metric"])
    assert result.record.metric("perplexity").value > 1
    assert isinstance(result.plot(), matplotlib.figure.Figure)
    assert "<table" in result._repr_html_()
    assert len(repr(result)) < 100


def test_out_keeps_records_and_reads_them_again(lm, tmp_path):
    first = lm(out=str(tmp_path / "res"))
    (path,) = (tmp_path / "res").glob("*/lm-*.json")
    again = lm(out=str(tmp_path / "res"))
    assert again.record == first.record
    assert len(ev.results_frame(str(tmp_path / "res"))) == len(first.frame)
    assert str(Path.home()) not in path.read_text()


def test_one_name_is_one_model_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ev.UserError, match="nothing-here"):
        ev.lm("nothing-here")
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_is_one_line(make_model):
    with pytest.raises(ev.UserError, match="unknown option 'storys'.*stories"):
        ev.lm(make_model(), storys=3)
    with pytest.raises(ev.UserError, match="stories must be a whole number, not 'x'"):
        ev.lm(make_model(), stories="x")
    with pytest.raises(ev.UserError, match="examiner must be one of lookup, openai, local"):
        ev.neurons(make_model(), examiner="gpt")


def test_one_model_that_fails_costs_no_other_its_result(make_model, tokenizer, caplog):
    texts = ["Tom gave the ball to Anna.", "A cat."]
    models = [make_model(), make_model("local")]
    result = ev.gates(
        models, data=texts, tokenizer=tokenizer, resamples=5, probe_stories=0, picture_tokens=2
    )
    assert len(result.records) == 1
    assert list(result.failures.values()) == ["this model has no gates: it is an ordinary one"] or (
        "no gates" in next(iter(result.failures.values()))
    )
    assert "no gates" in caplog.text


def test_a_circuit_is_a_graph():
    model = tiny_model("gpt-2")
    quick = {"bootstrap": 0, "random_circuits": 0, "null_draws": 0, "no_sweep": True}
    result = ev.acdc(model, task=doable(model, task()), tau=1e-4, **quick)
    (graph,) = result.graphs.values()
    assert isinstance(graph, nx.MultiDiGraph)
    assert graph.number_of_edges() == result.record.metric("edges").value
    assert list(result.details.columns)[:3] == ["model", "source", "destination"]


def test_neurons_and_graphs_are_frames(make_model, tokenizer, stories_file):
    model, more = make_model(), {"data": str(stories_file), "tokenizer": tokenizer}
    scores = ev.neurons(model, sample=3, resamples=5, **more).details
    assert {"model", "layer", "index", "simulation"} <= set(scores.columns)
    assert len(scores) == 3 * model.cfg.n_layers
    graphs = ev.n2g(model, neurons_per_layer=2, **more).details
    assert {"model", "layer", "index"} <= set(graphs.columns)
