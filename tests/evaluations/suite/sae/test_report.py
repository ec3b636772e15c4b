from __future__ import annotations

import pytest

from evaluations.core.record import Interval, Metric
from evaluations.core.records import slim
from evaluations.suite.sae.report import FIGURES, front_records, labelled, tables
from evaluations.tables import draw, markdown, write


def write_report(records, out):
    """Everything a command writes of the records."""
    return [*write(tables(records), out, "sae"), *draw.write(FIGURES, records, out, "sae")[0]]


@pytest.fixture
def make_point(make_record):
    def make(name, sparsity, l0, score, converged=True, hook="blocks.2.hook_mlp_out"):
        reasons = {} if converged else {"not converged": 1}
        bars = Interval(l0 - 1, l0 + 1, 0.95, "percentile bootstrap")
        return make_record(
            name,
            ("ab" if name == "tiny" else "cd") * 32,
            evaluation="sae",
            config={"sparsity": sparsity, "seed": 1, "given": None, "hook": hook},
            metrics=[
                Metric("l0", "L0", l0, "", "lower", interval=bars, reasons=reasons),
                Metric("ce_score", "CE", score, "", "higher", reasons=reasons),
            ],
            extra={
                "sae": {"hook": hook, "label": f"L1 {sparsity:g}"},
                "density": {"log10_edges": [-3, -2, -1, 0], "features": [1, 5, 2], "dead": 3},
                "replicates": {"l0": [l0] * 50, "ce_score": [score] * 50},
            },
        )

    return make


@pytest.fixture
def sweep(make_point):
    return [
        make_point("tiny", 2, 30, 0.9),
        make_point("tiny", 10, 10, 0.7),
        make_point("other", 2, 20, 0.9),
        make_point("other", 10, 8, 0.6),
        make_point("other", 40, 1, 0.1, converged=False),
    ]


def test_names_tell_apart_what_varies_and_sort_by_the_number(sweep):
    assert [record.model["name"] for record in labelled(sweep)] == [
        "tiny, L1  2",
        "tiny, L1 10",
        "other, L1  2",
        "other, L1 10",
        "other, L1 40",
    ]
    assert [record.model["name"] for record in labelled(sweep[:1])] == ["tiny"]


def test_hook_points_are_named_where_there_are_several(make_point):
    found = labelled([make_point("tiny", 5, 1, 0.5), make_point("tiny", 5, 1, 0.5, hook="other")])
    assert [record.model["name"] for record in found] == [
        "tiny, blocks.2.hook_mlp_out",
        "tiny, other",
    ]


def test_tables_and_figure_are_written(sweep, tmp_path):
    written = write_report(sweep, tmp_path)
    assert {path.name for path in written} == {
        "sae.md",
        "sae.tex",
        "sae.csv",
        "sae-front.csv",
        "sae.png",
        "sae.svg",
    }
    table = (tmp_path / "sae.md").read_text()
    assert "| tiny, L1  2 | 30.00 [29.00, 31.00] | 0.900 |" in table
    assert "not converged" in table
    front = table[table.index("L0 at equal CE score") :]
    assert "At CE score 0.800" in front
    assert "| tiny | 20.00" in front
    assert "| other | 16.00" in front  # 8 + 12 * (0.8 - 0.6) / 0.3
    assert "L0 and cross-entropy" in (tmp_path / "sae.svg").read_text()
    assert write_report([], tmp_path) == []


def test_a_report_which_keeps_small_parts_of_records_has_the_same_tables(sweep):
    shown = [markdown(table) for table in tables([slim(record) for record in sweep])]
    assert "At CE score 0.800" in shown[-1]
    assert shown == [markdown(table) for table in tables(sweep)]


def test_one_coefficient_gives_points_and_no_front(make_point, tmp_path):
    points = [make_point("tiny", 5, 12, 0.8), make_point("other", 5, 9, 0.7)]
    assert front_records(points) == (0.0, [])
    assert not any("front" in path.name for path in write_report(points, tmp_path))
