from __future__ import annotations

import dataclasses
import logging

import pandas as pd
import pytest

from evaluations.core.frame import TYPES, results_frame
from evaluations.core.record import Interval, Metric, Record
from sat_interp._util.errors import UserError

LOCAL = {
    "name": "local",
    "weights_hash": "b" * 12,
    "ablation": {"variant": "local", "k_attention": 4, "gates": "random"},
    "training": {"seed": 3},
}


def record(**changes) -> Record:
    metrics = [
        Metric(
            "perplexity",
            "Perplexity",
            2.5,
            "",
            "lower",
            0.1,
            Interval(2.3, 2.7, 0.95, "bootstrap"),
            100,
        ),
        Metric("l0", "L0", None, n_failed=2, reasons={"dead": 2}),
    ]
    own = Record(
        evaluation="lm",
        model={"name": "base", "weights_hash": "a" * 12},
        data={"spec": "demo"},
        config={"seed": 0},
        config_hash="0123",
        seed=0,
        metrics=metrics,
        started="2026-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(own, **changes)


def test_a_row_is_a_metric_with_what_is_known_of_its_model():
    frame = results_frame([record(), record(model=LOCAL)])
    assert list(frame.columns) == list(TYPES)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == TYPES
    assert frame.metric.tolist() == ["perplexity", "l0"] * 2
    first = frame.iloc[0]
    assert (first.value, first.low, first.high, first.n) == (2.5, 2.3, 2.7, 100)
    assert (first.variant, first.config) == ("none", {"seed": 0})
    assert pd.isna(first.k)
    assert pd.isna(first.seed)
    last = frame.iloc[-1]
    assert (last.variant, last.k, last.gates, last.seed) == ("local", 4, "random", 3)


def test_a_figure_that_could_not_be_had_is_missing_and_counted():
    row = results_frame([record()]).iloc[1]
    assert pd.isna(row.value)
    assert pd.isna(row.low)
    assert (row.n_failed, row.reasons) == (2, {"dead": 2})


def test_no_record_is_an_empty_frame_of_the_same_columns():
    frame = results_frame([])
    assert len(frame) == 0
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == TYPES


def test_a_directory_is_read_and_the_newest_record_counts(tmp_path, caplog):
    record().write(tmp_path / "base-aaaa" / "lm-1.json")
    newer = record(started="2026-01-02T00:00:00+00:00", metrics=[Metric("perplexity", "P", 2.0)])
    newer.write(tmp_path / "base-aaaa" / "lm-2.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        frame = results_frame(tmp_path)
    assert frame.value.tolist() == [2.0]
    assert "broken.json" in caplog.text


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        results_frame(tmp_path / "nowhere")
