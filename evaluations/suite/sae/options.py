"""The options of ``sae``: which autoencoders are trained and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class SaeOptions:
    """Which autoencoders are trained and measured: one for each hook point and coefficient."""

    preset: Literal["paper", "modern", "demo"] = "demo"
    """Training: paper (Table 5, 409.6 M tokens), modern (today's sae-lens), demo (the paper's, in
    about half a minute)."""

    l1: tuple[float, ...] = ()
    """L1 coefficients (JumpReLU: L0 coefficients), with commas between them; by default 5
    (JumpReLU: 1)."""

    target_l0: tuple[float, ...] = ()
    """Active features of a token wanted, with commas between them, in place of --l1: short
    trainings find the coefficient that gives so many."""

    architecture: Literal["standard", "topk", "batchtopk", "jumprelu", "gated"] = "standard"
    """Architecture, by SAELens; standard is ReLU with an L1 penalty."""

    k: tuple[float, ...] = ()
    """Active features of topk and batchtopk, with commas between them; by default 32."""

    hook: tuple[str, ...] = ()
    """Hook points, with commas between them; by default the last block but one's MLP output, with
    --sae the one it names."""

    tokens: int | None = None
    """Number of activations to train on; by default the preset's, but no more than 20 passes over
    the training text. The schedule is scaled to it."""

    sae: Path | None = None
    """SAELens directory to measure, in place of training one."""

    seed: int = 42
    """Seed of the initial weights, the windows of text, and the bootstrap."""

    resamples: int = 1000
    """Bootstrap resamples of the stories."""
