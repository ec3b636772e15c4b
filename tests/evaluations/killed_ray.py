"""``sat-eval all`` on a Ray cluster of two nodes, of which something is killed again and again.

In turn the driver, a process that runs a job, and a node with all its processes get SIGKILL; a node
that was killed is replaced by a new one. A driver that was killed is started again.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from tests.cluster import Nodes

STEP = 0.2


def run_killed(
    start: Callable[[str], subprocess.Popen[bytes]],
    nodes: Nodes,
    kills: int,
    seconds: float,
    seed: int,
) -> tuple[int, list[str]]:
    """Run the command to its end, through all kills.

    Args:
        start: starts the command, given the cluster's address, in a session of its own.
        nodes: the cluster.
        kills: number of kills; fewer if the command ends before.
        seconds: about the time between two of them, at most.
        seed: of the moments.

    Returns:
        The exit code of the last driver, and what was killed.
    """
    draws, done = random.Random(seed), list[str]()
    driver = start(nodes.address)
    try:
        for number in range(kills):
            if not _runs_for(driver, draws.uniform(1.0, seconds)):
                break
            done.append(_kill(("driver", "worker", "node")[number % 3], driver, nodes))
            if driver.poll() is not None:
                driver = start(nodes.address)
        return driver.wait(), done
    finally:
        with suppress(ProcessLookupError):
            driver.kill()


def _runs_for(driver: subprocess.Popen[bytes], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if driver.poll() is not None:
            return False
        time.sleep(STEP)
    return driver.poll() is None


def _kill(what: str, driver: subprocess.Popen[bytes], nodes: Nodes) -> str:
    if what == "driver":
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    elif what == "node":
        nodes.kill(0)
        nodes.add()
    elif nodes.kill_a_worker() is None:
        return "no worker: none was running"
    return what
