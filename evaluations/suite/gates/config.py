"""The options of ``gates``."""

from __future__ import annotations

from dataclasses import dataclass

from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class GatesConfig:
    """Settings of ``gates``."""

    seed: int = 0
    """Seed of samples of stories, shuffles, probes, the bootstrap, and random gates."""

    resamples: int = 2000
    """Number of bootstrap resamples of the stories."""

    probe_stories: int = 160
    """Number of stories, drawn at random, for training, tuning and testing the probes; 0 for no
    probes."""

    probe_classes: int = 512
    """Number of classes of next tokens that the probes distinguish; the last one is for all other
    tokens."""

    intervention_stories: int = 40
    """Number of stories, drawn at random, for interventions on the masks; 0 for none."""

    picture_story: int = 0
    """Number of the story in the picture of masks, counted from 0."""

    picture_tokens: int = 24
    """Number of tokens in the picture of masks."""

    def __post_init__(self) -> None:
        for name in ("resamples", "probe_stories", "intervention_stories", "picture_story"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative")
        if self.probe_classes < 2:
            raise UserError(f"probe_classes must be at least 2, not {self.probe_classes}")
        if self.picture_tokens < 1:
            raise UserError(f"picture_tokens must be at least 1, not {self.picture_tokens}")
