"""The constants of the OCA lens and of the shared-constant lens.

The problems of different layers are independent. Each begins at the mean attention outputs and,
where a later layer's constants are known, at those; the starts are descended on a sample of the
positions, and the best one goes on over all of them.

The constants of different blocks are far from independent, and their KL is a long valley. So the
search (L-BFGS) takes place in coordinates in which the Fisher information is the identity:
c = c_0 + P z with P P' = F^-1, F the mean over rows of E_y [s s'], s = d log q(y) / dc the score of
a token y drawn from the lens's own prediction q. F is the Gauss-Newton matrix of the KL. It is
estimated anew in each *round*; rounds have 10, 20, 40, ... evaluations.

The certificate of a fit is the *gap* (by how much the value fell in the last round, which has as
many evaluations as all before it), the *decrement* (half the squared length of the gradient in
those coordinates: what a Gauss-Newton step would still gain) and the largest entry of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.core.ablation_lbfgs import Tolerance, minimise
from evaluations.suite.lens.ending import Ending, Target, pick
from evaluations.suite.lens.lenses import run_blocks

Constants = Float[Tensor, "blocks d_model"]

FIRST_ROUND = 10
"""Evaluations of the first round; each later one has twice as many."""
DRAWS = 4
"""Tokens drawn for each row of an estimate of the Fisher information."""
DAMPING = 1e-4
"""Of the largest eigenvalue of the Fisher information; directions below count as this steep."""
WHOLE = 2048
"""Numbers up to which the Fisher information is one matrix; of more, one for each constant."""


@dataclass(frozen=True)
class FitConfig:
    """How constants are fitted.

    Attributes:
        starts: of each problem, at least two; those beyond the given ones are random.
        sample: positions that starts are descended on.
        gap: see the module; a share of the value, or of 1e-3 nats if that is more.
        evaluations: at most so many of value and gradient on the sample, and again on all.
    """

    starts: int = 2
    sample: int = 2048
    gap: float = 1e-4
    evaluations: int = 150
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """Fitted constants and their certificate.

    Attributes:
        kl: mean over the positions fitted on, in nats; of the shared lens the sum over layers.
        gradient, gap, decrement: the certificate (see the module).
        converged: gap and decrement are at most ``FitConfig.gap`` of the value.
        spread: worst minus best start on the sample.
        read: positions evaluated.
    """

    constants: Constants
    kl: float
    gradient: float
    gap: float
    decrement: float
    converged: bool
    spread: float
    read: int

    def certificate(self) -> dict[str, Any]:
        """Return all but the constants."""
        return {name: value for name, value in vars(self).items() if name != "constants"}


class Problem:
    """The mean KL of constants on positions, summed over the layers that share them.

    Args:
        streams: before each of the layers.
        layers: whose lenses use the constants; the constants are those of all blocks from the
            first of these layers on.
    """

    def __init__(
        self, ending: Ending, target: Target, streams: Sequence[Tensor], layers: Sequence[int]
    ) -> None:
        self.ending, self.target = ending, target
        self.streams, self.layers = streams, layers
        self.shape = (ending.n_layers - layers[0], streams[0].shape[1])
        self.read = 0

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Int[Tensor, " some"]) -> Problem:
        """Return the problem on some of the positions."""
        streams = [pick(stream, rows) for stream in self.streams]
        return Problem(self.ending, self.target.take(rows), streams, self.layers)

    def evaluate(self, constants: Constants) -> tuple[Float[Tensor, ""], Constants]:
        """Return value and gradient, as float64 on the CPU."""
        leaf = constants.to(self.target.direction).detach().requires_grad_()
        value = torch.zeros((), dtype=torch.float64)
        gradient = torch.zeros(leaf.shape, dtype=torch.float64)
        for stream, layer in zip(self.streams, self.layers, strict=True):
            for rows in self.ending.chunks(len(self)):
                with torch.enable_grad():
                    own = leaf[layer - self.layers[0] :]
                    end = run_blocks(self.ending, layer, stream[rows], own)
                    mean = self.ending.kl(self.target.take(rows), end).sum() / len(self)
                    (found,) = torch.autograd.grad(mean, leaf)
                gradient += found.double().cpu()
                value += mean.detach().double().cpu()
            self.read += len(self)
        return value, gradient

    def fisher(
        self, constants: Constants, generator: torch.Generator
    ) -> list[Float[Tensor, "size size"]]:
        """Return the Fisher information: of all constants, or of each where they are many."""
        is_whole = constants.numel() <= WHOLE
        sizes = [constants.numel()] if is_whole else [constants.shape[1]] * len(constants)
        found = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
        for stream, layer in zip(self.streams, self.layers, strict=True):
            for rows in self.ending.chunks(len(self)):
                for score in self._scores(constants, layer, stream[rows], generator):
                    own = score.flatten(1).split(sizes, 1)
                    for matrix, part in zip(found, own, strict=True):
                        matrix += (part.T @ part).double().cpu() / (len(self) * DRAWS)
        return found

    def _scores(
        self, constants: Constants, layer: int, stream: Tensor, generator: torch.Generator
    ) -> list[Float[Tensor, "rows blocks d_model"]]:
        """D log q(y) / dc of each row, for each draw of y; zero for constants a lens lacks."""
        unused = layer - self.layers[0]
        own = constants[unused:, None].to(self.target.direction).expand(-1, len(stream), -1)
        leaf = own.clone().requires_grad_()
        found = []
        with torch.enable_grad():
            end = run_blocks(self.ending, layer, stream, leaf)
            log_q = self.ending.log_probs(end)
            drawn = torch.multinomial(log_q.detach().exp().cpu(), DRAWS, True, generator=generator)
            for tokens in drawn.to(log_q.device).T:
                at_token = log_q.gather(1, tokens[:, None]).sum()
                (score,) = torch.autograd.grad(at_token, leaf, retain_graph=True)
                score = torch.cat([score.new_zeros(unused, *score.shape[1:]), score])
                found.append(score.transpose(0, 1))
        return found


class Whitened:
    """A problem in coordinates in which its Fisher information at ``origin`` is the identity."""

    def __init__(
        self, problem: Problem, origin: Constants, fisher: Sequence[Float[Tensor, "size size"]]
    ) -> None:
        self.problem, self.origin = problem, origin.double()
        self.roots = [_inverse_root(one) for one in fisher]

    def constants(self, point: Float[Tensor, " size"]) -> Constants:
        """Return the constants of a point."""
        parts = point.split([len(root) for root in self.roots])
        moved = [root @ part for root, part in zip(self.roots, parts, strict=True)]
        return self.origin + torch.cat(moved).view(self.origin.shape)

    def __call__(self, points: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of each point (``ablation_lbfgs.Evaluate``)."""
        values, gradients = [], []
        for point in points:
            value, gradient = self.problem.evaluate(self.constants(point))
            values.append(value)
            gradients.append(self.gradient(gradient))
        return torch.stack(values), torch.stack(gradients)

    def gradient(self, gradient: Constants) -> Float[Tensor, " size"]:
        """Return a gradient in these coordinates."""
        parts = gradient.flatten().split([len(root) for root in self.roots])
        return torch.cat([root.T @ part for root, part in zip(self.roots, parts, strict=True)])


def _inverse_root(fisher: Float[Tensor, "size size"]) -> Float[Tensor, "size size"]:
    """P with P P' = F^-1, damped."""
    values, vectors = torch.linalg.eigh(fisher)
    steepest = values[-1].clamp(min=1e-30)
    root: Tensor = vectors * (values.clamp(min=0) + DAMPING * steepest) ** -0.5
    return root


@dataclass(frozen=True)
class _End:
    constants: Constants
    value: float
    gap: float
    decrement: float
    gradient: float


def fit_constants(problem: Problem, starts: Sequence[Constants], config: FitConfig) -> Fit:
    """Fit constants from the best of several starts.

    Args:
        starts: the first is the mean attention output of each block; random ones have its size.
    """
    generator = torch.Generator().manual_seed(config.seed)
    sample = problem
    if len(problem) >= 2 * config.sample:
        sample = problem.take(torch.randperm(len(problem), generator=generator)[: config.sample])
    ends = [
        _descend(sample, sample, start, config, generator)
        for start in _all_starts(problem, starts, config, generator)
    ]
    best = min(ends, key=lambda end: end.value)
    read = sample.read
    if sample is not problem:
        best = _descend(problem, sample, best.constants, config, generator)
        read += problem.read
    small = config.gap * max(best.value, 1e-3)
    values = [end.value for end in ends]
    return Fit(
        best.constants,
        best.value,
        best.gradient,
        best.gap,
        best.decrement,
        best.gap <= small and best.decrement <= small,
        max(values) - min(values),
        read,
    )


def _all_starts(
    problem: Problem, given: Sequence[Constants], config: FitConfig, generator: torch.Generator
) -> list[Constants]:
    found = [start.double().cpu() for start in given]
    scale = found[0].square().mean().sqrt().clamp(min=1e-3)
    while len(found) < config.starts:
        noise = torch.randn(problem.shape, generator=generator, dtype=torch.float64)
        found.append(found[0] + 2 * scale * noise)
    return found


def _descend(
    problem: Problem,
    sample: Problem,
    start: Constants,
    config: FitConfig,
    generator: torch.Generator,
) -> _End:
    """Descend in rounds; the sample is what the Fisher information is estimated on."""
    constants, size, left = start, FIRST_ROUND, config.evaluations
    while True:
        white = Whitened(problem, constants, sample.fisher(constants, generator))
        begin = torch.zeros(1, constants.numel(), dtype=torch.float64)
        found = minimise(white, begin, Tolerance(None, config.gap, min(size, left)))
        constants, value = white.constants(found.point[0]), float(found.value[0])
        left -= int(found.evaluations[0])
        gap, small = float(found.course[0, 0]) - value, config.gap * max(value, 1e-3)
        if gap <= small or left < 2 or not found.value.isfinite().all():
            break
        size *= 2
    _, gradient = problem.evaluate(constants)
    decrement = float(white.gradient(gradient).square().sum() / 2)
    return _End(constants, value, gap, decrement, float(gradient.abs().max()))
