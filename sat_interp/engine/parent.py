"""A process that ends with the one that started it."""

from __future__ import annotations

import os
import threading
import time

PARENT = "SAT_EVAL_PARENT"
"""Environment variable with the id of the process that a command ends with."""


def end_with_parent() -> None:
    """End this process when the one that started it as a job ends, even if it is killed.

    The parent's process id is in the environment, since ``os.getppid`` is already another process
    if the parent was killed while this process started.
    """
    parent = os.environ.get(PARENT, "")
    if parent.isdecimal():
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
