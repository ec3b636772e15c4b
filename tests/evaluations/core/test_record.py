from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from evaluations.core.models import prepared
from evaluations.core.record import (
    Interval,
    Metric,
    Record,
    hash_of,
    plain,
    read_record,
    read_records,
)
from evaluations.core.runner import describe_model
from sat_interp._util.errors import UserError


def test_a_record_comes_back_as_it_was_written(make_record, tmp_path):
    metric = Metric(
        "x",
        "X",
        1 / 3,
        "nats",
        "lower",
        1e-9,
        Interval(0.1, 0.5, 0.95, "by hand"),
        7,
        2,
        {"dead": 2},
        "a figure",
    )
    record = make_record(metrics=[metric], extra={"curve": [1.0, 2.5]}, commit="abc-dirty")
    assert read_record(record.write(tmp_path / "deep" / "r.json")) == record


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "nan"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_what_is_not_finite_is_none_with_a_reason(make_record, tmp_path, value, reason):
    interval = Interval(0.0, math.inf, 0.95, "")
    metric = Metric("x", "X", value, standard_error=value, interval=interval)
    assert (metric.value, metric.standard_error, metric.interval) == (None, None, None)
    assert metric.reasons == {reason: 1}
    assert metric.n_failed == 1
    path = make_record(metrics=[metric], extra={"curve": [value, 1.0]}).write(tmp_path / "r.json")
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_record(path).metrics == [metric]
    assert read_record(path).extra == {"curve": [None, 1.0]}


def test_numpy_and_torch_numbers_become_plain_ones():
    metric = Metric("x", "X", np.float64(0.5), standard_error=torch.tensor(2.0).item())
    assert type(metric.value) is float
    told = plain({"a": np.arange(2), "b": torch.ones(1), 3: (np.int64(1), {"z", "y"})})
    assert told == {"a": [0, 1], "b": [1.0], "3": [1, ["y", "z"]]}
    json.dumps(told, allow_nan=False)


def test_an_unknown_direction_is_refused():
    with pytest.raises((ValueError, TypeError), match="direction"):
        Metric("x", "X", 1.0, direction="up")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: '{"loss": 3}',
        lambda text: text.replace('"schema": 1', '"schema": 99'),
        lambda text: text.replace('"evaluation"', '"evaluation2"'),
        lambda text: text.replace('"seed": 1,\n "metrics"', '"sed": 1,\n "metrics"'),
        lambda text: text.replace('"weights_hash"', '"hash"'),
        lambda text: json.dumps({**json.loads(text), "metrics": [3]}),
        lambda text: json.dumps({**json.loads(text), "model": None}),
    ],
)
def test_damaged_and_foreign_files_are_named_in_one_line(make_record, tmp_path, damage):
    path = make_record().write(tmp_path / "r.json")
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=str(path)) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_where_many_are_read_the_damaged_are_reported_and_skipped(make_record, tmp_path):
    make_record("a").write(tmp_path / "a" / "lm-1.json")
    (tmp_path / "a" / "half.json").write_text('{"schema": 1, "evalu')
    (tmp_path / "notes.json").write_bytes(b"\xff\xfe")
    make_record("b").write(tmp_path / "b" / "lm-1.json")
    records, problems = read_records(tmp_path)
    assert [record.model["name"] for record in records] == ["a", "b"]
    assert set(problems) == {tmp_path / "a" / "half.json", tmp_path / "notes.json"}


def test_a_hash_is_of_content_not_of_order():
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": (1, 2), "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})
    assert hash_of({"a": 1}) == "015abd7f5cc5"  # stable between runs and versions


def test_metric_by_name(make_record):
    assert make_record().metric("perplexity").value == 12.5
    assert make_record().metric("nonsense") is None


def test_records_are_immutable(make_record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().seed = 3
    assert isinstance(make_record(), Record)


def test_all_that_the_runner_says_of_a_model_is_read_back(
    make_record, make_model, tokenizer, tmp_path
):
    loaded = prepared(make_model("local"), "x", tokenizer, "cpu")
    loaded.control = {"kind": "untrained", "seed": 0, "of": "ab" * 32}
    loaded.training = {"seed": 1, "preset": "demo", "finished": True}
    record = make_record(model=describe_model(loaded), version=3)
    path = record.write(tmp_path / "r.json")
    assert read_record(path).model["control"] == loaded.control
    assert read_record(path).model["configuration"] == loaded.configuration
    assert read_record(path).version == 3


def test_a_directory_that_cannot_be_entered_costs_no_other_its_records(
    make_record, tmp_path, monkeypatch
):
    """As for a user without the right to enter it; the tests may run as one who has every right."""
    make_record().write(tmp_path / "open" / "lm-0123456789ab.json")
    make_record().write(tmp_path / "shut" / "lm-0123456789ab.json")
    stat = os.stat

    def refusing(path, *arguments, **settings):
        if isinstance(path, str | os.PathLike) and "shut/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return stat(path, *arguments, **settings)

    monkeypatch.setattr(os, "stat", refusing)
    records, problems = read_records(tmp_path)
    assert len(records) == 1
    ((path, reason),) = problems.items()
    assert path.parent.name == "shut"
    assert "Permission denied" in str(reason)
