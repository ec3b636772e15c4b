from __future__ import annotations

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest

from evaluations.suite.neurons.compare import difference
from evaluations.suite.neurons.options import SCORES
from evaluations.suite.neurons.report import (
    FIGURES,
    NOT_OVER_SEEDS,
    _histogram,
    difference_lines,
    difference_records,
    scores_of,
    tables,
)
from evaluations.suite.neurons.scores import UnitScores, columns, metrics
from evaluations.tables import draw, markdown, rows, write


def write_report(records, out):
    """Everything a command writes of the records."""
    written = write(tables(records), out, "neurons")
    return [*written, *draw.write(FIGURES, records, out, "neurons")[0]]


@pytest.fixture
def make_scored(make_record):
    """A record of units with scores around a mean."""

    def make(name: str, mean: float, gated: bool = False, n: int = 60, **fields: object):
        draws = np.random.default_rng(n)
        units = []
        for index in range(n):
            unit = UnitScores(index % 3, index)
            if index == 5:
                unit.fail(SCORES, "dead")
            else:
                for score in SCORES:
                    unit.take(score, float(np.clip(draws.normal(mean, 0.2), -1, 1)))
            units.append(unit)
        weights = (name.encode().hex() * 40)[:64]
        record = make_record(
            name,
            weights,
            evaluation="neurons",
            metrics=metrics(units, SCORES, 0, 100),
            extra={"units": columns(units, SCORES)},
            **fields,
        )
        if gated:
            record.model["ablation"] = {"variant": "local", "k_attention": 4}
        return record

    return make


def test_tables_hold_the_scores_the_control_and_the_counts(make_scored):
    record = make_scored("base", 0.4)
    text = markdown(tables([record])[0])
    found = record.metric("simulation")
    assert f"{found.value:.3f} \\* [{found.interval.low:.3f}, {found.interval.high:.3f}]" in text
    for name in ("control", "detection", "fuzzing"):
        assert f"{record.metric(name).value:.3f}" in text
    assert "over 59 neurons" in text
    assert "| base | 1 | 1 |" in markdown(tables([record])[1])


def test_the_difference_is_to_the_baseline(make_scored):
    gated, base = make_scored("gated", 0.6, gated=True), make_scored("base", 0.3)
    (record,) = difference_records([gated, base])
    assert record.model["name"] == "gated minus base"
    expected = difference(scores_of(gated), scores_of(base), 1, 2000)
    assert record.metric("simulation_difference").value == expected.value > 0.2
    assert record.metric("simulation_difference").interval == expected.interval
    assert record.metric("p") is None
    (line,) = difference_lines([gated, base])
    assert line.startswith(f"gated minus base: {expected.value:.4f} [")
    assert line.endswith("59 neurons of both; " + NOT_OVER_SEEDS)
    assert difference_records([base]) == []


def test_models_are_compared_on_the_units_scored_in_both(make_scored):
    gated, base = make_scored("gated", 0.6, gated=True), make_scored("base", 0.3)
    for record, places in ((gated, range(10)), (base, range(8, 20))):
        for place in places:
            record.extra["units"]["detection"][place] = None
    units = [place for place in range(60) if place >= 20 and place != 5]
    one, other = (
        np.array([record.extra["units"]["detection"][place] for place in units])
        for record in (gated, base)
    )
    (record,) = difference_records([gated, base])
    found = record.metric("detection_difference")
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert found.n == 40
    assert record.metric("simulation_difference").n == 59


def test_models_with_other_units_are_not_compared(make_scored):
    assert difference_records([make_scored("a", 0.3), make_scored("b", 0.3, n=50)]) == []


def test_the_share_that_was_scored_is_a_column_and_its_reason_a_footnote(make_scored):
    text = markdown(tables([make_scored("base", 0.4)])[0])
    assert "| Detection: share scored |" in text
    assert "| 0.983 |" in text
    assert "Some could not be scored: Simulation 1 of base" in text
    assert "mostly: dead" in text


def test_a_footnote_gives_the_range_of_n_over_all_models(make_scored):
    text = markdown(tables([make_scored("base", 0.4), make_scored("other", 0.4, n=40)])[0])
    assert "over 39 to 59 neurons" in text


def test_scores_are_those_of_a_layer(make_scored):
    record = make_scored("base", 0.4)
    assert len(scores_of(record)) == 59
    assert len(scores_of(record, 2)) == 19
    assert record.metric("simulation_layer_2").value == pytest.approx(scores_of(record, 2).mean())


def test_files_are_written_for_one_model_and_for_two(make_scored, make_record, tmp_path):
    base = make_scored("base", 0.3)
    written = write_report([base, make_record()], tmp_path / "one")
    names = {path.name for path in written}
    assert names == {"neurons.md", "neurons.tex", "neurons.csv", "neurons.png", "neurons.svg"}
    two = write_report([base, make_scored("gated", 0.5, gated=True)], tmp_path / "two")
    assert {path.name for path in two} == names | {"neurons-differences.csv"}
    assert "by layer" in (tmp_path / "two" / "neurons.md").read_text()
    rows = list(csv.DictReader((tmp_path / "two" / "neurons.csv").read_text().splitlines()))
    assert float(rows[0]["simulation"]) == base.metric("simulation").value
    drawing = (tmp_path / "two" / "neurons.svg").read_text()
    assert drawing.count("<svg") == 1
    assert write_report([make_record()], tmp_path / "none") == []


def test_a_layer_without_a_score_is_left_out_of_the_figure(make_scored, tmp_path):
    record = make_scored("base", 0.3)
    units = record.extra["units"]
    units["simulation"] = [
        None if layer == 1 else score
        for score, layer in zip(units["simulation"], units["layer"], strict=True)
    ]
    assert write_report([record], tmp_path)
    units["simulation"] = [None] * len(units["layer"])
    assert write_report([record], tmp_path)


@pytest.mark.parametrize("score", [1 + 1e-12, -1 - 1e-12, -9e99, 9e99])
def test_scores_beyond_those_of_a_correlation_are_drawn_at_the_ends(make_scored, tmp_path, score):
    record = make_scored("base", 0.3)
    units = record.extra["units"]
    units["simulation"] = [score] * len(units["layer"])
    axes = plt.figure().subplots()
    _histogram(axes, rows([record]))
    assert axes.get_xlim() in ((0.0, 1.0), (-1.0, 1.0))
    (shares,) = axes.patches
    assert shares.get_data().values.sum() == 1
    plt.close("all")
