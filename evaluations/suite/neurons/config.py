"""What decides the scores, and what is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluations.core.excerpts import GatherConfig, check_seed
from evaluations.core.text import Text
from evaluations.suite.neurons.examiners.base import Examiner
from evaluations.suite.neurons.options import SCORES, ScoreOptions
from evaluations.suite.neurons.shown import Mix
from sat_interp._util.errors import UserError, suggest


@dataclass(frozen=True)
class NeuronsConfig(ScoreOptions):
    """What decides the scores besides the model and the text."""

    examiner: dict[str, Any]
    """What decides the examiner's answers, as it describes itself."""

    sae: str | None = None
    """Hash of the weights of the autoencoder whose features are explained."""

    shown: Mix = Mix(top=10, sample=5, random=5)
    """Excerpts to explain from."""

    scored: Mix = Mix(top=5, sample=5, random=10)
    """Held-out excerpts."""

    gather: GatherConfig = field(default_factory=GatherConfig)
    """Excerpts that are kept of each unit."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.sample is not None and self.sample < 1:
            raise UserError(f"sample must be at least 1, not {self.sample}")
        if self.resamples < 0:
            raise UserError("resamples cannot be negative")
        for name in self.scores:
            if name not in SCORES:
                raise UserError(suggest("score", name, SCORES))
        if "simulation" not in self.scores:
            raise UserError("scores must hold simulation")


@dataclass(frozen=True)
class NeuronsData:
    """The text, who explains, and where what is found lies.

    Attributes:
        model_key: what the model's activations are known by.
        name: of the model, for people.
        directory: where explanations and excerpts go.
        sae: directory of an autoencoder whose features are the units.
        cache: of gathered passes; by default in the cache of the package.
    """

    text: Text
    examiner: Examiner
    model_key: str
    name: str
    directory: Path
    sae: Path | None = None
    cache: Path | None = None

    @cached_property
    def content(self) -> str:
        return self.text.content

    def describe(self) -> dict[str, Any]:
        return self.text.describe()
