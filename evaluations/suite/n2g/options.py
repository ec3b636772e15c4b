"""The options of ``n2g``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluations.core.hook_points import NEURONS, Stream


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What decides the graphs besides the model, the text, the thresholds and the words."""

    examples: int = 20
    """Number of top-activating excerpts of each neuron."""

    hook: str = NEURONS
    """Hook point whose coordinates are explained; with * for every block."""

    stream: Stream = "clean"
    """Which of the two streams of a model with gates."""

    seed: int = 0
    """Seed of the choice of neurons and of the excerpts."""


@dataclass(frozen=True, kw_only=True)
class N2gOptions(GraphOptions):
    """Which neurons are turned into graphs, and how."""

    neurons_per_layer: int | Literal["all"] = 200
    """Number of neurons of each layer, drawn at random, the same for all models; or all."""

    neuron: str | None = None
    """LAYER.NUMBER of one neuron whose graph is drawn (PNG, SVG, GraphML, JSON) instead."""

    substitutes: str = "auto"
    """Where words to try come from: a masked language model (hub id or directory); neighbours, the
    words that stand between the same tokens in the text; auto, which is DistilBERT where
    transformers has it on this machine, else neighbours."""

    activation: float = 0.5
    """Share of the neuron's maximum above which a token fires it."""

    importance: float = 0.75
    """Minimum importance of a context token: 1 - a_masked / a."""

    sae: Path | None = None
    """Directory of a SAELens autoencoder whose features are explained in place of neurons."""
