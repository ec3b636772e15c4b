"""What decides a unit's graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluations.core.excerpts import GatherConfig, check_seed
from evaluations.suite.n2g.options import GraphOptions
from sat_interp._util.errors import UserError

MOST_EXAMPLES = 1000
"""Excerpts of a unit; all of them are held in memory, for all units at once."""
IMPORTANCES = (0.5, 0.9)
ACTIVATIONS = (0.3, 0.7)


@dataclass(frozen=True)
class Thresholds:
    """Where a token fires, and where another matters to it."""

    activation: float = 0.5
    """Normalised by the unit's maximum; a token fires above it."""

    importance: float = 0.75
    """From it on a token of the context matters; the published code's."""

    def others(self) -> list[Thresholds]:
        """Itself and its neighbours: one threshold moved at a time."""
        return [
            *(Thresholds(self.activation, other) for other in IMPORTANCES),
            self,
            *(Thresholds(other, self.importance) for other in ACTIVATIONS),
        ]


@dataclass(frozen=True)
class N2gConfig(GraphOptions):
    """What decides the graphs, besides model, text and the source of substitutions."""

    neurons_per_layer: int | None = 200
    """Drawn without replacement from all of a layer, the same for all models; None for all."""

    thresholds: Thresholds = field(default_factory=Thresholds)

    kept: float = 0.5
    """Share of an excerpt's activation that a shorter context, or another word, has to leave."""

    context: int = 30
    """Tokens of left context at most."""

    proposals: int = 5
    """Words tried in the place of each important one."""

    least_probability: float = 1e-5
    """Of a word that is tried."""

    sae: str | None = None
    """Hash of the weights of the autoencoder whose features are the units."""

    gather: GatherConfig = field(default_factory=GatherConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.neurons_per_layer is not None and self.neurons_per_layer < 1:
            raise UserError("neurons-per-layer must be at least 1, or all")
        for name in ("examples", "context", "proposals"):
            if getattr(self, name) < (0 if name == "context" else 1):
                raise UserError(f"{name} must be at least {int(name != 'context')}")
        if self.examples > MOST_EXAMPLES:
            raise UserError(f"examples must be at most {MOST_EXAMPLES:,}, not {self.examples:,}")
        for name in ("activation", "importance"):
            if not 0 < getattr(self.thresholds, name) < 1:
                raise UserError(f"the {name} threshold lies between 0 and 1")
        if not 0 <= self.kept < 1:
            raise UserError("kept is a share of the activation: between 0 and 1")
