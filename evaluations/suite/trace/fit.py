"""Optimal constants for tracing: one vector for all subject tokens, one for each problem.

It minimises the mean of (p_clean - p)_+ over facts, p being the probability of the answer with the
problem's outputs restored (Li and Janson 2024, arXiv 2409.09951, section 4). Full-batch L-BFGS on
the smooth softplus(20 x) / 20 in place of (x)_+, then, if asked for, AdamW on the exact loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from evaluations.core.ablation_lbfgs import Minimum, Tolerance, minimise
from evaluations.suite.trace.corrupt import constants
from evaluations.suite.trace.run import NOTHING, Problem, TraceRun

SHARPNESS = 20.0
TOLERANCE = (1e-5, 1e-4)
"""Of the certificate: the largest entry of the gradient, and the gap."""
LEARNING_RATE = 1e-3


@dataclass
class Constants:
    """Fitted vectors and their certificate, an entry for each problem.

    Attributes:
        vectors: the constants.
        loss: mean of (p_clean - p)_+ over the facts fitted on.
        gradient: largest entry of the smooth loss' gradient where L-BFGS ended.
        gap: by how much it fell in the second half of the evaluations.
        spread: by how much the better of the two starts of "nothing restored" beats the other.
    """

    vectors: Float[Tensor, "problem d_model"]
    loss: Float[Tensor, " problem"]
    gradient: Float[Tensor, " problem"]
    gap: Float[Tensor, " problem"]
    converged: Bool[Tensor, " problem"]
    spread: float


def fit(
    run: TraceRun,
    problems: Sequence[Problem],
    p_clean: Float[Tensor, " fact"],
    evaluations: int,
    polish: int = 0,
    where: str = "all_subject",
) -> Constants:
    """Fit the constants of problems; the first must be ``NOTHING``.

    "Nothing restored" starts from the mean subject embedding and from 0; every other problem from
    the better, for it, of the mean and of the vector for nothing restored.

    Args:
        p_clean: of the run's facts.
        evaluations: of value and gradient, at most.
        polish: steps of AdamW on the exact loss.
        where: the positions that the constants replace.
    """
    assert problems[0] == NOTHING
    loss = _Loss(run, problems, p_clean, where)
    tolerance = Tolerance(*TOLERANCE, evaluations)
    mean = run.embeddings(where).double().mean(0).cpu()
    first = _Loss(run, [NOTHING, NOTHING], p_clean, where)
    begun = minimise(first, torch.stack([mean, torch.zeros_like(mean)]), tolerance)
    best = int(begun.value.argmin())
    starts = torch.stack([mean, begun.point[best]])
    every = torch.arange(len(problems))
    values = torch.stack([loss.value(one.expand(len(every), -1), every) for one in starts])
    found = minimise(loss, starts[values.argmin(0)], tolerance)
    vectors = found.point
    if polish:
        vectors = _polished(loss, vectors, polish)
    return Constants(
        vectors,
        loss.value(vectors, every, exact=True),
        found.gradient,
        found.gap,
        _is_converged(found),
        float(begun.value.max() - begun.value.min()),
    )


def _is_converged(found: Minimum) -> Bool[Tensor, " problem"]:
    return found.converged & (found.gap <= TOLERANCE[1] * found.value.clamp(min=1e-3))


class _Loss:
    """The mean loss of some problems' constants, with its gradient."""

    def __init__(
        self, run: TraceRun, problems: Sequence[Problem], p_clean: Tensor, where: str
    ) -> None:
        self.run, self.problems, self.p_clean, self.where = run, problems, p_clean, where

    def __call__(
        self, points: Tensor, active: Int[Tensor, " active"], exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Value and gradient at some problems' points (``ablation_lbfgs.Evaluate``)."""
        value = torch.zeros(len(points), dtype=torch.float64)
        gradient = torch.zeros(points.shape, dtype=torch.float64)
        chosen = [self.problems[int(i)] for i in active]
        for bucket, rows, some in self.run.pieces(len(points)):
            leaf = points[some].detach().requires_grad_()
            with torch.enable_grad():
                change = constants(leaf, self.where)
                logits = self.run.logits(
                    [chosen[int(i)] for i in some], bucket, rows, change, torch.arange(len(some))
                )
                at = bucket.answer[rows].expand(len(some), -1)[..., None]
                p = logits.log_softmax(-1).gather(-1, at)[..., 0].exp()
                lost = self.p_clean[bucket.numbers[rows]].to(p) - p
                own = (_exact(lost) if exact else _smooth(lost)).sum(1) / len(self.run)
                (found,) = torch.autograd.grad(own.sum(), leaf)
            value[some] += own.detach().double().cpu()
            gradient[some] += found.double().cpu()
        return value, gradient

    def value(
        self, points: Tensor, active: Int[Tensor, " active"], exact: bool = False
    ) -> Float[Tensor, " active"]:
        """The mean loss alone."""
        chosen = [self.problems[int(i)] for i in active]
        p = self.run.answers(chosen, constants(points, self.where)).p
        lost = self.p_clean - p
        return (_exact(lost) if exact else _smooth(lost)).mean(1)


def _smooth(lost: Tensor) -> Tensor:
    return F.softplus(SHARPNESS * lost) / SHARPNESS


def _exact(lost: Tensor) -> Tensor:
    return lost.clamp(min=0)


def _polished(loss: _Loss, vectors: Tensor, steps: int) -> Tensor:
    """The best vectors of AdamW on the exact loss."""
    every = torch.arange(len(vectors))
    point = vectors.clone().requires_grad_()
    best, least = vectors.clone(), torch.full((len(vectors),), torch.inf, dtype=torch.float64)
    optimiser = torch.optim.AdamW([point], lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(steps):
        value, point.grad = loss(point.detach(), every, exact=True)
        is_better = value < least
        best[is_better], least[is_better] = point.detach()[is_better], value[is_better]
        optimiser.step()
    return best
