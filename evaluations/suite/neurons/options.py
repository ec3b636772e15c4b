"""Options of ``neurons``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluations.core.hook_points import NEURONS, Stream

SCORES = ("simulation", "detection", "fuzzing", "control")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Options shared with the configuration of the scores."""

    sample: int | None = None
    """Number of neurons drawn at random from each layer; by default all."""

    scores: tuple[str, ...] = SCORES
    """Comma-separated scores to compute; must include simulation."""

    hook: str = NEURONS
    """Hook point whose coordinates are explained; * stands for every block."""

    stream: Stream = "clean"
    """Stream to read, for models with gates."""

    seed: int = 0
    """Seed of the sample of neurons, the excerpts, the control and the bootstrap."""

    resamples: int = 2000
    """Number of bootstrap resamples of the neurons."""


@dataclass(frozen=True, kw_only=True)
class NeuronsOptions(ScoreOptions):
    """Options of ``neurons``: which neurons are explained, by which examiner, and the scores."""

    examiner: Literal["lookup", "openai", "local"] = "lookup"
    """Examiner: lookup (tokens and short contexts, no model), openai (any OpenAI-compatible
    endpoint) or local (a Hugging Face model or GGUF file on this machine)."""

    model: str | None = None
    """Language model of the examiner; by default gpt-4o-mini (openai) or smollm2 (local)."""

    max_spend: float | None = None
    """Maximum cost of this run in dollars."""

    price_in: float | None = None
    """Dollars per million input tokens; known for common OpenAI models."""

    price_out: float | None = None
    """Dollars per million output tokens."""

    concurrency: int = 8
    """Number of concurrent requests."""

    requests_per_minute: float | None = None
    """Maximum number of requests per minute."""

    sae: Path | None = None
    """Directory of a SAELens autoencoder whose features are explained instead of neurons."""

    html: bool = False
    """Write an HTML page with the excerpts and the explanation of every neuron."""
