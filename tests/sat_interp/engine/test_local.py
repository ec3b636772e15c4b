from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sat_interp.engine.job import Command
from sat_interp.engine.local import DEVICES, LocalEngine, visible_gpus
from sat_interp.engine.run import Claims, run
from sat_interp.engine.warm import can_fork
from tests.sat_interp.engine.stubs import Small


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script in place of Python: waits until two jobs are there, then prints its GPU."""
    path = tmp_path / "stub"
    path.write_text(
        "#!/bin/sh\n"
        f"touch {tmp_path}/$2.here\n"
        f"while [ $(ls {tmp_path}/*.here | wc -l) -lt 2 ]; do sleep 0.05; done\n"
        f'echo "GPU ${DEVICES}"\n'
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.delenv(DEVICES, raising=False)


def logs(directory):
    return [path.read_text().strip() for path in sorted(directory.glob("*.log"))]


def test_two_jobs_side_by_side_use_two_gpus(script, tmp_path):
    jobs = [Small("a", module="a"), Small("b", module="b")]
    run(jobs, LocalEngine(2, tmp_path / "logs", gpus=["0", "3"]), Claims(tmp_path))
    assert sorted(logs(tmp_path / "logs")) == ["GPU 0", "GPU 3"]


def test_the_gpu_with_the_smallest_load_is_next(tmp_path, monkeypatch):
    path = tmp_path / "stub"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    engine = LocalEngine(4, tmp_path / "logs", gpus=["0", "1"])
    try:
        for name, share in (("a", 1.0), ("b", 0.5), ("c", 0.75), ("d", 1.0)):
            engine.start(Small(name, gpus=share))
        assert [child.device for child in engine._children] == ["0", "1", "1", "0"]
    finally:
        engine.close()


@pytest.mark.parametrize(("gpus", "share"), [(["0"], 1.0), ([], 1.0), (["0", "1"], 0.0)])
def test_a_job_sees_what_the_command_sees_where_there_is_nothing_to_hand_out(
    script, tmp_path, gpus, share
):
    jobs = [Small("a", module="a", gpus=share), Small("b", module="b", gpus=share)]
    run(jobs, LocalEngine(2, tmp_path / "logs", gpus=gpus), Claims(tmp_path))
    assert logs(tmp_path / "logs") == ["GPU", "GPU"]


def test_only_the_gpus_that_the_environment_names_are_handed_out(monkeypatch):
    monkeypatch.setenv(DEVICES, "2, 5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv(DEVICES, "")
    assert visible_gpus() == []


def test_the_options_of_a_job_are_a_file_and_a_lost_one_keeps_its_log(tmp_path, monkeypatch):
    path = tmp_path / "stub"
    path.write_text('#!/bin/sh\necho "$*"\ncat "$4"\nkill -9 $$\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    job = Small("a")
    job.command = lambda: type(Small("a").command())("m", (), {"steps": 3})  # type: ignore[method-assign]
    run([job], LocalEngine(1, tmp_path / "logs", gpus=[]), Claims(tmp_path))
    assert (job.state, job.attempts) == ("failed", 3)
    assert job.reason == f"ended by signal 9; its log is {tmp_path}/logs/a.log (3 attempts)"
    assert (tmp_path / "logs" / "a.log").read_text().count('"steps": 3') == 3


@pytest.mark.skipif(not can_fork(), reason="this system has no forks")
def test_what_jobs_import_is_imported_once_and_a_lost_process_is_made_anew(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import os\nMADE_BY = os.getpid()\n")
    (tmp_path / "job.py").write_text(
        "import os, signal, sys, slow\n"
        "from pathlib import Path\n"
        "from sat_interp.engine.parent import end_with_parent\n"
        "end_with_parent()\n"
        "print(sys.argv[1], os.getcwd(), slow.MADE_BY, flush=True)\n"
        "if sys.argv[1] == 'b' and not Path('lost').exists():\n"
        "    Path('lost').touch()\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    signal.pause()\n"
    )
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    monkeypatch.chdir(tmp_path)
    jobs = [Small(name, arguments=[name]) for name in "abc"]
    for job in jobs:
        told = Command("job", job.arguments, imports=["slow"])
        job.command = lambda told=told: told  # type: ignore[method-assign]
    run(jobs, LocalEngine(1, tmp_path / "logs", gpus=[]), Claims(tmp_path))
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1), ("done", 2), ("done", 1)]
    told = {job.name: (tmp_path / "logs" / f"{job.name}.log").read_text() for job in jobs}
    makers = {name: [line.split()[-1] for line in log.splitlines()] for name, log in told.items()}
    assert set(told["a"].split()[1:2]) == {str(tmp_path)}
    assert makers["a"][0] == makers["b"][0]
    assert len({*makers["a"], *makers["b"], *makers["c"]}) == 2
