"""The variance of activations, however large their mean is beside it.

Squares minus the squared mean lose what the two have in common: in float32 all of it where
mean^2 / variance is near 1e7. Here each story's squares are taken about its own mean, in float64,
and moved to the mean of all (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
variance"): sum_i (inner_i + n_i |mean_i - mean|^2), in which nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDING = 64 * np.finfo(np.float64).eps
"""Spread below this share of the size is rounding of values that are all equal."""

PerStory = Float[np.ndarray, " stories"]


@dataclass
class Spread:
    """What is summed of each story.

    Attributes:
        inner: |x - mean_i|^2 summed over the tokens of story i.
        means: mean_i.
        size: |x|^2 summed over all tokens; not finite where an activation is not.
    """

    inner: PerStory
    means: Float[np.ndarray, "stories d_in"]
    size: float = 0.0

    @classmethod
    def empty(cls, stories: int, d_in: int) -> Spread:
        return cls(np.zeros(stories), np.zeros((stories, d_in)))

    def add(self, rows: Int[np.ndarray, " batch"], x: Float[Tensor, "batch pos d_in"]) -> None:
        """Take over the activations of some stories, each of them whole."""
        x = x.double()
        mean = x.mean(1, keepdim=True)
        self.means[rows] = mean.squeeze(1).cpu().numpy()
        self.inner[rows] = (x - mean).square().sum((1, 2)).cpu().numpy()
        self.size += float(torch.linalg.vector_norm(x) ** 2)

    def variance(self, tokens: Int[np.ndarray, " stories"]) -> PerStory:
        """|x - mean x|^2 of each story, summed over its tokens; exactly 0 where all x are equal.

        Args:
            tokens: how many each story has.
        """
        mean = np.average(self.means, axis=0, weights=tokens)
        found = self.inner + tokens * np.square(self.means - mean).sum(1)
        return np.zeros_like(found) if found.sum() <= ROUNDING**2 * self.size else found
