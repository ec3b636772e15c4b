"""Configuration of ``n2g``."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluations.core.excerpts import GatherConfig, check_seed
from evaluations.suite.n2g.options import GraphOptions
from sat_interp._util.errors import UserError
from sat_interp._util.settings import check_at_least

MOST_EXAMPLES = 1000
"""Maximum number of excerpts per unit; excerpts of all units are in memory at once."""
IMPORTANCES = (0.5, 0.9)
ACTIVATIONS = (0.3, 0.7)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of activation and of importance."""

    activation: float = 0.5
    """A unit fires on a token if its activation exceeds this share of its maximum."""

    importance: float = 0.75
    """Minimum importance of a context token (the published code's)."""

    def variations(self) -> list[Thresholds]:
        """Return these thresholds and variations of one threshold at a time."""
        return [
            *(Thresholds(self.activation, importance) for importance in IMPORTANCES),
            self,
            *(Thresholds(activation, self.importance) for activation in ACTIVATIONS),
        ]


@dataclass(frozen=True)
class N2gConfig(GraphOptions):
    """Settings of the graphs."""

    neurons_per_layer: int | None = 200
    """Number of units drawn from each layer, the same for all models; None for all."""

    thresholds: Thresholds = field(default_factory=Thresholds)

    kept: float = 0.5
    """Share of an excerpt's activation that a shorter context or another word must exceed."""

    context: int = 30
    """Maximum number of tokens of left context."""

    proposals: int = 5
    """Number of words tried in place of each important word."""

    least_probability: float = 1e-5
    """Minimum probability of a word that is tried."""

    sae: str | None = None
    """Hash of the weights of the autoencoder whose features are the units."""

    gather: GatherConfig = field(default_factory=GatherConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(self, {"neurons_per_layer": 1, "examples": 1, "context": 0, "proposals": 1})
        if self.examples > MOST_EXAMPLES:
            raise UserError(f"examples must be at most {MOST_EXAMPLES:,}, not {self.examples:,}")
        for name in ("activation", "importance"):
            if not 0 < getattr(self.thresholds, name) < 1:
                raise UserError(f"the {name} threshold must be between 0 and 1")
        if not 0 <= self.kept < 1:
            raise UserError("kept must be at least 0 and below 1")
