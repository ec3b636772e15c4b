"""Configuration and data of ``neurons``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluations.core.excerpts import GatherConfig, check_seed
from evaluations.core.text import Text
from evaluations.suite.neurons.examiners.base import Examiner
from evaluations.suite.neurons.excerpts import ExcerptMix
from evaluations.suite.neurons.options import SCORES, ScoreOptions
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.settings import check_at_least


@dataclass(frozen=True)
class NeuronsConfig(ScoreOptions):
    """Settings of the scores, and the examiner."""

    examiner: Examiner
    """Explains the units and predicts them; a record holds its description."""

    sae: str | None = None
    """Hash of the weights of the autoencoder whose features are explained."""

    shown: ExcerptMix = ExcerptMix(top=10, sample=5, random=5)
    """Numbers of excerpts that an examiner explains from."""

    scored: ExcerptMix = ExcerptMix(top=5, sample=5, random=10)
    """Numbers of held-out excerpts."""

    gather: GatherConfig = field(default_factory=GatherConfig)
    """Excerpts gathered for each unit."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(self, {"sample": 1, "resamples": 0})
        for name in self.scores:
            if name not in SCORES:
                raise UserError(suggest("score", name, SCORES))
        if "simulation" not in self.scores:
            raise UserError("scores must include simulation")

    def recorded(self) -> dict[str, Any]:
        """Return the settings for a record, with everything that determines the answers."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**settings, "examiner": self.examiner.describe()}


@dataclass(frozen=True)
class NeuronsData:
    """Text and output directory.

    Attributes:
        model_key: hash of everything that determines the model's activations.
        name: name of the model.
        directory: directory of explanations and excerpts.
        sae: directory of an autoencoder whose features are the units.
        cache: directory of gathered excerpts; by default in the cache of the package.
    """

    text: Text
    model_key: str
    name: str
    directory: Path
    sae: Path | None = None
    cache: Path | None = None

    @cached_property
    def content(self) -> str:
        """Hash of the text."""
        return self.text.content

    def describe(self) -> dict[str, Any]:
        """Describe the text for a record."""
        return self.text.describe()
