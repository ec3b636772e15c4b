from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sat_interp.engine import warm
from sat_interp.engine.warm import WarmProcess, can_fork, run_warm

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system has no forks")


@pytest.fixture
def environment(tmp_path):
    """Of processes that find the modules in ``tmp_path``."""
    path = os.pathsep.join([str(tmp_path), str(Path(warm.__file__).parents[2])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OWN": "1"}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def command(tmp_path):
    """Writes a module that is run as a program, after another that it imports."""
    (tmp_path / "slow.py").write_text("import os\nprint('imported')\nMADE_BY = os.getpid()\n")

    def write(text: str) -> None:
        (tmp_path / "command.py").write_text(f"import os, sys, slow\n{text}\n")

    return write


@pytest.fixture
def process(environment):
    made = WarmProcess(["slow"], environment)
    yield made
    made.close()


@contextmanager
def handled(**handlers: Any) -> Iterator[None]:
    """Handlers of signals by name, which a process that is started inherits where they ignore."""
    before = {name: signal.signal(signal.Signals[name], one) for name, one in handlers.items()}
    try:
        yield
    finally:
        for name, one in before.items():
            signal.signal(signal.Signals[name], one)


def test_commands_are_fresh_processes_that_need_not_import_again(process, command, log):
    command("print(slow.MADE_BY, os.getpid(), os.getcwd(), os.environ['OWN'], sys.argv[1:])")
    assert [process.run(["command", "a b"], log) for _ in range(2)] == [0, 0]
    lines = [line.split(maxsplit=4) for line in log.read_text().splitlines()]
    assert len(lines) == 2  # what the import printed is not the command's
    assert {line[0] for line in lines} == {str(process._process.pid)}
    assert len({line[1] for line in lines}) == 2
    assert lines[0][2:] == [str(log.parent), "1", "['a b']"]


def test_commands_run_side_by_side_where_they_are_asked_to(process, command, tmp_path):
    command(
        "import time; from pathlib import Path; Path(sys.argv[1]).touch()\n"
        "while not Path('..', sys.argv[2], sys.argv[2]).exists(): time.sleep(0.01)\n"
        "print(os.getcwd()); sys.exit(int(sys.argv[3]))"
    )
    forks = []
    for own, other, code in (("a", "b", 3), ("b", "a", 0)):
        (tmp_path / own).mkdir()
        log = tmp_path / f"{own}.log"
        forks.append(process.start(["command", own, other, str(code)], log, tmp_path / own))
    assert [fork.wait() for fork in forks] == [3, 0]
    assert [fork.poll() for fork in forks] == [3, 0]
    assert (tmp_path / "b.log").read_text() == f"{tmp_path / 'b'}\n"


def test_what_runs_ends_when_it_is_closed(environment, command, log):
    command("import time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    process = WarmProcess(["slow"], environment)
    fork = process.start(["command"], log, log.parent)
    _wait_for(lambda: (log.parent / "pid").exists() and (log.parent / "pid").read_text())
    assert fork.poll() is None
    process.close()
    assert fork.poll() == fork.wait() == -signal.SIGKILL
    _wait_for_the_end_of(log.parent / "pid")


def test_closing_does_not_wait_for_an_import(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "GRACE", 0.1)
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)\n")
    WarmProcess(["endless"], environment).close()


def test_an_interrupt_of_the_terminal_reaches_the_command_alone(environment, command, log):
    with handled(SIGINT=signal.default_int_handler):  # also where tests run in the background
        process = WarmProcess(["slow"], environment)
    command(
        "import signal, time\n"
        "os.kill(os.getppid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(600)"
    )
    assert process.run(["command"], log) == -signal.SIGINT
    assert log.read_text().endswith("KeyboardInterrupt\n")
    command("print('well')")
    assert process.run(["command"], log) == 0
    process.close()


@pytest.mark.parametrize("error", ["ImportError('no libx')", "OSError('no libx')"])
def test_what_cannot_be_imported_is_told_by_the_command(environment, command, log, error):
    """A second attempt in a process where the first was half done would tell something else."""
    (log.parent / "broken.py").write_text(
        "import slow\n"
        "if hasattr(slow, 'half'): raise RuntimeError('half done')\n"
        f"slow.half = True\nraise {error}\n"
    )
    command("import broken")
    process = WarmProcess(["slow", "broken"], {**environment, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.run(["command"], log) == 1
    finally:
        process.close()
    assert log.read_text().endswith("Error: no libx\n")


def test_one_that_cannot_be_started_costs_no_other(environment, command, tmp_path):
    (tmp_path / "full.py").write_text(
        "import os\nplain, calls = os.fork, []\n"
        "def fork():\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: raise BlockingIOError(11, 'no more processes')\n"
        "    return plain()\n"
        "os.fork = fork\n"
    )
    command("import time\nwhile not os.path.exists('go'): time.sleep(0.01)")
    process = WarmProcess(["full"], environment)
    first, second = (
        process.start(["command"], tmp_path / name, tmp_path) for name in ("one.log", "two.log")
    )
    assert second.wait() == 1
    (tmp_path / "go").touch()
    assert first.wait() == 0
    assert "no process could be started: [Errno 11]" in (tmp_path / "two.log").read_text()
    process.close()


def test_forks_have_generators_and_signals_of_their_own(environment, command, log):
    command(
        "import signal, numpy, torch\n"
        "print(float(torch.rand(1, dtype=torch.float64)), numpy.random.rand(),\n"
        "      signal.getsignal(signal.SIGINT).name, os.environ.get(sys.argv[1]))"
    )
    # as of a command in the background
    with handled(SIGINT=signal.SIG_IGN, SIGCHLD=signal.SIG_IGN):
        process = WarmProcess(["slow", "torch", "numpy"], environment)
    assert [process.run(["command", warm.NVML], log) for _ in range(2)] == [0, 0]
    process.close()
    one, other = (line.split() for line in log.read_text().splitlines())
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert one[2:] == other[2:] == ["SIG_IGN", "None"]


@pytest.mark.parametrize(
    ("text", "code", "written"),
    [
        ("sys.exit(2)", 2, ""),
        ("print('x'); sys.stdin.read(); sys.exit()", 0, "x\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("import no_such_module", 1, "No module named 'no_such_module'\n"),
    ],
)
def test_the_end_of_a_command_is_that_of_a_process(process, command, log, text, code, written):
    command(text)
    assert process.run(["command"], log) == code
    assert log.read_text().endswith(written)
    command("print('well')")
    assert process.run(["command"], log) == 0


def test_a_command_ends_with_the_process_that_forked_it(process, command, log):
    """As sat-train and sat-eval do."""
    command(
        "import time; from sat_interp.engine.parent import end_with_parent; end_with_parent()\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), 9); time.sleep(600)"
    )
    assert process.run(["command"], log) == -signal.SIGKILL
    assert not process.is_for(["slow"], {})
    _wait_for_the_end_of(log.parent / "pid")


def test_both_end_with_the_process_that_asked(environment, command, tmp_path):
    """As a worker of a cluster that is killed."""
    command("open('pid', 'w').write(str(os.getpid())); import time; time.sleep(600)")
    asking = (
        "import os; from pathlib import Path; from sat_interp.engine.warm import run_warm\n"
        f"run_warm(['command'], ['slow'], dict(os.environ), Path({str(tmp_path / 'log')!r}))"
    )
    asker = subprocess.Popen([sys.executable, "-c", asking], env=environment)
    _wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    asker.kill()
    asker.wait()
    _wait_for_the_end_of(tmp_path / "pid")


def test_one_process_is_kept_until_the_environment_changes(environment, command, log, monkeypatch):
    monkeypatch.setattr(warm, "_kept", [])
    command("print(os.getppid())")
    other = {**environment, "OWN": "2"}
    for given in (environment, environment, other, environment):
        assert run_warm(["command"], ["slow"], given, log) == 0
    parents = log.read_text().split()
    assert parents[0] == parents[1]
    assert len(set(parents)) == 3
    warm._kept.pop().close()


def test_a_fork_that_cannot_use_the_gpus_is_started_anew(environment, command, log, tmp_path):
    """An import that opened them, as torch tells."""
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    @staticmethod\n    def _is_in_bad_fork():\n        return True\n"
    )
    command("print(os.getpid(), slow.MADE_BY, sys.argv[1:])")
    process = WarmProcess(["slow", "torch"], environment)
    try:
        assert process.run(["command", "a"], log) == 0
    finally:
        process.close()
    own, made_by, arguments = log.read_text().splitlines()[-1].split(maxsplit=2)
    assert own == made_by != str(process._process.pid)
    assert arguments == "['a']"


def _wait_for_the_end_of(pid: Path) -> None:
    child = Path("/proc", pid.read_text())
    _wait_for(lambda: not child.exists() or ") Z " in (child / "stat").read_text())


def _wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
