"""The curvature of what an ablation costs, estimated: what a fit of constants measures steps by.

Near a minimum the Hessian of the mean KL is close to the Fisher information of the ablated model's
predictions q: the mean over prompts of J' (diag q - q q') J, J being the derivative of the logits
by the constants. With e standard normal and r = sqrt(q), s = J' (r e - q (r . e)) has exactly this
covariance, and costs one backward pass. Its draws vary less than the scores of labels drawn from q,
most of which are nearly 0 where the model is sure of its prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

DAMPING = 1e-3
"""Added to the Fisher information, by default, as a share of its mean diagonal entry."""
DRAWS_EACH = 12
"""Draws wanted for each number of a constant."""
MOST_DRAWS = 8
"""At most so many draws for each prompt."""
KEPT = 2**22
"""At most so many numbers of draws for each problem, at least ``LEAST`` draws."""
LEAST = 64


@dataclass(frozen=True)
class Metric:
    """The inverse of a damped Fisher information F + c 1, for each problem.

    It is 1 / c + V diag(w) V', V being the eigenvectors of F.
    """

    vectors: Float[Tensor, "problem size rank"]
    weights: Float[Tensor, "problem rank"]
    damping: Float[Tensor, " problem"]

    @classmethod
    def of(cls, scores: Float[Tensor, "problem draw size"], damping: float = DAMPING) -> Metric:
        """Return the metric of draws whose mean square is the Fisher information.

        Args:
            scores: the draws.
            damping: added to the Fisher information, as a share of its mean diagonal entry; more
                where a start is far from the minimum, or draws are fewer than numbers.
        """
        n, size = scores.shape[1:]
        scores = scores.nan_to_num(0.0, 0.0, 0.0)
        if size <= n:
            values, vectors = torch.linalg.eigh(scores.mT @ scores / n)
        else:
            values, left = torch.linalg.eigh(scores @ scores.mT / n)
            values = values.clamp(min=0)
            vectors = scores.mT @ left / (n * values).sqrt().clamp(min=1e-30)[:, None]
            vectors = vectors * (values > 1e-12 * values.amax(1, True))[:, None]
        values = values.clamp(min=0)
        added = (damping * values.sum(1) / size).clamp(min=1e-12)
        weights = 1 / (values + added[:, None]) - 1 / added[:, None]
        return cls(vectors, weights, added)

    def take(self, problems: Int[Tensor, " taken"]) -> Metric:
        """Return the metric of some problems."""
        return Metric(self.vectors[problems], self.weights[problems], self.damping[problems])

    def forget(self, problems: Int[Tensor, " some"]) -> None:
        """Measure steps of some problems alike in all directions."""
        self.weights[problems], self.damping[problems] = 0, 1

    def times(
        self, problems: Int[Tensor, " some"], vector: Float[Tensor, "some size"]
    ) -> Float[Tensor, "some size"]:
        """Multiply a vector of each of some problems by its inverse Fisher information."""
        own = self.take(problems)
        along = own.weights * (own.vectors.mT @ vector[..., None])[..., 0]
        product: Tensor = (own.vectors @ along[..., None])[..., 0]
        return vector / own.damping[:, None] + product


def n_draws(size: int, n_prompts: int) -> tuple[int, int]:
    """Return on how many prompts scores are drawn, and how many on each."""
    wanted = min(DRAWS_EACH * size, max(LEAST, KEPT // size))
    prompts = min(n_prompts, wanted)
    return prompts, min(MOST_DRAWS, -(-wanted // prompts))


def score_direction(
    logits: Float[Tensor, "problem prompt pos d_vocab"], numbers: Int[Tensor, " prompt"], draw: int
) -> Float[Tensor, "problem prompt pos d_vocab"]:
    """Return r e - q (r . e), a draw for each prompt and position, the same for all problems.

    Args:
        numbers: of the prompts; a prompt's draw depends on nothing else.
    """
    noise = torch.stack([_noise(logits.shape[2:], (number, draw)) for number in numbers.tolist()])
    q = logits.detach().softmax(-1)
    drawn = q.sqrt() * noise.to(q)
    return drawn - q * drawn.sum(-1, keepdim=True)


def _noise(shape: torch.Size, key: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(MOST_DRAWS * key[0] + key[1])
    return torch.randn(shape, generator=generator)
