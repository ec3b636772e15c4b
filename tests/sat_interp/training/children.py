"""Runs in processes of their own: killed at will, or two that train together."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

# A server that imports once and forks: a child starts in milliseconds, with no threads of ours.
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sat_interp.training.train"])


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    child = CONTEXT.Process(target=function, args=arguments, daemon=True)
    child.start()
    return child


def train_child(settings: dict[str, Any], environment: dict[str, str]) -> None:
    import torch

    from sat_interp.training.config import TrainConfig
    from sat_interp.training.train import train

    os.environ.update(environment)
    torch.set_num_threads(1)
    train(TrainConfig(**settings))


def crash_child(settings: dict[str, Any], environment: dict[str, str], at: int) -> None:
    """Train, and die without a word at the ``at``-th file that takes its final name."""
    real, count = os.replace, iter(range(1, at + 1))

    def replace(*arguments: Any, **options: Any) -> None:
        if next(count) == at:
            os._exit(9)
        real(*arguments, **options)

    os.replace = replace  # type: ignore[assignment]
    train_child(settings, environment)


def train_together(settings: dict[str, Any], environment: dict[str, str], world: int) -> list[int]:
    """Exit codes of ``world`` processes of one run, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        children.append(start(train_child, settings, {**environment, **place}))
    for child in children:
        child.join(120)
    return [child.exitcode if child.exitcode is not None else -1 for child in children]
