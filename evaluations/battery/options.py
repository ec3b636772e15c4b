"""The options of ``sat-eval all`` and ``sat-eval status``."""

from __future__ import annotations

from dataclasses import dataclass

from evaluations.core.options import DEFAULT_OUT
from evaluations.core.spec import Preset
from sat_interp.engine.choose import EngineOptions


@dataclass(frozen=True)
class BatteryOptions(EngineOptions):
    """Options of a battery of evaluations."""

    study: str | None = None
    """Study file (sat-train --study) whose trained runs are evaluated."""

    preset: Preset = "demo"
    """Budget: quick (minutes for the built-in models), demo (about the defaults of the commands),
    paper (the published budgets)."""

    parts: tuple[str, ...] = ()
    """Evaluations to run, separated by commas; by default those that the study names (measures), or
    all."""

    runs: str | None = None
    """Directory that holds a model for each run of the study, by the run's name; by default the
    study's own, where sat-train wrote them."""


@dataclass(frozen=True)
class StatusOptions:
    """Options of the state of a study."""

    study: str | None = None
    """Study file (sat-train --study) whose runs are listed."""

    out: str = DEFAULT_OUT
    """Directory of the records."""

    parts: tuple[str, ...] = ()
    """Evaluations to list, separated by commas; by default those that the study names (measures),
    or all."""
