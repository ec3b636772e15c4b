"""A record's ``extra["health"]`` is seen in every table that shows a figure of it."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from evaluations.comparison.paper_tables import differences, models_table, table_1, table_2, table_3
from evaluations.comparison.seeds import groups
from evaluations.comparison.selection import models
from evaluations.core.health import phrases
from evaluations.suite.lm.report import LANGUAGE
from evaluations.tables import csv_text, html, latex, make_table, markdown, terminal
from tests.evaluations.comparison.study_records import gates, lm, made

PHRASE = "CE interval wider than the difference"
L4 = {"ablation": gates("local", 4)}


def sick(record, phrase=PHRASE):
    return dataclasses.replace(record, extra={**record.extra, "health": [phrase]})


@pytest.fixture
def records():
    return [
        lm("base", 0, 3.0),
        sick(lm("gated", 0, 2.0, **L4)),
        lm("other", 0, 2.5, ablation=gates("global", 4)),
    ]


def printed(table) -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(terminal(table, 250))
    return " ".join(console.file.getvalue().split())


def test_the_tables_of_an_evaluation_mark_and_explain(records):
    table = make_table(LANGUAGE[0], records)
    for text in (markdown(table), printed(table)):
        assert "gated †" in text
        assert f"† lm: {PHRASE} (gated)." in text
        assert "base †" not in text
    page = html(table)
    assert "<th scope='row'>gated †</th>" in page
    assert PHRASE in page
    assert PHRASE in csv_text(table).splitlines()[2]


def test_the_marked_model_has_no_figure_in_bold():
    plain = [lm(f"base-s{seed}", seed, 3.0 + seed / 100) for seed in range(3)]
    better = [lm(f"gated-s{seed}", seed, 2.0 + seed / 90, **L4) for seed in range(3)]

    def bold(records) -> set[str]:
        table = table_1(groups(models(records)))
        return {row[0].text for row in table.rows for cell in row if cell.kind == "best"}

    assert bold([*plain, *better]) == {"gated"}
    assert bold([*plain, *better[:2], sick(better[2])]) == set()


def test_table_1_marks_explains_and_keeps_it_out_of_bold(records):
    table = table_1(groups(models(records)))
    place = [one.title for one in table.columns].index("Perplexity")
    by_name = {row[0].text: row[place] for row in table.rows}
    assert by_name["gated"].text == "2.000 †"
    assert by_name["base"].text == "3.000"
    for text in (markdown(table), html(table), printed(table)):
        assert f"† lm: {PHRASE} (gated)." in text
    assert PHRASE in latex(table)


def test_differences_and_single_models_are_marked_too(records):
    records += [lm("base1", 1, 3.0), lm("gated1", 1, 2.0, **L4)]
    found = groups(models(records))
    for table in (*differences(found), models_table(found)):
        assert any(cell.whole.endswith("†") for row in table.rows for cell in row)
        assert any(PHRASE in note for note in table.notes)


def test_table_2_marks_the_model():
    graphs = {"entropy.layer0": 1.0, "entropy": 1.0}
    found = groups(
        models([made("n2g", "base", 0, graphs), sick(made("n2g", "gated", 0, graphs, **L4))])
    )
    cells = [cell.text for row in table_2(found).rows for cell in row]
    assert "1.00 †" in cells
    assert "1.00" in cells
    assert any(PHRASE in note for note in table_2(found).notes)


def test_table_3_marks_a_model_that_fails_the_task():
    marked = {"marked": "does the task poorly: accuracy 0.50 [0.40, 0.60] below 0.9"}
    records = [made("ablate", name, 0, {"spoof_share": 0.5}) for name in ("able", "unable")]
    records[1] = dataclasses.replace(records[1], extra=marked)
    table = table_3(groups(models(records)))
    cells = [cell.text for row in table.rows for cell in row]
    assert "0.500" in cells
    assert "0.500 †" in cells
    assert any("† ablate: does the task poorly (unable)." in note for note in table.notes)


@pytest.mark.parametrize("odd", [None, "text", {"a": 1}, [1, None], [["nested"]]])
def test_health_of_another_shape_marks_nothing(odd):
    record = dataclasses.replace(lm("a", 0, 1.0), extra={"health": odd})
    assert phrases(record) == []
