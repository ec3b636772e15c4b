"""Jobs and an engine without processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sat_interp.engine.job import Command, End, Job, Resources


@dataclass
class Small(Job):
    """A job whose command is ``python -m MODULE``."""

    label: str
    before: Sequence[str] = ()
    module: str = "this"
    gpus: float = 1.0
    arguments: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.label

    @property
    def kind(self) -> str:
        return self.label.split()[0]

    @property
    def after(self) -> Sequence[str]:
        return self.before

    @property
    def claims(self) -> Sequence[str]:
        return (self.label,)

    @property
    def resources(self) -> Resources:
        return Resources(gpus=self.gpus)

    def command(self) -> Command:
        return Command(self.module, self.arguments)


@dataclass
class Scripted:
    """An engine that ends each attempt as it is told, well where nothing is told."""

    ends: dict[str, list[End]] = field(default_factory=dict)
    n: int = 1
    order: list[str] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    is_closed: bool = False

    def has_room(self, job: Job) -> bool:
        return len(self.running) < self.n

    def start(self, job: Job) -> None:
        self.order.append(job.name)
        self.running.append(job)

    def ended(self) -> list[tuple[Job, End]]:
        job = self.running.pop(0)
        told = self.ends.get(job.name)
        return [(job, told.pop(0) if told else End())]

    def close(self) -> None:
        self.is_closed = True
