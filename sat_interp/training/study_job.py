"""The run of a study as a job of an engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_interp._util.files import expanded, files_below
from sat_interp.engine.job import Command, Job, Resources, Shipment
from sat_interp.training.config import TrainConfig

if TYPE_CHECKING:
    from sat_interp.training.study import StudyRun

IMPORTS = ("sat_interp._util.commandline", "sat_interp.training.train")
"""Modules that every training imports."""
KEPT = r"(?!checkpoints/|trials/[^/]+/checkpoints/).*"
"""Files of a finished run that come back from another machine: all but its checkpoints."""


@dataclass
class TrainingJob(Job):
    """A run of a study.

    Attributes:
        run: the run.
        target: name of the run whose perplexity it is to match, if any.
        make_config: its configuration, once the target is trained; raises ``UserError`` if it is
            not.
        summary: of the run, once it has been trained.
    """

    run: StudyRun
    target: str | None
    make_config: Callable[[], TrainConfig]
    summary: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def kind(self) -> str:
        """Runs that differ in their seed take as long."""
        return self.run.group

    @property
    def after(self) -> Sequence[str]:
        """The run whose perplexity it is to match."""
        return () if self.target is None else (self.target,)

    @property
    def resources(self) -> Resources:
        """A core and, unless the run is on the CPU, a GPU of its own."""
        return Resources(gpus=0.0 if self.run.config.device == "cpu" else 1.0)

    @property
    def claims(self) -> Sequence[str]:
        """Name of the run."""
        return (self.name,)

    @property
    def config(self) -> TrainConfig:
        """The run's configuration with absolute paths.

        Raises:
            UserError: the run whose perplexity it is to match is not trained.
        """
        from sat_interp.training.directory import absolute_inputs  # imports torch

        config = self.make_config()
        out = str(expanded(str(config.out)).resolve())
        return dataclasses.replace(config, **absolute_inputs(vars(config)), out=out)

    def command(self) -> Command:
        """Return the command that trains the run."""
        options = {name: one for name, one in self.config.to_dict().items() if one is not None}
        return Command("sat_interp.cli", (), options, IMPORTS)

    def shipment(self) -> Shipment:
        """Return the command with the run's text, tokenizer and what it has so far.

        Raises:
            UserError: the directory holds another run.
        """
        from sat_interp.data.sources import files_of  # both import torch
        from sat_interp.training.directory import RunDirectory

        config = self.config
        out = Path(str(config.out))
        RunDirectory(out).check(config)
        inputs = files_of(config.data)
        if config.validation is not None:
            inputs |= files_of(config.validation)
        for named in (config.tokenizer, config.init):
            if named is not None and os.path.isabs(named):
                inputs[Path(named)] = files_below(Path(named), KEPT)
        return Shipment(self.command(), inputs, out, KEPT, r"summary\.json", list(files_below(out)))
