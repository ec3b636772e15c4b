"""Records of older code: read, named, measured again, and never compared with newer ones."""

from __future__ import annotations

import dataclasses
import json

import pytest

from evaluations.cli import main
from evaluations.comparison.selection import is_comparable, models
from evaluations.comparison.versions import current, is_older, older_told
from evaluations.core.record import Record, read_record
from evaluations.core.spec import Spec
from evaluations.registry import SPECS
from tests.evaluations import golden
from tests.evaluations.comparison.study_records import lm


def test_every_evaluation_has_a_version() -> None:
    assert {
        spec.name: current(spec.name) for spec in SPECS
    }.items() <= golden.all_versions().items()
    assert current("nonsense") is None


def test_a_record_without_a_version_is_read_and_is_of_an_older_one(make_record) -> None:
    whole = json.loads(make_record().to_json())
    del whole["version"]
    old = Record.from_json(json.dumps(whole))
    assert old.version == 0
    assert is_older(old)
    assert not is_older(dataclasses.replace(old, version=current("lm")))
    assert not is_older(dataclasses.replace(old, evaluation="of a later release"))


@pytest.fixture
def as_of_version():
    """The evaluation lm under another version."""

    def change(version: int) -> Spec:
        changed = dataclasses.replace(SPECS[0], version=version)
        SPECS[0] = changed
        return changed

    original = SPECS[0]
    yield change
    SPECS[0] = original


def test_what_older_code_measured_is_measured_again_and_counted(
    as_of_version, model_directory, stories_file, tmp_path, capsys
):
    out = str(tmp_path / "out")
    command = ["lm", str(model_directory), "--data", str(stories_file), "--out", out]

    def told(*more: str) -> str:
        assert main([*command, "--resamples", "5", *more]) == 0
        return capsys.readouterr().out

    as_of_version(7)
    assert "again" not in told()
    assert "1 were there already" in told()
    (old,) = (tmp_path / "out").glob("*/lm-*.json")
    content = json.loads(old.read_text())
    assert content.pop("version") == 7
    del content["model"]["configuration"]  # as records were before
    old.write_text(json.dumps(content))
    as_of_version(8)
    assert "1 was measured again: the record was of an older version" in told()
    assert "1 were there already" in told()
    assert "measured again" not in told("--seed", "3")  # no record of these settings is older
    assert sorted(read_record(path).version for path in old.parent.glob("lm-*.json")) == [0, 8, 8]


def test_the_report_names_older_figures_and_prefers_newer_ones(as_of_version, tmp_path, capsys):
    as_of_version(3)
    new = dataclasses.replace(lm("a", None, 2.0), version=3)
    shadowed = dataclasses.replace(lm("a", None, 3.0, config_hash="old"), version=2)
    old = lm("b", None, 4.0)
    for place, record in enumerate((new, shadowed, old)):
        record.write(tmp_path / record.model["name"] / f"lm-{place}.json")
    assert not is_comparable([new, old])
    chosen = {one.name: one.records["lm"] for one in models([shadowed, new, old])}
    assert chosen == {"a": new, "b": old}
    assert main(["report", "--out", str(tmp_path)]) == 0
    line = "1 record of lm is of version 0 of its code, now 3 (b); sat-eval lm measures them again"
    assert line in capsys.readouterr().out.replace("\n", " ")
    assert line in (tmp_path / "report" / "report.md").read_text()


def test_a_line_names_three_models_and_counts_the_others(as_of_version):
    as_of_version(2)
    (line,) = older_told([lm(f"m{number}", None, 1.0) for number in range(5)])
    assert "5 records of lm are of version 0" in line
    assert "(m0, m1, m2 and 2 more)" in line
