"""The configuration of ``sat-eval lens``; imports nothing heavy."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded
from sat_interp._util.settings import check_at_least

KINDS = ("logit", "tuned", "tuned-paper", "oca", "shared", "mean", "resample")
DEFAULT_KINDS = ("logit", "tuned", "oca", "shared", "mean", "resample")


@dataclass(frozen=True)
class LensConfig:
    """Which lenses are fitted, on how much text, and what is measured of them."""

    lenses: tuple[str, ...] = DEFAULT_KINDS
    """Lenses: logit, tuned (the official recipe), tuned-paper (the optimal ablation paper's
    recipe), oca (optimal constants in place of attention), shared (one constant for each block),
    mean, resample."""

    prompt: str | None = None
    """Prompt that the lenses are applied to, for the picture of layers by tokens; by default the
    beginning of a held-out story."""

    load: str | None = None
    """File of lenses that an earlier run has saved; they are measured, and none is fitted."""

    fit_windows: int = 360
    """Windows of text that lenses are fitted on, a story each."""

    held_windows: int = 90
    """Windows of other stories that the figures are measured on."""

    window: int = 64
    """Tokens of a window, the one before the story included."""

    first: int = 8
    """First position of a window that is fitted on and measured."""

    tuned_steps: int = 250
    """Steps of the tuned lens; the official recipe's number."""

    tuned_batch: int = 262_144
    """Positions of a step of the tuned lens, at most those there are; the official number."""

    paper_steps: int = 30_000
    """Steps of tuned-paper, 64 positions each."""

    starts: int = 2
    """Starts of a fit of constants on a sample of the positions, at least two."""

    sample: int = 2048
    """Positions of that sample."""

    evaluations: int = 150
    """At most so many evaluations of value and gradient in a fit of constants."""

    no_edits: bool = False
    """Leave out causal faithfulness: edits of the stream, and whether lenses follow the model."""

    edit_prompts: int = 40
    """Held-out windows whose stream is edited."""

    directions: int = 16
    """Directions of each basis that the stream is edited along."""

    seed: int = 0
    """Seed of the windows, the fits, the resampling, the edits and the bootstrap."""

    resamples: int = 2000
    """Bootstrap resamples of the held-out stories."""

    memory: int = 1024
    """MiB of streams of text that stay in memory; more of them are kept in a temporary file."""

    def recorded(self) -> dict[str, Any]:
        """Return what decides the figures, besides the model and the text."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del settings["memory"]
        if self.load is not None:
            settings["load"] = file_hash(self.load)
        return settings

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: an unknown lens, or a number that is too small.
        """
        for name in self.lenses:
            if name not in KINDS:
                raise UserError(suggest("lens", name, KINDS))
        if not self.lenses:
            raise UserError("name at least one lens, such as oca")
        least = {
            "fit_windows": 8,
            "held_windows": 8,
            "window": 3,
            "first": 0,
            "tuned_steps": 1,
            "tuned_batch": 1,
            "paper_steps": 1,
            "starts": 2,
            "sample": 8,
            "evaluations": 4,
            "edit_prompts": 5,
            "directions": 1,
            "resamples": 1,
            "memory": 0,
        }
        check_at_least(self, least)
        if self.first >= self.window:
            raise UserError(
                f"first must be below window, which has {self.window} tokens, not {self.first}"
            )


def file_hash(path: str) -> str:
    """Return the hash of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(expanded(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"no lenses can be read from {path}: {error.strerror}") from None
