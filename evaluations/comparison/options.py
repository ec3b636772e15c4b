"""The options of ``sat-eval report``, ``curves``, ``accuracy`` and ``verdict``."""

from __future__ import annotations

from dataclasses import dataclass

from sat_interp._util.settings import check_at_least


@dataclass(frozen=True)
class ReportOptions:
    """Which records are shown, and how."""

    out: str = "results"
    """Directory with the records; the report is written to OUT/report. Other files in it, truncated
    and duplicate records are counted and skipped."""

    study: str | None = None
    """Study file (sat-train --study): only its runs are shown, and all of them."""

    only: tuple[str, ...] = ()
    """Evaluations to show, with commas between them; all by default."""

    exclude: tuple[str, ...] = ()
    """Evaluations and models to leave out, with commas between them. A name that is both is the
    evaluation."""

    paper_values: bool = False
    """Show the paper's own values beside."""


@dataclass(frozen=True)
class CurvesOptions:
    """Where the figure goes."""

    out: str = "results"
    """Directory of the figure (curves.png, curves.svg)."""


@dataclass(frozen=True)
class AccuracyOptions:
    """Which tasks, and where the table goes."""

    tasks: tuple[str, ...] = ()
    """Tasks, with commas between them; by default the IOI of the model's corpus."""

    prompts: int = 200
    """Prompts of each task."""

    seed: int = 0
    """Seed of the prompts."""

    device: str | None = None
    """Device to compute on, such as cpu; by default an accelerator where there is one."""

    out: str = "results"
    """Directory of the table (accuracy.md, accuracy.csv, accuracy.tex)."""

    def __post_init__(self) -> None:
        check_at_least(self, {"prompts": 1})


@dataclass(frozen=True)
class VerdictOptions:
    """Which study, and where its records are."""

    study: str = "studies/answer.yaml"
    """Study file (sat-train --study)."""

    out: str | None = None
    """Directory with the records, by default results/ and the study's name; the verdict is written
    to OUT/verdict."""
