"""The options of ``gates``."""

from __future__ import annotations

from dataclasses import dataclass

from sat_interp._util.settings import check_at_least


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
        counts = ("resamples", "probe_stories", "intervention_stories", "picture_story")
        check_at_least(self, {**dict.fromkeys(counts, 0), "probe_classes": 2, "picture_tokens": 1})
