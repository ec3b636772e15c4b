from __future__ import annotations

import json
import socket
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from sat_interp._util.errors import UserError
from sat_interp.cli import main as sat_train
from sat_interp.engine.choose import EngineOptions
from sat_interp.engine.cluster import RayEngine, connect
from sat_interp.engine.job import Command, Shipment
from sat_interp.engine.parcel import file_hash
from sat_interp.engine.run import Claims, run
from sat_interp.engine.worker import Delivery
from tests.cluster import ray_cluster
from tests.sat_interp.engine.stubs import Small


@dataclass
class Copying(Small):
    """A job that copies a JSON file."""

    source: Path = Path()
    out: Path = Path()

    def shipment(self) -> Shipment:
        name = f"{self.label}.json"
        command = Command("json.tool", [str(self.source), str(self.out / name)])
        return Shipment(command, {self.source: {"": self.source}}, self.out, r".*\.json", name)


@pytest.fixture
def fake_ray(monkeypatch):
    """A ray whose version and refusal are given."""

    def make(version: str, refusal: str = "") -> None:
        module = types.ModuleType("ray")
        module.__version__ = version

        def init(**_: object) -> None:
            raise RuntimeError(refusal)

        module.init = init
        monkeypatch.setitem(sys.modules, "ray", module)

    return make


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray, which is not installed: pip install"):
        connect("auto")


def test_a_ray_that_is_too_old_is_named(fake_ray):
    fake_ray("1.13.0")
    with pytest.raises(UserError, match=r"Ray 1\.13\.0 is installed; 2\.40 or newer is needed"):
        connect("auto")


def test_a_cluster_of_another_version_is_named(fake_ray):
    fake_ray(
        "2.60.0",
        "Version mismatch: The cluster was started with:\n    Ray: 2.55.1\n    Python: 3.12.3\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
    )
    with pytest.raises(UserError) as error:
        connect("auto")
    assert str(error.value) == (
        "the cluster has another version of Ray or Python (Ray 2.55.1, Python 3.12.3, Ray 2.60.0, "
        "Python 3.11.7: cluster first, then here): install the same on every machine"
    )


def test_no_cluster_on_this_machine_and_any_other_refusal(fake_ray):
    fake_ray("2.60.0", "Could not find any running Ray instance.")
    with pytest.raises(UserError, match="there is no Ray cluster on this machine: start one"):
        connect("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        fake_ray("2.60.0", "No node info found matching attributes: '10.0.0.7' when trying to ...")
        with pytest.raises(UserError, match=f"no node of the cluster at {address}: ray start"):
            connect(address)
        fake_ray("2.60.0", "a password is wrong\nmore")
        with pytest.raises(UserError, match=f"cluster at {address}: a password is wrong$"):
            connect(address)


@pytest.mark.parametrize("address", ["", "head", "ray://head:10001", "head:0", "head:99999", ":1"])
def test_an_address_that_is_none_is_refused(fake_ray, address):
    fake_ray("2.60.0")
    with pytest.raises(UserError, match="--address must be auto or HOST:PORT, not"):
        connect(address)


def test_an_address_at_which_nothing_answers(fake_ray):
    fake_ray("2.60.0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"no Ray cluster answers at nowhere\.invalid:6379"):
        connect("nowhere.invalid:6379")


def test_the_options_of_an_engine():
    assert EngineOptions().n_local == 1
    with pytest.raises(UserError, match="--jobs must be at least 1, not 0"):
        EngineOptions(jobs=0)
    with pytest.raises(UserError, match="--address is an option of --engine ray"):
        EngineOptions(address="auto")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engine", "slurm"], "unknown engine 'slurm'; choices: local, ray"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--engine", "ray", "--address", "x"], "--address must be auto or HOST:PORT"),
    ],
)
def test_sat_train_says_what_is_wrong(fake_ray, tmp_path, capsys, arguments, told):
    fake_ray("2.60.0")
    study = tmp_path / "study.yaml"
    study.write_text(f"variants: [none]\nout: {tmp_path}/runs\n")
    assert sat_train(["--study", str(study), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


class InlineRay(types.ModuleType):
    """A ray of one node that runs a task when it is sent."""

    __version__ = "2.60.0"

    class exceptions:
        class RayError(Exception):
            pass

    n_tasks = 0

    def init(self, **_: object) -> None:
        pass

    shutdown = init

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def put(self, value: object) -> object:
        return value

    get = put

    def wait(self, tasks: list[object], **_: object) -> tuple[list[object], list[object]]:
        return tasks[:1], tasks[1:]

    def remote(self, function):
        def start(*arguments: object) -> object:
            self.n_tasks += 1
            return function(*arguments)

        sent = types.SimpleNamespace(remote=start)
        return types.SimpleNamespace(options=lambda **_: sent)


@pytest.fixture
def inline_ray(monkeypatch, tmp_path):
    module = InlineRay("ray")
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Delivery, "__hash__", object.__hash__)  # it stands for the task
    return module


def test_what_was_done_is_known_by_its_inputs_and_done_again_only_if_it_is_gone(
    inline_ray, tmp_path
):
    source, out = tmp_path / "source.json", tmp_path / "out"

    def drive(text: str) -> bool:
        """A driver of its own; returns whether the job was done before."""
        source.write_text(text)
        job = Copying("one", source=source, out=out)
        run([job], RayEngine("auto", tmp_path / "logs"), Claims(out))
        assert job.state == "done"
        assert json.loads((out / "one.json").read_text())
        return job.was_finished

    assert not drive("[1]")
    assert drive("[1]")
    assert inline_ray.n_tasks == 1
    (out / "one.json").unlink()
    assert not drive("[1]")
    assert not drive("[2]")  # another input
    (tmp_path / "logs" / "one.done").write_text("damaged")
    assert not drive("[2]")
    assert drive("[2]")
    assert inline_ray.n_tasks == 4


def test_what_failed_is_not_known_as_done(inline_ray, tmp_path):
    source = tmp_path / "source.json"
    source.write_text("{")
    for n in (3, 6):
        job = Copying("one", source=source, out=tmp_path / "out")
        run([job], RayEngine("auto", tmp_path / "logs"), Claims(tmp_path / "out"))
        assert (job.state, inline_ray.n_tasks) == ("failed", n)


@pytest.mark.slow
def test_a_lost_object_is_sent_again_and_what_fails_three_times_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    large, broken, out = tmp_path / "large.json", tmp_path / "broken.json", tmp_path / "out"
    large.write_text(json.dumps(["story"] * 100_000))  # in the object store, not in the message
    broken.write_text("{")
    files = {"one": large, "two": large, "bad": broken}
    jobs = [Copying(name, source=file, out=out) for name, file in files.items()]
    told = []
    with ray_cluster(1) as nodes:
        engine = RayEngine(nodes.address, tmp_path / "logs")
        content = large.read_bytes()
        lost = engine._ray.remote(max_retries=0)(lambda: content).remote()
        engine._ray.wait([lost], fetch_local=False)
        nodes.kill(0)  # the only one that has the object
        nodes.add()
        engine._stored[file_hash(large)] = [lost]
        run(jobs, engine, Claims(out), lambda job: told.append((job.name, job.state)))
    assert [job.state for job in jobs] == ["done", "done", "failed"]
    assert ("one", "waiting") in told
    assert [jobs[0].attempts, jobs[2].attempts] == [2, 3]
    for job in jobs[:2]:
        assert json.loads((out / f"{job.name}.json").read_text()) == ["story"] * 100_000
    log = tmp_path / "logs" / "bad.log"
    assert jobs[2].reason.endswith(f"; its log is {log} (3 attempts)")
    assert log.read_text().count("Expecting property name") == 3
    assert "attempt 1: lost: " in (tmp_path / "logs" / "one.log").read_text()
