"""Jobs: a command with its resources and its state, the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

State = Literal["waiting", "running", "done", "failed", "nothing to do"]


@dataclass(frozen=True)
class Resources:
    """What a job needs while it runs.

    Attributes:
        cpus: CPU cores, which is also the number of its threads on a cluster.
        gpus: share of a GPU, where there are GPUs.
        memory: main memory in GiB. A cluster takes it from the node's; the local engine does not.
    """

    cpus: int = 1
    gpus: float = 1.0
    memory: float = 2.0


@dataclass
class Job:
    """A command of this package that is run for its files; engines know no more of it.

    Subclasses say what the command is. A command that ended with code 0 or 2 has decided the job:
    2 is an error that only the user can correct. Any other end is worth another attempt.
    """

    estimate: float | None = field(default=None, kw_only=True)
    """Expected time in seconds on one core; None if it is unknown."""
    state: State = field(default="waiting", kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)
    """Time of all attempts."""
    reason: str = field(default="", kw_only=True)
    """Reason of a failure."""
    attempts: int = field(default=0, kw_only=True)
    is_rough: bool = field(default=False, kw_only=True)
    """Whether the estimate is extrapolated to another size of model, or guessed."""
    was_finished: bool = field(default=False, kw_only=True)
    """Whether it had been done before: nothing was run."""

    @property
    def name(self) -> str:
        """Name in the overview, unique among the jobs."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """What it has in common with jobs that take about as long."""
        return self.name

    @property
    def after(self) -> Sequence[str]:
        """Names of the jobs that have to end before; those that are not there do not count."""
        return ()

    @property
    def resources(self) -> Resources:
        """What it needs."""
        return Resources()

    @property
    def log_name(self) -> str:
        """Name of its log, without suffix, below the directory of the logs."""
        return self.name

    @property
    def claims(self) -> Sequence[str]:
        """Names of the locks that are held while it runs, so that no other driver runs it."""
        return ()

    def command(self) -> Command:
        """Return the command; called when the job starts.

        Raises:
            UserError: it cannot be started.
        """
        raise NotImplementedError

    def shipment(self) -> Shipment:
        """Return the command and its files as they are sent to a machine without these files.

        Raises:
            UserError: it cannot be started.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        module: the module that is run as a program, such as ``evaluations.cli``.
        arguments: the arguments.
        config: options that are written to a file, which follows as ``--config``.
        imports: modules that it imports anyway; they are imported once for several jobs.
    """

    module: str
    arguments: Sequence[str]
    config: Mapping[str, Any] | None = None
    imports: Sequence[str] = ()


@dataclass(frozen=True)
class Shipment:
    """A command with all files it reads, and the directory it fills.

    Attributes:
        command: the command; every path in it is absolute and as it is on this machine.
        inputs: by path on this machine (a file or a directory), the files to send: path on this
            machine by path relative to it; '' is the file itself.
        out: the directory that the command fills.
        present: files below ``out`` that the command should find there, relative to it.
        keep: regular expression of the files that are sent back, by path relative to ``out``.
        last: regular expression of those that say that the job is done: written after all others.
        overwrite: whether a file of ``last`` that is there already is replaced.
        recipe: version of what the command computes, where it has one beside the package's.
    """

    command: Command
    inputs: Mapping[Path, Mapping[str, Path]]
    out: Path
    keep: str
    last: str
    present: Sequence[str] = ()
    overwrite: bool = False
    recipe: str = ""


@dataclass(frozen=True)
class End:
    """The end of an attempt.

    Attributes:
        reason: why it failed; empty if it did not.
        is_final: whether another attempt would end the same way.
    """

    reason: str = ""
    is_final: bool = True


@runtime_checkable
class Engine(Protocol):
    """What runs jobs: starts them, and tells which have ended."""

    def has_room(self, job: Job) -> bool:
        """Whether the job can start now, beside those that run."""
        ...

    def start(self, job: Job) -> End | None:
        """Start a job; return its end if nothing had to be run.

        Raises:
            UserError: it cannot be started.
        """
        ...

    def ended(self) -> list[tuple[Job, End]]:
        """Wait a moment at most; return the jobs that have ended since the last call."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...
