"""The options of ``sat-eval all``."""

from __future__ import annotations

from dataclasses import dataclass

from evaluations.core.spec import Preset
from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class BatteryOptions:
    """Which evaluations of which models, and how many side by side."""

    study: str | None = None
    """Study file (sat-train --study) whose trained runs are evaluated."""

    preset: Preset = "demo"
    """Budget: quick (the built-in models in minutes), demo (the commands' own defaults, or near),
    paper (the published budgets)."""

    jobs: int = 1
    """Number of evaluations that run side by side, each on its share of the cores."""

    parts: tuple[str, ...] = ()
    """Evaluations to run, with commas between them; all by default."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, not {self.jobs}")
