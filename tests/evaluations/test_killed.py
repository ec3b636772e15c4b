from __future__ import annotations

import signal

import pytest

from evaluations.core.record import read_records
from tests.evaluations.comparison.study_records import lm
from tests.evaluations.killed import Moment, Side, compare, moments


@pytest.mark.slow
def test_a_battery_killed_and_resumed_gives_the_same_records_and_tables(
    stories_file, tmp_path, monkeypatch
):
    """The real command, killed in each of two parts; all parts and ten kills: killed.py by hand."""
    monkeypatch.setenv("SAT_INTERP_NATIVE", "0")  # each side would compile the kernels anew
    arguments = [
        "demo:local-k4",
        "--preset",
        "quick",
        "--data",
        str(stories_file),
        "--parts",
        "lm,n2g",
    ]
    calm, killed = Side(tmp_path / "calm", arguments), Side(tmp_path / "killed", arguments)
    assert calm.run() == 0
    assert set(calm.seconds) == {"lm", "n2g"}
    assert killed.run(kill=Moment("lm", calm.seconds["lm"] / 2)) == -signal.SIGKILL
    moment = Moment("n2g", calm.seconds["n2g"] / 2)
    assert killed.run("--jobs", "2", kill=moment, alone=True) == -signal.SIGKILL
    assert killed.run() == 0
    assert {record.evaluation for record in read_records(killed.out)[0]} == {"lm", "n2g"}
    assert compare(calm, killed) == []


def test_a_difference_and_what_is_left_over_are_found(tmp_path):
    calm, killed = Side(tmp_path / "calm", []), Side(tmp_path / "killed", [])
    lm("a", 0, 2.0).write(calm.out / "a-01234567" / "lm-0.json")
    lm("a", 0, 2.5).write(killed.out / "a-01234567" / "lm-0.json")
    (killed.out / ".lm-1.json.abc.tmp").write_text("")
    found = compare(calm, killed)
    assert "a lm 0123456789ab: /metrics/0/value: 2.0 / 2.5" in found[0]
    assert any(line.startswith("table table1: ") for line in found)
    assert found[-1] == "left over: results/.lm-1.json.abc.tmp"


def test_moments_lie_in_equal_stretches_of_the_whole():
    seconds = {"a": 10.0, "b": 5.0, "c": 5.0}
    found = moments(seconds, 4, seed=1)
    begins = {"a": 0.0, "b": 10.0, "c": 15.0}
    at = [begins[one.part] + one.after for one in found]
    assert [int(moment // 5) for moment in at] == [0, 1, 2, 3]
    assert found == moments(seconds, 4, seed=1) != moments(seconds, 4, seed=2)
