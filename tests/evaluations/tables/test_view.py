from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from evaluations.core.record import Interval, Metric
from evaluations.suite.lm.report import LANGUAGE
from evaluations.tables import Column, Layout, csv_text, make_table, make_tables, markdown, rows
from evaluations.tables.view import number

LAYOUT = Layout(
    "a-table",
    "A table",
    (
        Column("lm", "perplexity", "Perplexity", 2, interval=True),
        Column("acdc", "edges", "Edges", 0),
    ),
)


def shown(layout, records) -> str:
    return markdown(make_table(layout, records))


def gated(make_record, name, variant, k, gates="learned"):
    ablation = {"variant": variant, "k_attention": k, "gates": gates}
    model = {"name": name, "spec": name, "weights_hash": name * 8, "ablation": ablation}
    return make_record(name, model=model)


def test_baselines_come_first_then_variants_by_k_then_controls(make_record):
    records = [
        gated(make_record, "g1", "global", 1),
        gated(make_record, "l4", "local", 4),
        gated(make_record, "l1r", "local", 1, "random"),
        gated(make_record, "l1", "local", 1),
        make_record("base"),
    ]
    assert [row.model for row in rows(records)] == ["base", "l1", "l1r", "l4", "g1"]


def test_what_fills_an_empty_cell_is_below_the_table(make_record):
    table = make_table(LAYOUT, [make_record("a model")])
    assert table.commands == ["sat-eval acdc 'a model'"]
    assert [cell.text for cell in table.rows[0]] == ["a model", "12.50", "–"]


def test_cells_show_interval_reason_and_failures(make_record):
    interval = Interval(11.0, 14.0, 0.95, "bootstrap")
    metric = make_record().metrics[0]
    cells = {
        "12.50 [11.00, 14.00]": replace(metric, interval=interval),
        "12.50 *": replace(metric, n_failed=2),
        "n/a": replace(metric, value=float("nan")),
    }
    for cell, changed in cells.items():
        table = make_table(LAYOUT, [make_record(metrics=[changed]), make_record("b", "cd" * 32)])
        assert cell in [row[1].whole for row in table.rows]
    assert "n/a: Perplexity of tiny (nan)." in table.notes


def test_headings_point_to_what_is_better(make_record):
    assert "Perplexity ↓" in shown(LAYOUT, [make_record()])
    better = Metric("perplexity", "x", 1.0, direction="higher")
    assert "Perplexity ↑" in shown(LAYOUT, [make_record(metrics=[better])])


def test_the_newest_record_counts_and_namesakes_are_told_apart(make_record):
    old = make_record(started="2025-01-01T00:00:00+00:00", metrics=[])
    new, other = make_record(), make_record(weights="cd" * 32)
    found = rows([new, old, other])
    assert len(found) == 2
    assert {row.model for row in found} == {"tiny abababab", "tiny cdcdcdcd"}
    assert all(row.records["lm"].metrics for row in found)


def test_models_scored_on_different_text_are_pointed_out(make_record):
    data = {"spec": "demo", "split": "validation", "content": "a", "n_stories": 5, "n_tokens": 70}
    same = [make_record("a", data=data), make_record("b", weights="cd" * 32, data=data)]
    assert "demo, validation split: 5 stories, 70 tokens." in shown(LAYOUT, same)
    other = make_record("b", weights="cd" * 32, data={**data, "content": "b", "n_tokens": 71})
    assert "Not all models were scored on the same tokens" in shown(LAYOUT, [same[0], other])


def test_markdown_is_a_table(make_record):
    lines = shown(LAYOUT, [make_record("a|b")]).splitlines()
    assert lines[2:5] == [
        "| Model | Perplexity ↓ | Edges |",
        "| :-- | --: | --: |",
        "| a\\|b | 12.50 | – |",
    ]


def test_csv_has_full_precision_and_empty_cells(make_record):
    metric = replace(make_record().metrics[0], value=1 / 3)
    (line,) = csv.DictReader(
        io.StringIO(csv_text(make_table(LAYOUT, [make_record(metrics=[metric])])))
    )
    assert float(line["perplexity"]) == 1 / 3
    assert line["perplexity_se"] == "0.25"
    assert line["perplexity_n"] == "100"
    assert line["edges"] == ""


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (12.345, 2, "12.35"),
        (0.00012, 3, "0.00012"),
        (0.0, 2, "0.00"),
        (5e7, 2, "5e+07"),
        (1234.5, 1, "1,234.5"),
        (30.0, 0, "30"),
    ],
)
def test_numbers(value, digits, text):
    assert number(value, digits) == text


def test_the_language_tables_name_metrics_that_exist(make_model, text):
    from evaluations.suite.lm.config import LanguageConfig
    from evaluations.suite.lm.evaluation import evaluate

    found = evaluate(make_model("local"), text, LanguageConfig(resamples=5))
    names = {metric.name for metric in found.metrics}
    assert {column.metric for layout in LANGUAGE for column in layout.columns} <= names


def test_a_column_no_model_has_for_one_reason_is_told_beneath(make_record):
    untaken = Metric("edges", "x", None, reasons={"--bootstrap N": 1}, n_failed=1)
    layout = Layout("t", "A table", (LAYOUT.columns[0], Column("lm", "edges", "Edges", 0)))
    records = [make_record(name, metrics=[*make_record().metrics, untaken]) for name in "ab"]
    text = " ".join(shown(layout, records).split())
    assert "Not measured: Edges (--bootstrap N)." in text
    assert "n/a" not in text
    other = make_record("c", metrics=[*make_record().metrics, Metric("edges", "x", 3.0)])
    text = shown(layout, [*records, other])
    assert "n/a: Edges of a, Edges of b (--bootstrap N)." in text
    assert "Not measured: " not in text


def test_what_no_record_knows_of_is_left_out(make_record):
    """An option nobody asked for has no column; an evaluation nobody ran keeps its own."""
    columns = (*LAYOUT.columns, Column("lm", "ablated_perplexity", "Ablated"))
    layout = Layout("a-table", "A table", columns)
    table = make_table(layout, [make_record(), make_record("b", "cd" * 32)])
    assert [column.title for column in table.columns] == ["Model", "Perplexity", "Edges"]
    assert table.commands == ["sat-eval acdc b tiny"]
    nothing = Layout("nothing", "Nothing", (Column("lm", "ablated_perplexity", "Ablated"),))
    assert [one.name for one in make_tables([layout, nothing], [make_record()])] == ["a-table"]
    metric = replace(make_record().metrics[0], name="ablated_perplexity")
    one_has_it = [make_record(metrics=[metric]), make_record("b", "cd" * 32)]
    assert [row[-1].text for row in make_table(layout, one_has_it).rows] == ["–", "12.500"]


def test_columns_with_other_intervals_are_told_apart(make_record):
    metric = make_record().metrics[0]
    layout = Layout("t", "A table", tuple(replace(LAYOUT.columns[0], metric=name) for name in "ab"))
    metrics = [
        replace(metric, name="a", interval=Interval(11.0, 14.0, 0.95, "Wilson")),
        replace(metric, name="b", interval=Interval(11.0, 14.0, 0.95, "bootstrap")),
    ]
    text = " ".join(shown(layout, [make_record(metrics=metrics)]).split())
    assert "In brackets: 95%, Wilson (Perplexity); 95%, bootstrap (Perplexity)." in text
