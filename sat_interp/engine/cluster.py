"""The engine of a Ray cluster: each job is a task, its files travel through the object store."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import write_atomically
from sat_interp.engine.job import End, Job, Resources, Shipment
from sat_interp.engine.local import limited
from sat_interp.engine.parcel import CHUNK, Parcel, install, pack
from sat_interp.engine.run import POLL
from sat_interp.engine.worker import Delivery, perform

OLDEST = (2, 40)
"""Oldest version of Ray that is accepted."""
REACHABLE = 5.0
"""Seconds within which an address must answer."""
REFRESH = 2.0
"""Seconds between two looks at the nodes."""
DECISIVE = ("SAT_INTERP_NATIVE", "HF_HUB_OFFLINE")
"""Environment variables that a job gets as they are here."""
INSTALL = "pip install 'sat-interp[cluster]'"
LONGEST = 200
"""Characters of Ray's reason for a loss."""
GIB = 1 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """A job that runs.

    Attributes:
        taken: what it takes of its node.
        key: of its parcel.
    """

    job: Job
    shipment: Shipment
    taken: Resources
    key: str


class RayEngine:
    """Tasks of a Ray cluster.

    Files that a job reads are put into the object store once, known by their hash; the files that
    it writes come back, and this process writes them. A job is never repeated by Ray: attempts are
    counted in one place (:func:`sat_interp.engine.run.run`).

    Args:
        address: ``auto`` (the cluster that this machine belongs to) or ``HOST:PORT`` of its head.
        logs: directory of the jobs' output, ``<log name>.log``.
        n_jobs: number of jobs in the cluster; by default those it has room for.
        no_gpus: no job gets a GPU.

    Raises:
        UserError: Ray is not installed, of another version than the cluster's, or there is no
            cluster at the address.
    """

    def __init__(
        self, address: str, logs: str | Path, n_jobs: int | None = None, no_gpus: bool = False
    ) -> None:
        self._ray = connect(address)
        self.logs, self.n_jobs, self.no_gpus = Path(logs), n_jobs, no_gpus
        self._tasks: dict[Any, _Task] = {}
        self._stored: dict[str, list[Any]] = {}
        self._nodes: list[Mapping[str, float]] = []
        self._looked = -REFRESH
        self._task = self._ray.remote(_perform)

    def has_room(self, job: Job) -> bool:
        """Whether the nodes have room for the job beside those that run."""
        if self.n_jobs is not None:
            return len(self._tasks) < self.n_jobs
        wanted = [one.taken for one in self._tasks.values()] + [self._fitting(job.resources)]
        totals = {name: sum(node.get(name, 0.0) for node in self._alive()) for name in _AMOUNTS}
        fits = all(
            sum(amount(one) for one in wanted) <= totals[name] for name, amount in _AMOUNTS.items()
        )
        return fits or not self._tasks  # a cluster that grows does so when it is asked for more

    def start(self, job: Job) -> End | None:
        """Send the job, unless this or another driver has had it done with the same inputs."""
        taken = self._fitting(job.resources)
        shipment = job.shipment()
        environment = {name: os.environ[name] for name in DECISIVE if name in os.environ}
        parcel, files = pack(shipment, limited(taken.cpus), environment)
        if not shipment.overwrite and self._is_done(job, parcel, shipment.out):
            job.was_finished = True
            return End()
        stored = {digest: self._put(digest, path) for digest, path in files.items()}
        task = self._task.options(
            num_cpus=taken.cpus,
            num_gpus=taken.gpus,
            memory=int(taken.memory * GIB),
            max_retries=0,
            name=job.name,
        ).remote(parcel, stored)
        self._tasks[task] = _Task(job, shipment, taken, parcel.key)
        return None

    def ended(self) -> list[tuple[Job, End]]:
        """Return the jobs that have ended; their files are written before."""
        done, _ = self._ray.wait(list(self._tasks), timeout=POLL, fetch_local=False)
        return [(self._tasks[task].job, self._end(self._tasks.pop(task), task)) for task in done]

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        self._stored.clear()
        self._ray.shutdown()

    def _end(self, sent: _Task, task: Any) -> End:
        job, shipment = sent.job, sent.shipment
        try:
            delivery: Delivery = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            self._stored.clear()  # a file of the job may be what was lost: it is stored again
            end = _lost(error)
            self._log(job, f"attempt {job.attempts}: {end.reason}\n".encode())
            return End(f"{end.reason}; its log is {self._path(job)}", end.is_final)
        self._log(job, delivery.log)
        install(delivery.files, shipment.out, shipment.last, shipment.overwrite)
        end = delivery.end
        if not end.reason:
            done = [name for name in delivery.files if re.fullmatch(shipment.last, name)]
            write_atomically(self._mark(job), json.dumps({"key": sent.key, "files": done}))
            return end
        reason = re.sub(r"; its log is .*", "", end.reason)
        return End(f"{reason}, on {delivery.node}; its log is {self._path(job)}", end.is_final)

    def _is_done(self, job: Job, parcel: Parcel, out: Path) -> bool:
        """Whether the parcel was done before, by any driver, and what it left is still there."""
        try:
            mark = json.loads(self._mark(job).read_bytes())
            key, files = mark["key"], [out / name for name in mark["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return key == parcel.key and bool(files) and all(one.is_file() for one in files)

    def _mark(self, job: Job) -> Path:
        """The file that says what was done: the key of its parcel, and the files written last."""
        return self.logs / f"{job.log_name}.done"

    def _path(self, job: Job) -> Path:
        return self.logs / f"{job.log_name}.log"

    def _log(self, job: Job, content: bytes) -> None:
        """Write the log of an attempt after those of earlier ones."""
        path = self._path(job)
        before = path.read_bytes() if job.attempts > 1 and path.exists() else b""
        write_atomically(path, before + content)

    def _put(self, digest: str, path: Path) -> list[Any]:
        """Put a file into the object store, in pieces, unless it is there."""
        if digest not in self._stored:
            with open(path, "rb") as file:
                pieces = iter(functools.partial(file.read, CHUNK), b"")
                self._stored[digest] = [self._ray.put(piece) for piece in pieces]
        return self._stored[digest]

    def _alive(self) -> list[Mapping[str, float]]:
        """Return the resources of each node, as of a moment ago."""
        if time.monotonic() - self._looked >= REFRESH:
            self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._looked = time.monotonic()
        return self._nodes

    def _fitting(self, wanted: Resources) -> Resources:
        """Return what a job gets: no more than the largest node has."""
        nodes = self._alive()
        most = {
            name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in _AMOUNTS
        }
        gpus = 0.0 if self.no_gpus else min(wanted.gpus, most["GPU"])
        memory = min(wanted.memory, most["memory"] / GIB) if most["memory"] else wanted.memory
        cpus = min(wanted.cpus, int(most["CPU"])) if most["CPU"] >= 1 else wanted.cpus
        return Resources(cpus, gpus, memory)


_AMOUNTS: Mapping[str, Callable[[Resources], float]] = {
    "CPU": lambda one: one.cpus,
    "GPU": lambda one: one.gpus,
    "memory": lambda one: one.memory * GIB,
}
"""Ray's names of the resources of a node, and a job's need of each."""


def _perform(parcel: Parcel, stored: Mapping[str, list[Any]]) -> Delivery:
    """Run a parcel on a worker; what it lacks is fetched from the object store."""
    import ray

    return perform(parcel, lambda digest: map(ray.get, stored[digest]))


def connect(address: str) -> Any:
    """Return the module ``ray``, connected to a cluster.

    Raises:
        UserError: Ray is not installed, of another version than the cluster's, or there is no
            cluster at the address.
    """
    ray = _installed()
    _check_address(address)
    with suppress(Exception):  # no public way: Ray's own messages would cut through the overview
        ray._private.worker.print_to_stdstream = _ignored
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:  # Ray's failures to connect have no common base class
        raise UserError(_refusal(address, str(error), first_line(error))) from None
    return ray


def _ignored(data: Mapping[str, Any], **_: object) -> None:
    """Log a message of Ray's in place of printing it; a lost job has its reason in its own log."""
    log.debug("Ray: %s", data)


def _installed() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(f"--engine ray needs Ray, which is not installed: {INSTALL}") from None
    version = str(getattr(ray, "__version__", "unknown"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(f"Ray {version} is installed; {oldest} or newer is needed: {INSTALL}")
    return ray


def _check_address(address: str) -> None:
    """Check that something answers; Ray itself waits for minutes, or ends the process.

    Raises:
        UserError: the address is not valid, or nothing answers there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host or not 0 < int(port) < 1 << 16:
        raise UserError(f"--address must be auto or HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): "
            "name the head's HOST:PORT, or start one with ray start --head"
        ) from None


def _refusal(address: str, message: str, line: str) -> str:
    """Return what to do about a refused connection."""
    if "ersion mismatch" in message:
        versions = re.findall(r"(Ray|Python): ([\w.]+)", message)
        pairs = ", ".join(f"{name} {version}" for name, version in versions)
        return (
            f"the cluster has another version of Ray or Python ({pairs}: cluster first, then "
            "here): install the same on every machine"
        )
    if "No node info found" in message:
        return (
            f"this machine is no node of the cluster at {address}: "
            f"ray start --address {address} here first"
        )
    if "auto" in address:
        return (
            "there is no Ray cluster on this machine: start one with ray start --head, or name "
            "its head with --address HOST:PORT"
        )
    return f"cannot connect to the Ray cluster at {address}: {line}"


def _lost(error: Exception) -> End:
    """Return the end of a task that did not come back."""
    if "No module named 'sat_interp" in str(error):
        return End(f"a node of the cluster lacks this package: {INSTALL} on every node")
    cause = getattr(error, "cause", None) or error  # of an error on the worker: without its trace
    reason = first_line(cause).partition(". ")[0]  # advice on Ray's own tools follows
    return End(f"lost: {type(cause).__name__}: {reason[:LONGEST]}", is_final=False)
