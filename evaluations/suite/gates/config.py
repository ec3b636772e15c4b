"""The options of ``gates``."""

from __future__ import annotations

from dataclasses import dataclass

from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class GatesConfig:
    """What decides the figures of ``gates`` besides the model and the text."""

    seed: int = 0
    """Seed of samples of stories, shuffles, probes, the bootstrap, and gates that are random."""

    resamples: int = 2000
    """Number of bootstrap resamples of the stories."""

    probe_stories: int = 160
    """Number of stories, drawn at random, that the probes are trained, tuned and tested on; 0 for
    none."""

    probe_classes: int = 512
    """Number of next tokens that the probes distinguish; the last class holds all the others."""

    intervention_stories: int = 40
    """Number of stories, drawn at random, on which masks are exchanged; 0 for none."""

    picture_story: int = 0
    """Number of the story that the picture of masks shows, counted from 0."""

    picture_tokens: int = 24
    """Number of its tokens that the picture shows."""

    def __post_init__(self) -> None:
        for name in ("resamples", "probe_stories", "intervention_stories", "picture_story"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative")
        if self.probe_classes < 2:
            raise UserError(f"probe_classes must be at least 2, not {self.probe_classes}")
        if self.picture_tokens < 1:
            raise UserError(f"picture_tokens must be at least 1, not {self.picture_tokens}")
