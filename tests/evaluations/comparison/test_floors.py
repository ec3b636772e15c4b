"""A report says what control models score, and keeps them out of its tables."""

from __future__ import annotations

from evaluations.comparison.collection import report
from evaluations.comparison.floors import floors
from evaluations.core.record import Interval, Metric

CONTROL = {"kind": "untrained", "seed": 0, "of": "ab" * 32}


def metric(value: float | None) -> Metric:
    interval = None if value is None else Interval(value - 0.01, value + 0.01, 0.95, "bootstrap")
    reasons = {} if value is not None else {"dead": 3}
    return Metric("simulation", "Simulation score", value, interval=interval, n=30, reasons=reasons)


def test_controls_are_told_below_the_tables_and_in_none(make_record, tmp_path):
    own = make_record("mine", evaluation="neurons", metrics=[metric(0.75)])
    model = {**own.model, "name": "mine [untrained]", "weights_hash": "cd" * 32}
    control = make_record(
        evaluation="neurons", model={**model, "control": CONTROL}, metrics=[metric(0.5)]
    )
    own.write(tmp_path / "mine-abababab" / "neurons-0123456789ab.json")
    control.write(tmp_path / "mine-untrained-cdcdcdcd" / "neurons-0123456789ab.json")
    shown = report(out=tmp_path)
    (told,) = (note for note in shown.notes if note.startswith("Control"))
    assert "mine [untrained], neurons: simulation score 0.500 [0.490, 0.510]" in told
    names = [row[0].text for table in shown.tables for row in table.rows]
    assert "mine" in names
    assert not any("untrained" in name for name in names)


def test_models_that_are_no_controls_and_figures_that_do_not_exist_are_no_floor(make_record):
    assert floors([make_record("mine", evaluation="neurons", metrics=[metric(0.75)])]) == []
    model = {"name": "x", "spec": "x", "weights_hash": "cd" * 32, "control": CONTROL}
    assert floors([make_record(evaluation="neurons", model=model, metrics=[metric(None)])]) == []
    assert floors([make_record(evaluation="lm", model=model)]) == []
