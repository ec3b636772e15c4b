"""``make gpu-study`` on the CPU: it keeps its budget, goes on where it stopped, leaves a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_study, gpu_study_page
from benchmarks.gpu_study import GROUPS, SCALES, Place, read_report, steps_that_fit
from sat_interp._util.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, SCALES["tiny"], "cpu", budget=100.0)


def test_the_steps_that_fit_by_hand():
    rates = {
        "baseline": {"seconds_per_step": 1.0, "other_seconds": 10.0},
        "local-k4": {"seconds_per_step": 2.0, "other_seconds": 20.0},
        "global-k4": {"seconds_per_step": 3.0, "other_seconds": 30.0},
    }
    # random masks cost what learned ones do: 80 s of starts, then 8 s for a step of each
    assert steps_that_fit(rates, 80.0 + 8.0 * 5.5) == 5
    assert steps_that_fit(rates, 10.0) == 0


def rates_of(seconds):
    rate = {"seconds_per_step": seconds, "other_seconds": 0.0}
    return {f"rate-{group}": rate for group in gpu_study.RATED}


def test_the_plan_is_made_anew_until_a_group_begins_and_then_kept(place, tmp_path):
    assert gpu_study.planned(place, rates_of(1.0)) is None  # 18 steps of each: too few
    assert place.done("plan") is None
    assert gpu_study.planned(place, rates_of(0.1))["steps"] == pytest.approx(187, abs=1)
    place.budget = 200.0
    assert gpu_study.planned(place, rates_of(0.1))["steps"] == pytest.approx(375, abs=1)
    place.steps = 8
    assert gpu_study.planned(place, rates_of(0.1))["steps"] == 8
    (tmp_path / "runs" / "local-k4-s0").mkdir(parents=True)
    place.steps = None
    assert gpu_study.planned(place, rates_of(0.1))["steps"] == 8
    place.steps = 9
    with pytest.raises(UserError, match="trained for 8 steps; name another --out"):
        gpu_study.planned(place, rates_of(0.1))


def test_a_cell_that_ran_out_of_time_is_tried_again(place, monkeypatch):
    settings = gpu_study.cell_settings(place, 1, "none", "ours")
    found = gpu_study.one_cell({**settings, "seconds": 60.0}, 0.5)
    assert found["unfinished"] == "not done in 0 s"
    place.step("speed-none-1-ours", 10.0, lambda limit: found)
    assert place.done("speed-none-1-ours") is None


def test_a_command_that_ends_early_leaves_the_rest_to_the_next(place):
    place.stop_after = 30.0
    limits = []
    place.step("one", 90.0, lambda limit: limits.append(limit) or {})
    assert 29.0 < limits[0] <= 30.0
    assert place.left() > 99.0


def test_the_time_of_a_command_that_is_killed_is_known(place, monkeypatch):
    monkeypatch.setattr(gpu_study, "HEARTBEAT", 0.01)
    with place.noting():
        time.sleep(0.1)
        assert 0 < json.loads((place.out / "used.json").read_text())["seconds"] < 5


def test_a_training_ends_with_the_command_that_began_it(tmp_path):
    code = "from benchmarks import gpu_study; import sys; gpu_study.end_with(int(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", code, "1"], cwd=ROOT) as child:
        assert child.wait(timeout=60) == 1  # another process is its parent
    command = [sys.executable, "-c", code, str(os.getpid())]
    with subprocess.Popen(command, cwd=ROOT) as child:
        time.sleep(0.5)
        assert child.poll() is None
        child.kill()


def test_the_tests_of_all_files_are_one_result():
    one = {"passed": 2, "failures": ["a"], "skipped": {"x": 1}}
    other = {"passed": 1, "failures": [], "skipped": {"x": 1, "y": 3}}
    total = {"passed": 3, "failures": ["a"], "skipped": {"x": 2, "y": 3}}
    assert gpu_study.all_tests({"a": one, "b": other}) == total
    assert gpu_study.all_tests({"a": one, "b": None}) is None
    assert gpu_study.all_tests({"a": one, "b": {"unfinished": "late"}}) == {"unfinished": "late"}


def test_the_scale_follows_device_and_minutes_and_stays(tmp_path, capsys):
    assert gpu_study.scale_for("cuda", 2) == "accelerator"
    assert (gpu_study.scale_for("cpu", 2), gpu_study.scale_for("cpu", 20)) == ("tiny", "cpu")
    (tmp_path / "used.json").write_text('{"seconds": 1.0, "scale": "tiny"}')
    arguments = ["--scale", "cpu", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_study.main(arguments) == 2
    assert "is of scale tiny" in capsys.readouterr().err


def test_a_step_is_done_once_and_what_is_unfinished_is_tried_again(place):
    calls = []

    def run(limit):
        calls.append(limit)
        return {"value": len(calls)} if len(calls) > 1 else {"unfinished": "stopped"}

    assert place.step("one", 40.0, run) == {"unfinished": "stopped"}
    assert place.done("one") is None
    assert place.step("one", 400.0, run)["value"] == 2
    assert place.step("one", 40.0, run)["value"] == 2
    assert len(calls) == 2
    assert calls[0] == 40.0
    assert 99.0 < calls[1] <= 100.0  # no more than is left of the budget


def test_without_time_nothing_is_begun(place):
    place.before = 98.0
    assert place.step("one", 40.0, pytest.fail) is None


def test_the_steps_of_a_kind_share_its_time(place):
    limits = {}

    def taking(name):
        return lambda limit: limits.setdefault(name, limit) and {}

    place.phase("speed", {name: taking(name) for name in "abcd"})
    # 30 s for all four; a step may take twice its part of what is left
    assert [round(limits[name]) for name in "abcd"] == [15, 20, 30, 30]


def test_a_report_of_the_tests_by_hand(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase name="a"/>'
        '<testcase name="b"><failure message="1 is not 2">x</failure></testcase>'
        '<testcase name="c"><skipped message="no accelerator"/></testcase>'
        '<testcase name="d"><error message="broken"/></testcase></testsuite></testsuites>'
    )
    assert read_report(path) == {
        "passed": 1,
        "failures": ["b: 1 is not 2", "d: broken"],
        "skipped": {"no accelerator": 1},
    }


def test_every_scale_gives_possible_trainings(tmp_path):
    for scale in SCALES.values():
        place = Place(tmp_path, scale, "cpu", 60.0)
        for group in GROUPS:
            config = gpu_study.config_of(place, group, 50, group)
            assert (config.clean_weight, config.ablated_weight) == (1.0, 1.0)
            assert config.is_gated == (group != "baseline")
    paper = gpu_study.config_of(
        Place(tmp_path, SCALES["accelerator"], "cpu", 60.0), "local-k4", 9, ""
    )
    assert (paper.n_layers, paper.d_model, paper.n_heads, paper.n_ctx) == (8, 128, 16, 256)
    assert (paper.tokenizer, paper.precision, paper.compile) == ("gpt2", "bf16", True)


def test_the_page_of_what_is_missing_says_so(tmp_path):
    cell = {"variant": "none", "batch": 2, "precision": "bf16"}
    found = {
        "tests": None,
        "speed": {
            "a": {**cell, "what": "ours", "ours": 0.5, "floor": 0.2, "peak_mib": 7.0},
            "b": {**cell, "what": "plain", "failed": "not done in 3 s"},
        },
        "rates": {"rate-baseline": {"unfinished": "no memory"}, "rate-local-k4": None},
        "plan": None,
        "trained": {},
        "machine": {"hardware": "H", "device_type": "d", "when": "2026-01-01", "commit": "c"},
        "seconds": 60.0,
    }
    gpu_study_page.write(found, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "| none | 2 | bf16 | 1,024 | 7 | – | – | 40% |" in page
    assert "none, batch 2, plain: not done in 3 s" in page
    assert "rate-baseline: no memory" in page
    assert "rate-local-k4: not done yet" in page


def test_make_gpu_study_is_this_command():
    command = ["make", "-n", "gpu-study", "GPU_PYTHON=python3", "MINUTES=2", "GPU_STUDY=there"]
    # Tests that `make test` runs have MAKEFLAGS set, and a make below a make prints its directory.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python3 -m benchmarks.gpu_study --minutes 2 --out there"


@pytest.mark.slow
def test_the_whole_study_on_the_cpu_within_two_minutes_and_resumed(tmp_path):
    out = tmp_path / "study"
    arguments = ["--scale", "tiny", "--device", "cpu", "--out", str(out)]
    begun = time.perf_counter()
    assert gpu_study.main([*arguments, "--minutes", "2", "--stop-after", "0.4"]) == 0
    assert time.perf_counter() - begun < 24 + 60  # its end, and a start on a busy machine
    kept = {path: path.read_text() for path in (out / "steps").glob("*.json")}
    assert (out / "README.md").is_file()
    assert "train-random-k4.json" not in {path.name for path in kept}
    # A minute is ample on an idle machine; tests may share theirs with others.
    assert gpu_study.main([*arguments, "--minutes", "90", "--steps", "8"]) == 0
    assert all(path.read_text() == text for path, text in kept.items())
    trained = {
        group: json.loads((out / f"steps/train-{group}.json").read_text()) for group in GROUPS
    }
    assert len({one["tokens"] for one in trained.values()}) == 1
    for one in trained.values():
        tokens = [point["tokens"] for point in one["curve"]]
        assert tokens == sorted(set(tokens))
        assert tokens[-1] == one["tokens"]
        assert all(0 <= point["ioi_low"] <= point["ioi_high"] <= 1 for point in one["curve"])
    tests = json.loads((out / "steps" / "tests-sat_interp.json").read_text())
    assert not tests["failures"]
    page = (out / "README.md").read_text()
    assert "| random-k4 |" in page
    assert (out / "ioi.png").is_file()
