"""The options of ``lm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sat_interp._util.errors import UserError
from sat_interp._util.settings import check_at_least

Convention = Literal["sliding", "per-story"]


@dataclass(frozen=True)
class LanguageConfig:
    """Settings of ``lm``."""

    seed: int = 0
    """Seed of the bootstrap, of the sample of stories and of random gates."""

    resamples: int = 2000
    """Number of bootstrap resamples of the stories."""

    activation_stories: int = 200
    """Number of stories, drawn at random, whose activations are measured; 0 for none."""

    l0_threshold: float = 0.01
    """A unit is active if its |activation| exceeds this share of the token's largest one."""

    perplexity: Convention | None = None
    """Also report perplexity by another convention: sliding (all stories joined into one text and
    read through a window of the context's length that moves by half of it) or per-story (mean of
    each story's perplexity, its closing token not scored)."""

    def __post_init__(self) -> None:
        check_at_least(self, {"resamples": 0, "activation_stories": 0})
        if not 0 <= self.l0_threshold < 1:
            raise UserError(f"l0_threshold must be in [0, 1), not {self.l0_threshold}")
