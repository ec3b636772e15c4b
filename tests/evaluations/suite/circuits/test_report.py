"""Tables, figures and files of circuits, from records alone."""

from __future__ import annotations

import dataclasses
import io

import networkx as nx
import pytest
import torch

from evaluations.core.record import Interval, Metric
from evaluations.suite.circuits.graph import Graph, circuit_to_dict, read_circuit
from evaluations.suite.circuits.report import FIGURES, _panel, draw_curves, files, tables, warnings
from evaluations.tables import draw, markdown, rows, write

GRAPH = Graph(2, 2)
KEPT = torch.arange(GRAPH.n_edges) % 3 == 0


def write_report(records, out, stem="acdc"):
    """Everything a command writes of the records."""
    written = [*write(tables(records), out, stem), *files(records, out, stem)]
    return [*written, *draw.write(FIGURES, records, out, stem)[0]]


@pytest.fixture
def record(make_record):
    def make(name: str, weights: str = "ab" * 32, mark: str | None = None, n: int = 10):
        interval = Interval(0.1, 0.9, 0.95, "by hand")
        metrics = [
            Metric("edges", "Edges", float(n), n=79),
            Metric("accuracy", "Accuracy", 0.75, interval=interval),
            Metric("faithfulness", "F", None, n_failed=3, reasons={"no difference": 3}),
            Metric("random_faithfulness", "R", 0.2, interval=interval),
        ]
        value = {"value": 0.8, "standard_error": 0.1, "interval": None}
        extra = {
            "circuit": circuit_to_dict(GRAPH, KEPT, torch.rand(GRAPH.n_edges).double()),
            "tau": 0.03,
            "marked": mark,
            "sweep": [
                {"tau": 0.03, "edges": n, "kl": 0.5, "faithfulness": value},
                {"tau": 9.0, "edges": 0, "kl": 5.0, "faithfulness": {"value": None}},
            ],
            "curve": [
                {"share": 0.001, "edges": 0, "faithfulness": 0.0, "kl": 5.0},
                {"share": 0.5, "edges": 40, "faithfulness": 0.9, "kl": 0.1},
                {"share": 1.0, "edges": 79, "faithfulness": 1.0, "kl": 0.0},
            ],
        }
        made = make_record(name, weights, evaluation="acdc", metrics=metrics, extra=extra)
        return dataclasses.replace(made, data={"spec": "ioi"}, config={"method": "acdc"})

    return make


def test_tables_figures_and_circuits_are_written(record, tmp_path):
    records = [record("a"), record("b", "cd" * 32, "does not do the task; nothing")]
    written = write_report(records, tmp_path)
    assert all(path.stat().st_size for path in written)
    # nothing ends in .json: what does, below the directory of the records, is a record
    assert {str(path.relative_to(tmp_path)) for path in written} == {
        "acdc.md",
        "acdc.tex",
        "acdc.csv",
        "acdc.png",
        "acdc.svg",
        "acdc-curves.png",
        "acdc-curves.svg",
        "acdc/a.circuit",
        "acdc/a.graphml",
        "acdc/b.circuit",
        "acdc/b.graphml",
    }
    assert torch.equal(read_circuit(tmp_path / "acdc/a.circuit", GRAPH), KEPT)
    assert nx.read_graphml(tmp_path / "acdc/a.graphml").number_of_edges() == int(KEPT.sum())
    table = (tmp_path / "acdc.md").read_text()
    assert "0.75 [0.10, 0.90]" in table
    assert "Not measured: Faithfulness (no difference)." in table
    assert "| b † |" in table
    assert "| a |" in table


def test_a_model_that_cannot_do_the_task_is_told_so(record):
    able, unable = record("able"), record("unable", "cd" * 32, "does not do the task; nothing")
    table = tables([able, unable])[0]
    assert [row[0].text for row in table.rows] == ["able", "unable †"]
    assert warnings([able, unable]) == ["unable does not do the task; nothing"]
    assert "† acdc: does not do the task (unable)." in markdown(table)
    assert _panel(rows([unable])[0]).warning == "does not do the task\nnothing"
    assert _panel(rows([able])[0]).title == f"able: 10 of {GRAPH.n_edges} edges"


def test_curves_have_a_line_and_marks_for_each_model(record):
    figure = draw_curves(rows([record("a", n=10), record("b", "cd" * 32, n=20)]))
    left, right = figure.axes
    for axes, at_half in ((left, 0.9), (right, 0.1)):
        lines = [line for line in axes.lines if list(line.get_xdata()) == [40, 79]]
        assert len(lines) == 2
        assert lines[0].get_ydata()[0] == at_half
        assert lines[0].get_color() != lines[1].get_color()
    # the empty circuit has no place on a logarithmic axis, and no faithfulness no mark
    marks = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    assert marks["a"] == [10]
    assert marks["b"] == [20]


def test_many_models_are_spread_over_several_figures(record, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(draw, "_save", lambda figure, path: drawn.update({path.name: figure}) or [])
    write_report([record(f"m{i}", f"{i}{i}" * 32) for i in range(5)], tmp_path, "acdc-ioi")
    assert {name: len(figure.axes) for name, figure in drawn.items()} == {
        "acdc-ioi-1": 4,
        "acdc-ioi-2": 1,
        "acdc-ioi-curves": 2,
    }


def test_empty_circuits_have_curves_too(record):
    (row,) = rows([record("a", n=0)])
    row.records["acdc"].extra["curve"] = []
    draw_curves([row]).savefig(io.BytesIO(), format="svg")


def test_records_of_other_evaluations_are_passed_over(make_record, tmp_path):
    assert write_report([make_record()], tmp_path) == []
