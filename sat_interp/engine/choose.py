"""The options that choose an engine, and the engine that they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sat_interp._util.errors import UserError
from sat_interp.engine.job import Engine
from sat_interp.engine.local import LocalEngine


@dataclass(frozen=True)
class EngineOptions:
    """Where jobs run."""

    jobs: int | None = None
    """Number of jobs that run in parallel. Of the local engine 1 by default, each on its share of
    the cores and, where there are several GPUs, on one of them; of Ray as many as the cluster has
    room for."""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: tasks of a Ray cluster (needs the extra:
    pip install 'sat-interp[cluster]')."""

    address: str | None = None
    """Of the Ray cluster: HOST:PORT of its head, or auto, the default: the cluster that this
    machine belongs to."""

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, not {self.jobs}")
        if self.address is not None and self.engine != "ray":
            raise UserError("--address is an option of --engine ray")

    @property
    def n_local(self) -> int:
        """Number of parallel processes of the local engine."""
        return self.jobs or 1


def make_engine(options: EngineOptions, logs: str | Path, no_gpus: bool = False) -> Engine:
    """Return the engine that the options choose.

    Args:
        options: the choice.
        logs: directory of the jobs' output.
        no_gpus: the jobs use no GPU.

    Raises:
        UserError: there is no such engine, or no cluster, here.
    """
    if options.engine == "ray":
        from sat_interp.engine.cluster import RayEngine

        return RayEngine(options.address or "auto", logs, options.jobs, no_gpus)
    return LocalEngine(options.n_local, logs, () if no_gpus else None)
