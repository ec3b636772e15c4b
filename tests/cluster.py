"""A Ray cluster of several nodes on this machine, for tests; no other cluster is touched."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Nodes:
    """The nodes of a cluster, each with one CPU; the head runs no job.

    Attributes:
        address: HOST:PORT of the head.
    """

    def __init__(self, directory: Path, n: int) -> None:
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        self.directory = directory
        self._own = {"object_store_memory": 100 << 20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._own})
        self.address: str = self.cluster.address
        self.workers: list[Any] = []
        for _ in range(n):
            self.add(wait=False)
        self.cluster.wait_for_nodes()

    def add(self, wait: bool = True) -> None:
        """Add a node."""
        self.workers.append(self.cluster.add_node(num_cpus=1, wait=wait, **self._own))

    def kill(self, index: int) -> None:
        """Kill a node with all its processes, as a machine that is switched off."""
        self.cluster.remove_node(self.workers.pop(index), allow_graceful=False)

    def kill_a_worker(self) -> int | None:
        """Kill -9 a process that runs a job, if there is one; return its id."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                title = (process / "cmdline").read_bytes().decode().strip("\0 ")
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if not title.startswith("ray::") or title.endswith(("Agent", "IDLE")):
                    continue
                if str(self.directory) in Path(f"/proc/{parent}/cmdline").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
                    return int(process.name)
        return None

    def close(self) -> None:
        """Leave the cluster, where this process is its driver, and end it."""
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(n: int = 2) -> Iterator[Nodes]:
    """A cluster of ``n`` nodes and a head; skips the test where ray is not installed."""
    pytest.importorskip("ray", reason="Ray is not installed: make install-test")
    directory = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # sockets need short paths
    before = dict(os.environ)
    (directory / "ray").mkdir()
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(directory),
        "RAY_worker_niceness": "0",  # jobs would starve beside other tests,
        "RAY_health_check_period_ms": "500",  # a dead node is noticed at once,
        "RAY_health_check_timeout_ms": "60000",  # a slow one would pass for dead,
        "RAY_memory_monitor_refresh_ms": "0",  # and jobs would be killed for others' memory
    }
    try:
        nodes = Nodes(directory, n)
        try:
            yield nodes
        finally:
            nodes.close()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(directory, ignore_errors=True)
