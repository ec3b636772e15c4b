from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evaluations.battery.plan import Budgets, plan
from evaluations.battery.run import raise_failures
from sat_interp._util.errors import UserError
from sat_interp.engine.local import LocalEngine
from sat_interp.engine.parent import PARENT
from sat_interp.engine.run import Claims, run
from tests.evaluations.battery.test_plan import spec


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A script in place of Python, which writes what it was asked and its threads."""
    monkeypatch.setattr("sat_interp.engine.local.can_fork", lambda: False)
    path = tmp_path / "stub"
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$OMP_NUM_THREADS $*" >> {tmp_path}/asked\n'
        "echo working\n"
        'case "$3" in bad) echo "error: no text" >&2; exit 2;; gone) kill -9 $$;; '
        "bug) exit 1;; esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return tmp_path / "asked"


def test_jobs_run_side_by_side_on_their_share_of_the_cores(stub, tmp_path, monkeypatch):
    monkeypatch.setattr("sat_interp.engine.local._cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    own = {"quick": {"resamples": 1}}
    specs = [spec(name, budgets=own) for name in ("bad", "gone", "bug", "well")]
    specs.append(spec("last", 99, after="well", shared=()))
    jobs = plan(["demo:baseline"], Budgets("quick", {"out": "res"}), specs)
    states = []
    run(
        jobs,
        LocalEngine(2, tmp_path / "logs"),
        Claims(tmp_path),
        lambda job: states.append((job.name, job.state)),
    )
    assert {job.name: job.state for job in jobs} == {
        "bad": "failed",
        "gone": "failed",
        "bug": "failed",
        "well": "done",
        "last": "done",
    }
    assert jobs[0].reason == "no text"
    assert "signal 9" in jobs[1].reason
    assert jobs[2].reason.startswith("ended with code 1; its log is ")
    lines = [line.split(" ", 1) for line in stub.read_text().splitlines()]
    assert {threads for threads, _ in lines} == {"2"}
    asked = [line for _, line in lines]
    assert "-m evaluations.cli well demo:baseline --resamples=1 --out=res" in asked
    assert states.index(("well", "done")) < states.index(("last", "running"))
    assert (tmp_path / "logs" / "well.log").read_text() == "working\n"
    with pytest.raises(UserError, match="3 of 5 parts failed: bad: no text; gone: ended by"):
        raise_failures(jobs)


@pytest.mark.parametrize(
    ("limit", "threads"), [("1", "1"), ("3,1", "3"), ("64", "4"), ("0", "4"), ("many", "4")]
)
def test_a_child_gets_no_more_threads_than_the_environment_allows(
    limit, threads, stub, tmp_path, monkeypatch
):
    monkeypatch.setattr("sat_interp.engine.local._cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    jobs = plan(["demo:baseline"], Budgets("quick"))[:1]
    run(jobs, LocalEngine(1, tmp_path / "logs"), Claims(tmp_path))
    assert stub.read_text().split(" ", 1)[0] == threads


def test_no_process_of_the_battery_imports_from_the_working_directory(tmp_path, monkeypatch):
    for name in ("torch", "json", "evaluations"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    (job,) = plan(["./nothing-here"], Budgets("quick"))[:1]
    run([job], LocalEngine(1, tmp_path / "logs"), Claims(tmp_path))
    assert not list(tmp_path.glob("ran-*"))
    assert "no such directory" in job.reason


def test_a_command_whose_battery_is_gone_before_it_began_ends(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    done = subprocess.run(
        [sys.executable, "-m", "evaluations.cli", "lm", "demo:baseline", "--out", str(tmp_path)],
        env={**os.environ, PARENT: str(ended.pid)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert not list(tmp_path.rglob("lm-*.json"))
