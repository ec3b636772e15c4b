"""The options of ``sat-eval all``."""

from __future__ import annotations

from dataclasses import dataclass

from evaluations.core.spec import Preset
from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class BatteryOptions:
    """Options of a battery of evaluations."""

    study: str | None = None
    """Study file (sat-train --study) whose trained runs are evaluated."""

    preset: Preset = "demo"
    """Budget: quick (minutes for the built-in models), demo (about the defaults of the commands),
    paper (the published budgets)."""

    jobs: int = 1
    """Number of evaluations that run in parallel, each on its share of the cores."""

    parts: tuple[str, ...] = ()
    """Evaluations to run, separated by commas; by default those that the study names (measures), or
    all."""

    runs: str | None = None
    """Directory that holds a model for each run of the study, by the run's name; by default the
    study's own, where sat-train wrote them."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, not {self.jobs}")
