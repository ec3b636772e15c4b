"""The options of ``neurons``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluations.core.hook_points import NEURONS, Stream

SCORES = ("simulation", "detection", "fuzzing", "control")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What decides the scores besides the model, the text and the examiner."""

    sample: int | None = None
    """Number of neurons of each layer, drawn at random; all by default."""

    scores: tuple[str, ...] = SCORES
    """Which scores, with commas between them; simulation must be among them."""

    hook: str = NEURONS
    """Hook point whose coordinates are explained; with * for every block."""

    stream: Stream = "clean"
    """Which of the two streams of a model with gates."""

    seed: int = 0
    """Seed of the sample of neurons, the excerpts, the control and the bootstrap."""

    resamples: int = 2000
    """Bootstrap resamples of the neurons."""


@dataclass(frozen=True, kw_only=True)
class NeuronsOptions(ScoreOptions):
    """Which neurons are explained, by whom, and how that is scored."""

    examiner: Literal["lookup", "openai", "local"] = "lookup"
    """What explains: lookup (tokens and short contexts, no model), openai (any endpoint that speaks
    as OpenAI's), local (a Hugging Face model or GGUF file on this machine)."""

    model: str | None = None
    """Language model of the examiner; by default gpt-4o-mini, for local smollm2."""

    max_spend: float | None = None
    """Dollars that this run may cost at most."""

    price_in: float | None = None
    """Dollars per million tokens that the examiner reads; known for OpenAI's usual models."""

    price_out: float | None = None
    """Dollars per million tokens that it writes."""

    concurrency: int = 8
    """Number of requests under way at once."""

    requests_per_minute: float | None = None
    """Number of requests sent per minute at most."""

    sae: Path | None = None
    """Directory of a SAELens autoencoder whose features are explained in place of neurons."""

    html: bool = False
    """Write a page that shows every neuron, its excerpts and its explanation."""
