from __future__ import annotations

import dataclasses
import json

import pytest

from evaluations.comparison.seeds import groups
from evaluations.comparison.selection import models
from evaluations.core.records import collect
from evaluations.suite.sae.report import labelled
from evaluations.tables import rows
from sat_interp._util.errors import UserError
from tests.evaluations.comparison.study_records import acdc, lm, sae


def test_what_is_no_record_is_counted_and_told(tmp_path):
    old = lm("a", 0, 1.0)
    new = dataclasses.replace(lm("a", 0, 2.0), started="2026-02-01T00:00:00+00:00")
    old.write(tmp_path / "a" / "lm-1.json")
    new.write(tmp_path / "b" / "lm-1.json")
    (tmp_path / "a" / "lm-2.json").write_text(old.to_json()[:200])
    (tmp_path / "a" / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    (tmp_path / "schema.json").write_text(old.to_json().replace('"schema": 1', '"schema": 99'))
    (tmp_path / "a" / "neurons").mkdir()
    (tmp_path / "a" / "neurons" / "details.json").write_text('{"units": []}')
    found = collect(tmp_path)
    assert [record.metric("perplexity").value for record in found.records] == [2.0]
    assert found.duplicates == 1
    assert {path.name for path in found.truncated} == {"lm-2.json", "binary.json"}
    assert {path.name for path in found.foreign} == {"summary.json", "schema.json"}
    told = "\n".join(found.notes())
    assert "2 of the JSON files skipped: truncated" in told
    assert "2 of the JSON files skipped: not a record" in told
    assert "1 duplicate records skipped" in told
    assert collect(tmp_path / "a" / "neurons").notes() == []


def test_there_must_be_a_directory(tmp_path):
    with pytest.raises(UserError, match="there is no directory"):
        collect(tmp_path / "absent")


def test_the_autoencoder_of_the_preset_counts_not_the_newest():
    late = {"started": "2026-03-01T00:00:00+00:00"}
    (model,) = models([sae("a", 0, 4.0), sae("a", 0, 9.0, 1.0, **late), sae("a", 0, 2.0, 20.0)])
    assert model.records["sae"].metric("l0").value == 4.0


def test_the_circuit_of_ioi_at_the_papers_tau_counts():
    others = [
        acdc("a", 0, 1, extra={"tau": 0.01}, config_hash="1"),
        acdc("a", 0, 2, config={"method": "eap", "ablation": "resample"}, config_hash="2"),
        acdc("a", 0, 3, config={"method": "acdc", "ablation": "mean"}, config_hash="3"),
        acdc("a", 0, 4, data={"spec": "gender"}, config_hash="4"),
    ]
    assert models(others) == []
    (model,) = models([acdc("a", 0, 30), *others])
    assert model.records["acdc"].metric("edges").value == 30


def test_settings_that_most_models_share_count_before_newer_ones():
    late = {"started": "2026-03-01T00:00:00+00:00", "config_hash": "ff"}
    records = [lm("a", 0, 1.0), lm("b", 1, 2.0), lm("a", 0, 9.0, config={"seed": 7}, **late)]
    found = {model.name: model.records["lm"] for model in models(records)}
    assert found["a"].metric("perplexity").value == 1.0
    (alone,) = models([records[0], records[2]])  # one model each: the newest
    assert alone.records["lm"].metric("perplexity").value == 9.0


def test_the_same_weights_under_two_names_are_one_model():
    record = lm("a", 0, 1.0)
    twin = dataclasses.replace(record, model={**record.model, "name": "run-s0"}, config_hash="ff")
    assert [model.name for model in models([twin, record], names=["run-s0"])] == ["run-s0"]
    assert [model.name for model in models([record, twin], names=["a"])] == ["a"]


@pytest.mark.parametrize(
    "change", [{"surprise": 1}, {"schema": 2}, {"schema": "one"}, {"schema": [[1]]}], ids=str
)
def test_a_record_of_another_version_is_passed_over(tmp_path, change):
    found = beside_a_whole_one(tmp_path, change)
    (line,) = found.notes()
    assert line.endswith("not a record, or one of another version (sub/b.json)")
    assert found.left_out() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"started": 5}, "started: Input should be a valid string, not 5"),
        (
            {"model": {"weights_hash": "ab", "ablation": {"variant": "spiral"}}},
            "model.ablation.variant: Input should be 'none', 'local' or 'global', not 'spiral'",
        ),
        ({"extra": [1]}, "extra: Input should be a valid dictionary, not [1]"),
        ({"model": {"name": "x"}}, "model.weights_hash: missing"),
    ],
    ids=str,
)
def test_a_record_with_a_field_of_another_type_is_left_out_and_named(tmp_path, change, reason):
    found = beside_a_whole_one(tmp_path, change)
    assert found.left_out() == [f"sub/b.json: {reason}"]
    assert found.notes() == [f"left out: sub/b.json: {reason}"]


def beside_a_whole_one(directory, change):
    lm("a", 0, 2.0).write(directory / "a.json")
    almost = {**json.loads((directory / "a.json").read_text()), **change}
    (directory / "sub").mkdir()
    (directory / "sub" / "b.json").write_text(json.dumps(almost))
    found = collect(directory)
    assert [record.model["name"] for record in found.records] == ["a"]
    return found


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"\xff{}", b"[" * 100_000], ids=len)
def test_what_is_no_json_is_passed_over(tmp_path, content):
    (tmp_path / "b.json").write_bytes(content)
    (line,) = collect(tmp_path).notes()
    assert "truncated or unreadable" in line


def test_equal_weights_of_another_configuration_or_other_gates_are_another_model(make_record):
    def record(when, name="tiny", ablation=None, **fields):
        known = {"name": name, "spec": name, "weights_hash": "ab" * 32, "ablation": ablation}
        known |= {"configuration": fields} if fields else {}
        return make_record(model=known, started=f"2026-01-0{when}")

    plain, scaled = record(1, rope=1, dtype="float32"), record(2, rope=2, dtype="float32")
    gated = record(3, ablation={"k": 4}, rope=2)
    found = models([plain, scaled, gated])
    assert [one.records["lm"] for one in found] == [plain, scaled, gated]
    assert len({group.name for group in groups(found)}) == 3
    shown = rows([plain, scaled, gated])
    assert [row.records["lm"] for row in shown] == [plain, scaled, gated]
    assert len({row.model for row in shown}) == 3
    # the precision is no other model, nor is a record from before configurations were recorded
    again, old = record(4, rope=2, dtype="bfloat16"), record(1)
    assert [one.records["lm"] for one in models([old, scaled, again])] == [again]
    assert len(rows([old, scaled, again])) == 1
    assert len(rows([old, record(2)])) == 1


def test_an_autoencoder_with_long_names_is_named(tmp_path):
    record = sae("a", 0, 3.0)
    told = {"hook": "h" * 3000, "label": "L1 5"}
    dataclasses.replace(record, extra={"sae": told}).write(tmp_path / "a" / "sae-1.json")
    (found,) = collect(tmp_path).records
    assert found.extra["sae"] == told
    (named,) = labelled([found])
    assert named.model["name"] == "a"
