"""Options of ``n2g``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluations.core.hook_points import NEURONS, Stream


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Options shared with the configuration of the graphs."""

    examples: int = 20
    """Number of top-activating excerpts per neuron."""

    hook: str = NEURONS
    """Hook point whose coordinates are explained; * stands for every block."""

    stream: Stream = "clean"
    """Stream to read, for models with gates."""

    seed: int = 0
    """Seed of the choice of neurons and of the excerpts."""


@dataclass(frozen=True, kw_only=True)
class N2gOptions(GraphOptions):
    """Options of ``n2g``: which neurons are turned into graphs, and how."""

    neurons_per_layer: int | Literal["all"] = 200
    """Number of neurons drawn at random from each layer, the same for all models; or all."""

    neuron: str | None = None
    """LAYER.NUMBER of one neuron whose graph is drawn instead (PNG, SVG, GraphML, JSON)."""

    substitutes: str = "auto"
    """Source of words to try: a masked language model (hub id or directory); neighbours (words
    between the same tokens in the text); auto (DistilBERT if it is in the local cache of
    transformers, else neighbours)."""

    activation: float = 0.5
    """A neuron fires on a token if its activation exceeds this share of its maximum."""

    importance: float = 0.75
    """Minimum importance of a context token: 1 - a_masked / a."""

    sae: Path | None = None
    """Directory of a SAELens autoencoder whose features are explained instead of neurons."""
