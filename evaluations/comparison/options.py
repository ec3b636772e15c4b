"""The options of ``sat-eval report``, ``sat-eval curves`` and ``sat-eval verdict``."""

from __future__ import annotations

from dataclasses import dataclass


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
class VerdictOptions:
    """Which study, and where its records are."""

    study: str = "studies/answer.yaml"
    """Study file (sat-train --study)."""

    out: str = "results/answer"
    """Directory with the records; the verdict is written to OUT/verdict."""
