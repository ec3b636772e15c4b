from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from evaluations.core.model_source import load_model
from evaluations.core.record import Metric, read_record
from evaluations.core.spec import Measurement
from sat_interp._util.errors import UserError
from sat_interp._util.files import file_name
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.toy import run_on, toy_spec


@dataclass(frozen=True)
class Words:
    content: str = "c0ffee"

    def describe(self):
        return {"spec": "words", "content": self.content}


@dataclass(frozen=True)
class Config:
    seed: int = 7
    power: float = 2.0


class Counting:
    """An evaluation that counts how often it is asked."""

    def __init__(self, fails_for: float | None = None) -> None:
        self.calls, self.fails_for = 0, fails_for

    def __call__(self, model, data, config):
        self.calls += 1
        if self.fails_for == config.power:
            raise KeyError("a bug")
        return Measurement([Metric("x", "X", config.power)], {"curve": [float("nan")]})


@pytest.fixture
def counting() -> Counting:
    return Counting()


def go(counting, models, out, config=None, force=False, data=None):
    spec = toy_spec("toy", Config, counting)
    return run_on(spec, models, lambda _: data or Words(), config or Config(), out, force)


def test_a_record_says_all_it_takes_to_run_again(counting, model_directory, tmp_path):
    outcome = go(counting, [str(model_directory)], tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("*.json")
    record = read_record(path)
    assert record == outcome.records[0]
    loaded = load_model(str(model_directory))
    assert path.parent.name == f"tiny-{loaded.weights_hash[:8]}"
    assert path.name == f"toy-{record.config_hash}.json"
    assert record.model["weights_hash"] == loaded.weights_hash
    assert record.model["n_parameters"] > 1000
    assert record.config == {"seed": 7, "power": 2.0}
    assert record.seed == 7
    assert record.data == {"spec": "words", "content": "c0ffee"}
    assert record.extra == {"curve": [None]}
    assert record.versions["torch"]
    assert record.device == "cpu"


def test_what_is_done_is_skipped_also_under_another_name(counting, model_directory, tmp_path):
    go(counting, [str(model_directory)], tmp_path / "out")
    renamed = tmp_path / "renamed"
    shutil.copytree(model_directory, renamed)
    outcome = go(counting, [str(model_directory), str(renamed)], tmp_path / "out")
    assert counting.calls == 1
    assert outcome.skipped == 2
    assert [record.model["name"] for record in outcome.records] == ["tiny", "renamed"]
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1


def test_a_record_that_was_there_tells_what_is_known_by_now(counting, model_directory, tmp_path):
    loaded = load_model(str(model_directory))
    loaded.training, loaded.tokenizer_note = {"finished": False}, "another one"
    (first,) = go(counting, [loaded], tmp_path / "out").records
    assert first.data["tokenizer_note"] == "another one"
    loaded.training, loaded.tokenizer_note = {"finished": True}, None
    (second,) = go(counting, [loaded], tmp_path / "out").records
    assert counting.calls == 1
    assert second.model["training"] == {"finished": True}
    assert "tokenizer_note" not in second.data
    assert second.model["spec"] == "tiny"  # not the directory it lies in


def test_force_other_settings_data_and_weights_run_again(
    counting, make_model, model_directory, tmp_path
):
    out = tmp_path / "out"
    go(counting, [str(model_directory)], out)
    go(counting, [str(model_directory)], out, force=True)
    assert counting.calls == 2
    go(counting, [str(model_directory)], out, Config(power=3.0))
    assert counting.calls == 3
    go(counting, [str(model_directory)], out, data=Words("other"))
    assert counting.calls == 4
    save_pretrained(make_model(seed=5), model_directory)
    go(counting, [str(model_directory)], out)
    assert counting.calls == 5
    assert len(list(out.rglob("*.json"))) == 4


def test_other_gates_on_the_same_weights_are_another_result(counting, make_model, tmp_path):
    for k in (2, 3):
        save_pretrained(make_model("local", k_neurons=k), tmp_path / f"k{k}")
    go(counting, [str(tmp_path / "k2"), str(tmp_path / "k3")], tmp_path / "out")
    assert counting.calls == 2


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other weights"])
def test_a_record_that_cannot_be_trusted_is_redone(counting, model_directory, tmp_path, damage):
    out = tmp_path / "out"
    whole = go(counting, [str(model_directory)], out).records[0]
    (path,) = out.rglob("*.json")
    text = path.read_text()
    weights = whole.model["weights_hash"]
    path.write_text(
        {
            "truncated": text[:100],
            "foreign": '{"hello": 1}',
            "other weights": text.replace(weights, weights[:8] + "0" * 56),
        }[damage]
    )
    go(counting, [str(model_directory)], out)
    assert counting.calls == 2
    assert read_record(path).metrics == whole.metrics


def test_one_model_that_fails_does_not_stop_the_others(counting, model_directory, tmp_path):
    models = [str(tmp_path / "nowhere"), str(model_directory)]
    outcome = go(counting, models, tmp_path / "out")
    assert len(outcome.records) == 1
    assert list(outcome.failures) == [models[0]]
    with pytest.raises(UserError, match=r"1 of 2 models failed: .*nowhere"):
        outcome.raise_failures()


def test_a_bug_is_told_apart_and_leaves_nothing_behind(model_directory, tmp_path, caplog):
    counting = Counting(fails_for=2.0)
    outcome = go(counting, [str(model_directory)], tmp_path / "out")
    assert not outcome.records
    assert "KeyError" in caplog.text
    assert not list(tmp_path.rglob("toy-*"))
    with pytest.raises(UserError, match="internal error: KeyError: 'a bug'"):
        outcome.raise_failures()


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    counting, model_directory, tmp_path
):
    (tmp_path / "out").write_text("a file, where a directory should be")
    with pytest.raises(UserError, match="records cannot be written to .*out"):
        go(counting, [str(model_directory)], tmp_path / "out")
    assert counting.calls == 0


def test_a_disk_that_fills_up_is_named(counting, model_directory, tmp_path, monkeypatch):
    def full(record, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("evaluations.core.record.Record.write", full)
    outcome = go(counting, [str(model_directory)], tmp_path / "out")
    assert "No space left on device: " in next(iter(outcome.failures.values()))


def test_loaded_models_are_taken_as_they_are(counting, model_directory, tmp_path):
    loaded = load_model(str(model_directory))
    go(counting, [loaded, loaded], tmp_path / "out")
    assert counting.calls == 1


def test_file_names_are_safe():
    assert file_name("demo:local-k4") == "demo-local-k4"
    assert file_name("owner/name") == "owner-name"
    assert Path(file_name("../..")).name == "model"


def test_a_refused_model_leaves_no_directory_behind(counting, tmp_path):
    outcome = go(counting, ["./nothing-here"], tmp_path / "new" / "out")
    assert list(outcome.failures) == ["./nothing-here"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    go(counting, ["./nothing-here"], tmp_path / "kept" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
