"""L-BFGS on many independent problems at once, each with its own memory, step and end.

Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5; the line search is that of
Lewis and Overton 2013 (weak Wolfe conditions by bracketing), which needs one evaluation of value
and gradient a trial, so that problems in different phases of their search are evaluated together.
Problems that have ended are no longer evaluated. With a metric (``ablation_metric``) the recursion
begins with a multiple of it in place of a multiple of the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.core.ablation_metric import Metric

HISTORY = 20
ARMIJO, WOLFE = 1e-4, 0.9
TRIALS = 25
"""Trials of one line search; a search that ends without a step is begun again along the gradient,
and the second such search in a row ends the problem."""

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(points (active, size), numbers of the problems (active,)) -> values, gradients."""
Watch = Callable[[Tensor, Tensor], Tensor]
"""(points, numbers) -> which of these problems shall end."""


@dataclass(frozen=True)
class Tolerance:
    """When a problem has converged: both conditions hold; only the second without ``gradient``.

    Attributes:
        gradient: largest absolute entry of the gradient.
        gap: the value has fallen by at most ``gap * max(value, 1e-3)`` in the second half of the
            evaluations.
        evaluations: at most so many.
    """

    gradient: float | None = 1e-5
    gap: float = 1e-4
    evaluations: int = 400


@dataclass
class Memory:
    """What L-BFGS has learned of the curvature: steps, changes of the gradient, and their scale.

    Attributes:
        metric: what the recursion begins with; the identity where there is none.
    """

    s: Float[Tensor, "problem history size"]
    y: Float[Tensor, "problem history size"]
    rho: Float[Tensor, "problem history"]
    scale: Float[Tensor, " problem"]
    metric: Metric | None = None

    @classmethod
    def empty(cls, like: Float[Tensor, "problem size"], metric: Metric | None = None) -> Memory:
        """Return a memory of no steps."""
        n, size = like.shape
        s = like.new_zeros(n, HISTORY, size)
        return cls(s, torch.zeros_like(s), s[..., 0].clone(), s[:, 0, 0].clone(), metric)

    def take(self, problems: Int[Tensor, " taken"]) -> Memory:
        """Return the memory of some problems."""
        metric = None if self.metric is None else self.metric.take(problems)
        return Memory(
            self.s[problems], self.y[problems], self.rho[problems], self.scale[problems], metric
        )


@dataclass
class Minimum:
    """Where the problems ended.

    Attributes:
        point, value, gradient: the best point of each problem; the gradient is its largest entry.
        gap: by how much the value fell in the second half of the evaluations.
        evaluations: of value and gradient, for each problem.
        converged: whether the tolerance was met.
        memory: with which a search of a similar objective begins better.
        course: the best value after each evaluation.
    """

    point: Float[Tensor, "problem size"]
    value: Float[Tensor, " problem"]
    gradient: Float[Tensor, " problem"]
    gap: Float[Tensor, " problem"]
    evaluations: Int[Tensor, " problem"]
    converged: Bool[Tensor, " problem"]
    memory: Memory
    course: Float[Tensor, "evaluation problem"]


def minimise(
    evaluate: Evaluate,
    start: Float[Tensor, "problem size"],
    tolerance: Tolerance,
    watch: Watch | None = None,
    memory: Memory | None = None,
) -> Minimum:
    """Minimise every problem from its start.

    Args:
        evaluate: value and gradient of some problems; in float64.
        watch: is shown every accepted point, and may end a problem.
        memory: of a search of a similar objective, such as one on fewer prompts, or an empty one
            with a metric.
    """
    search = _Search(start.double().clone(), tolerance, memory)
    every = torch.arange(len(start))
    search.begin(*evaluate(search.x, every))
    if watch is not None:
        watch(search.x, every)
    while len(active := search.active()):
        trial = search.trial(active)
        accepted = search.judge(active, trial, *evaluate(trial, active))
        if watch is not None and len(accepted):
            search.ended[accepted] |= watch(search.x[accepted], accepted)
    return search.minimum()


class _Search:
    """The state of all problems."""

    def __init__(self, x: Tensor, tolerance: Tolerance, memory: Memory | None) -> None:
        n = len(x)
        self.x, self.tolerance = x, tolerance
        self.memory = Memory.empty(x) if memory is None else memory
        self.d, self.t = torch.zeros_like(x), x.new_zeros(n)
        self.ended = torch.zeros(n, dtype=torch.bool)
        self.low, self.trials = x.new_zeros(n), torch.zeros(n, dtype=torch.long)
        self.high = torch.full_like(self.low, torch.inf)
        self.failed = torch.zeros(n, dtype=torch.long)
        # a tiny first step is no sign of an end where nothing is said of the gradient
        knows = bool((self.memory.scale > 0).any())
        self.least = 4 if tolerance.gradient is None else 1 if knows else 2
        self.count = torch.ones(n, dtype=torch.long)
        self.values: list[Tensor] = []

    def begin(self, value: Tensor, gradient: Tensor) -> None:
        self.f, self.g = value.clone(), gradient.clone()
        self.values.append(value.clone())
        self.ended |= ~(value.isfinite() & gradient.isfinite().all(1)) | (gradient == 0).all(1)
        every = torch.arange(len(value))
        self._aim(every)
        self._end(every)

    @staticmethod
    def _first_step(gradient: Tensor) -> Tensor:
        return 1 / gradient.abs().sum(1).clamp(min=1)

    def active(self) -> Int[Tensor, " active"]:
        return (~self.ended).nonzero().flatten()

    def trial(self, at: Tensor) -> Float[Tensor, "active size"]:
        return self.x[at] + self.t[at, None] * self.d[at]

    def judge(self, at: Tensor, trial: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Judge trials; returns the problems whose trial was accepted."""
        self.count[at] += 1
        self.trials[at] += 1
        slope = (self.g[at] * self.d[at]).sum(1)
        t = self.t[at]
        is_finite = value.isfinite() & gradient.isfinite().all(1)
        falls = is_finite & (value <= self.f[at] + ARMIJO * t * slope)
        new_slope = (gradient * self.d[at]).sum(1)
        flat = new_slope >= WOLFE * slope
        self._shorten(at[~falls], value[~falls], slope[~falls])
        self._lengthen(at[falls & ~flat], slope[falls & ~flat], new_slope[falls & ~flat])
        accepted = falls & (flat | (self.trials[at] >= TRIALS))
        self._accept(at[accepted], trial[accepted], value[accepted], gradient[accepted])
        lost = ~accepted & ((self.trials[at] >= TRIALS) | (self.t[at] * slope.abs() < 1e-18))
        self._restart(at[lost])
        self.values.append(self.f.clone())
        self._end(at)
        return at[accepted]

    def _shorten(self, at: Tensor, value: Tensor, slope: Tensor) -> None:
        """The step was too long: by interpolation from the left end, else by halving."""
        t, low = self.t[at], self.low[at]
        self.high[at] = t
        parabola = -slope * t.square() / (2 * (value - self.f[at] - slope * t)).clamp(min=1e-300)
        parabola = parabola.where(parabola.isfinite(), 0.1 * t)
        middle = (low + t) / 2
        self.t[at] = torch.where(low == 0, torch.clamp(parabola, min=0.1 * t, max=0.5 * t), middle)

    def _lengthen(self, at: Tensor, slope: Tensor, new_slope: Tensor) -> None:
        """The step was too short: by the secant of the slopes, within bounds."""
        t, high = self.t[at], self.high[at]
        self.low[at] = t
        secant = t * slope / (slope - new_slope).clamp(max=-1e-300)
        longer = torch.maximum(torch.minimum(secant.where(secant > 0, 10 * t), 10 * t), 2 * t)
        self.t[at] = torch.where(high.isinf(), longer, (t + high) / 2)

    def _accept(self, at: Tensor, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        s, y = x - self.x[at], gradient - self.g[at]
        curvature = (s * y).sum(1)
        is_good = curvature > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        kept = at[is_good]
        own = self.memory
        for history, new in ((own.s, s), (own.y, y), (own.rho, 1 / curvature.clamp(min=1e-300))):
            rolled = history[kept].roll(-1, 1)
            rolled[:, -1] = new[is_good]
            history[kept] = rolled
        norm = (y * self._scaled(at, y)).sum(1).clamp(min=1e-300)
        own.scale[kept] = (curvature / norm)[is_good]
        self.x[at], self.f[at], self.g[at] = x, value, gradient
        self.failed[at] = 0
        self._aim(at)

    def _restart(self, at: Tensor) -> None:
        """Forget the curvature and follow the gradient; the second time in a row, end."""
        self.failed[at] += 1
        self.ended[at] |= self.failed[at] > 1
        self.memory.rho[at], self.memory.scale[at] = 0, 0
        if self.memory.metric is not None:
            self.memory.metric.forget(at)
        self._aim(at)

    def _aim(self, at: Tensor) -> None:
        """The next direction (two-loop recursion) and a first step of 1 along it."""
        g, d = self.g[at], self._direction(at)
        is_descent = (g * d).sum(1) < 0
        self.d[at] = torch.where(is_descent[:, None], d, -g)
        is_newton = is_descent & ((self.memory.scale[at] > 0) | (self.memory.metric is not None))
        # no cost falls below 0: a step that promises it is too long
        most = 2 * self.f[at].abs() / (g * self.d[at]).sum(1).abs().clamp(min=1e-300)
        first = torch.where(self.memory.scale[at] > 0, 1.0, most.clamp(max=1.0))
        self.t[at] = torch.where(is_newton, first, self._first_step(g))
        self.low[at], self.high[at], self.trials[at] = 0, torch.inf, 0

    def _direction(self, at: Tensor) -> Float[Tensor, "active size"]:
        q = -self.g[at]
        own = self.memory.take(at)
        s, y, rho = own.s, own.y, own.rho
        alphas = []
        for i in range(HISTORY - 1, -1, -1):
            alpha = rho[:, i] * (s[:, i] * q).sum(1)
            q = q - alpha[:, None] * y[:, i]
            alphas.append(alpha)
        q = self._scaled(at, q) * own.scale.where(own.scale > 0, 1.0)[:, None]
        for i, alpha in zip(range(HISTORY), reversed(alphas), strict=True):
            beta = rho[:, i] * (y[:, i] * q).sum(1)
            q = q + (alpha - beta)[:, None] * s[:, i]
        return q

    def _scaled(self, at: Tensor, vector: Tensor) -> Float[Tensor, "active size"]:
        metric = self.memory.metric
        return vector if metric is None else metric.times(at, vector)

    def _end(self, at: Tensor) -> None:
        done = self.is_converged(at) | (self.count[at] >= self.tolerance.evaluations)
        self.ended[at] |= done

    def gap(self, at: Tensor) -> Float[Tensor, " active"]:
        """By how much the value fell in the second half of the evaluations."""
        history = torch.stack(self.values)
        return history[self.count[at] // 2 - 1, at] - self.f[at]

    def is_converged(self, at: Tensor) -> Bool[Tensor, " active"]:
        tolerance = self.tolerance
        small = self.gap(at) <= tolerance.gap * self.f[at].clamp(min=1e-3)
        small &= self.count[at] >= self.least
        small |= (self.g[at] == 0).all(1)
        if tolerance.gradient is not None:
            small &= self.g[at].abs().amax(1) <= tolerance.gradient
        return small

    def minimum(self) -> Minimum:
        every = torch.arange(len(self.x))
        return Minimum(
            self.x,
            self.f,
            self.g.abs().amax(1),
            self.gap(every),
            self.count,
            self.is_converged(every),
            self.memory,
            torch.stack(self.values),
        )
