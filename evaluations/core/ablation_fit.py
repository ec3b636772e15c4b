"""Optimal constants: the vectors that minimise what an ablation costs (arXiv 2409.09951, eq. 4).

All problems of a group are fitted together by full-batch L-BFGS, from several starts. Where a fit
is near a minimum, an estimate of the curvature (``ablation_metric``) is what L-BFGS begins with:

1. Starts (means, zero, activations of random prompts, random vectors of their spread) are descended
   on a small sample of the prompts; problems that have converged are dropped from the batch.
2. The best start of each problem is fitted on three quarters of the prompts while the cost on the
   other quarter is watched: the best iterate is ``oa_stopped``.
3. From there on all prompts to convergence: ``oa``. A start is dropped where it cannot win: the
   values of the starts on the sample, their *spread*, say whether there are several minima.
4. The end is checked in float64, and gone on with where the certificate does not hold and
   evaluations are left.

The certificate of a figure is the largest entry of the gradient at the constants and the *gap*: by
how much the value fell in the second half of the evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from evaluations.core.ablation import Group
from evaluations.core.ablation_lbfgs import Memory, Minimum, Tolerance, minimise
from evaluations.core.ablation_metric import Metric, n_draws, score_direction
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import (
    Constants,
    Slots,
    activations,
    at_positions,
    constant_kl,
    mean_constants,
    zero_constants,
)

SAMPLE = 50
"""Prompts of the small sample."""
CAP = 20.0
"""A constant is held below so many times the 99 % quantile of the activations' norms."""
PATIENCE = 8
"""Accepted iterates without a better cost on the watched quarter, after which a fit is stopped."""
COARSE = 10.0
"""In float32 a fit goes on to so many times the largest gradient, and then in float64: rounding
leaves gradients of float32 above the tolerance itself."""
ROUGH = 1e-2
"""The gap (as a share of the cost) that ends a descent on the small sample."""
SCAN = 9
PARABOLA = 4
AGREE = 1e-3
"""Starts agree where their values differ by less than this share."""


@dataclass(frozen=True)
class FitConfig:
    """How constants are fitted."""

    starts: int = 5
    """Starts on the small sample, at least two."""

    rounds: int = 4
    """Rounds of starts: problems whose starts disagree get as many new ones each time."""

    sample: int = SAMPLE
    """Prompts of the small sample; with fewer than twice as many prompts, all starts are descended
    on all of them."""

    gradient: float = 1e-5
    gap: float = 1e-4
    evaluations: int = 200
    seed: int = 0

    watch: bool = True
    """Whether to look for ``Fit.stopped``, too."""


@dataclass
class Fit:
    """Fitted constants of a group and their certificate, an entry for each problem.

    Attributes:
        constants: for each part.
        delta: cost on the prompts fitted on.
        gradient, gap: the certificate (see the module).
        converged: whether both are small enough.
        capped: whether a constant touches the cap: its best value may lie at infinity.
        spread: worst minus best value over the starts, on the sample they were descended on.
        evaluations: evaluations of value and gradient, in full passes over the prompts.
        stopped: constants of the best iterate on the watched quarter; the means where there is no
            such quarter, or nothing was watched.
        course: the cost after each evaluation on all prompts, from the best start on.
        begun: passes over the prompts before the first of these evaluations.
    """

    constants: Constants
    delta: Float[Tensor, " problem"]
    gradient: Float[Tensor, " problem"]
    gap: Float[Tensor, " problem"]
    converged: Tensor
    capped: Tensor
    spread: Float[Tensor, " problem"]
    evaluations: Float[Tensor, " problem"]
    stopped: Constants = field(default_factory=list)
    course: Float[Tensor, "evaluation problem"] = field(default_factory=lambda: torch.empty(0, 0))
    begun: Float[Tensor, " problem"] = field(default_factory=lambda: torch.empty(0))


class Objective:
    """The mean cost of a group's constants on a run, with its gradient.

    Constants of a problem are laid out flat: part after part, slot after slot.
    """

    def __init__(
        self,
        run: CleanRun,
        group: Group,
        slots: Slots,
        caps: Float[Tensor, "part problem"],
    ) -> None:
        self.run, self.group, self.slots, self.caps = run, group, slots, caps
        self.sizes = [slots.n * part.index.shape[1] for part in group.parts]
        self.prompts_read = torch.zeros(len(group), dtype=torch.float64)

    def flat(self, constants: Constants) -> Float[Tensor, "problem size"]:
        """Lay out constants; one vector is repeated for all slots."""
        return torch.cat([one.expand(-1, self.slots.n, -1).flatten(1) for one in constants], 1)

    def constants(self, flat: Float[Tensor, "problem size"], problems: Tensor) -> Constants:
        """The constants of some problems, held below the cap."""
        return [
            _capped(one.unflatten(1, (self.slots.n, -1)), cap[problems])
            for one, cap in zip(flat.split(self.sizes, 1), self.caps, strict=True)
        ]

    def __call__(self, flat: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of some problems (``ablation_lbfgs.Evaluate``)."""
        value = torch.zeros(len(flat), dtype=torch.float64)
        gradient = torch.zeros(flat.shape, dtype=torch.float64)
        group, run = self.group.take(problems), self.run
        for piece in run.pieces(group, torch.arange(len(flat))):
            leaf = flat[piece.problems].detach().requires_grad_()
            with torch.enable_grad():
                constants = self.constants(leaf, problems[piece.problems])
                new = at_positions(constants, run, piece.bucket)
                share = (run.piece_kl(group, piece, new) * (1 / len(run))).sum(1)
                (found,) = torch.autograd.grad(share.sum(), leaf)
            value[piece.problems] += share.detach().double().cpu()
            gradient[piece.problems] += found
        self.prompts_read[problems] += len(run)
        return value, gradient

    def metric(self, flat: Float[Tensor, "problem size"]) -> Metric:
        """The curvature at some points, from draws on as many prompts as it takes.

        Of a group without masks: they are those of all prompts.
        """
        n_prompts, draws = n_draws(flat.shape[1], len(self.run))
        order = torch.randperm(len(self.run), generator=torch.Generator().manual_seed(0))
        run, group = self.run.subset(order[:n_prompts].sort().values), self.group
        scores = torch.zeros(len(flat), n_prompts, draws, flat.shape[1], dtype=torch.float64)
        for piece in run.pieces(group, torch.arange(len(flat))):
            numbers = piece.offset + torch.arange(piece.rows.start, piece.rows.stop)
            shape = len(piece.problems), len(numbers)
            each = flat[piece.problems].detach().repeat_interleave(len(numbers), 0)
            leaf = each.requires_grad_()  # constants of its own for every prompt
            with torch.enable_grad():
                constants = self.constants(leaf, piece.problems.repeat_interleave(len(numbers)))
                new = [
                    one.unflatten(0, shape)[:, :, 0]
                    for one in at_positions(constants, run, piece.bucket)
                ]
                logits = run.piece_logits(group, piece, new)
                for draw in range(draws):
                    toward = score_direction(logits, numbers, draw) / logits.shape[2] ** 0.5
                    (found,) = torch.autograd.grad(
                        logits, leaf, toward, retain_graph=draw + 1 < draws
                    )
                    at = piece.problems[:, None], numbers, draw
                    scores[at] = found.double().cpu().unflatten(0, shape)
        self.prompts_read += n_prompts * (1 + draws) / 2
        return Metric.of(scores.flatten(1, 2))


def _capped(constants: Tensor, cap: Tensor) -> Tensor:
    norm = constants.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    cap = cap.clamp(max=1e30)  # the gradient of inf / norm is not a number
    capped: Tensor = constants * (cap[:, None, None] / norm).clamp(max=1.0)
    return capped


def fit(
    run: CleanRun,
    group: Group,
    slots: Slots,
    config: FitConfig,
    extra: Sequence[Constants] = (),
) -> Fit:
    """Fit the constants of all problems of a group.

    Args:
        run: the prompts fitted on, all of them.
        slots: one vector for all positions, or one for each.
        extra: further starts, such as the fit with one vector where ``slots`` has several.
    """
    return _Fitting(run, group, slots, config).fit(extra)


def refit(run: CleanRun, group: Group, start: Constants, config: FitConfig, draw: int) -> Constants:
    """Fit one vector for all positions again, on prompts drawn from the run with replacement.

    It begins where the first fit ended: what differs is due to the prompts.
    """
    generator = torch.Generator().manual_seed(1000 * config.seed + draw + 1)
    drawn = torch.randint(len(run), (len(run),), generator=generator)
    again = _Fitting(run.subset(drawn), group, Slots.one(run), config)
    tolerance = Tolerance(None, config.gap, config.evaluations)
    found = again._descend(again.run, torch.arange(len(group)), start, tolerance)
    return again._constants(found.point)


class _Fitting:
    """The stages of one fit."""

    def __init__(self, run: CleanRun, group: Group, slots: Slots, config: FitConfig) -> None:
        self.run, self.group, self.slots, self.config = run, group, slots, config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.caps = _caps(run, group)
        order = torch.randperm(len(run), generator=self.generator)
        quarter = len(order) // 4
        self.watched = run.subset(order[:quarter]) if quarter else None
        self.rest = run.subset(order[quarter:])
        self.is_small = len(run) < 2 * config.sample
        self.sample = run if self.is_small else run.subset(order[quarter:][: config.sample])
        is_exact = run.model.W_E.dtype == torch.float64
        gradient = config.gradient * (1 if is_exact else COARSE)
        self.tight = Tolerance(gradient, config.gap, config.evaluations)
        self.loose = Tolerance(None, ROUGH, max(8, config.evaluations // 8))
        self.reading = torch.zeros(len(group), dtype=torch.float64)

    def fit(self, extra: Sequence[Constants]) -> Fit:
        if sum(part.index.shape[1] for part in self.group.parts) * self.slots.n == 1:
            return self._fit_scalars()
        every, stopped = torch.arange(len(self.group)), self.means
        memory: Memory | None = None
        begin, spread_of_starts = self._begin([self.means, *extra])
        if self.watched is not None and self.config.watch:
            watcher = _Watcher(self.watched, self.group, self.slots, self.caps)
            watcher(self._objective(self.run, every).flat(self.means), every)
            # a start that has seen the watched prompts would spoil the choice
            if self.is_small:
                self._descend(self.rest, every, self.means, self.tight, watcher)
            else:
                middle = Tolerance(None, self.config.gap, self.config.evaluations // 2)
                found = self._descend(self.rest, every, begin, middle, watcher)
                begin, memory = self._constants(found.point), found.memory
            stopped = watcher.best()
        found = self._descend(self.run, every, begin, self.tight, memory=memory)
        return self._certified(found, spread_of_starts, stopped)

    @cached_property
    def means(self) -> Constants:
        """The means over the prompts that are not watched."""
        return mean_constants(self.rest, self.group, self.slots)

    def _fit_scalars(self) -> Fit:
        """Fit one number for each problem: a scan, then parabolas through three points.

        The scan has ``SCAN`` points from two standard deviations below the least activation to two
        above the largest. One number is not overfitted, so that nothing is stopped early.
        """
        every = torch.arange(len(self.group))
        flat = torch.cat(
            [v[:, :, self.run.first :].flatten(1) for v in self.run.read(self.group.parts[0])], 1
        )
        flat = flat.double().cpu()
        reach = 2 * flat.std(1)
        low, high = flat.amin(1) - reach, flat.amax(1) + reach
        grid = low + torch.linspace(0, 1, SCAN, dtype=torch.float64)[:, None] * (high - low)
        grid = torch.minimum(torch.maximum(grid, -self.caps[0]), self.caps[0])
        cost = torch.stack([self._cost(point) for point in grid])
        spread_of_starts = cost.amax(0) - cost.amin(0)
        centre = cost.argmin(0).clamp(1, SCAN - 2)
        x, y = ([table[centre + step, every] for step in (-1, 0, 1)] for table in (grid, cost))
        for _ in range(PARABOLA):
            new = _vertex(x, y)
            x, y = _narrowed(x, y, new, self._cost(new))
        found = self._descend(self.run, every, [x[1][:, None, None]], self.tight)
        return self._certified(found, spread_of_starts, self._constants(found.point))

    def _cost(self, point: Float[Tensor, " problem"]) -> Float[Tensor, " problem"]:
        self.reading += 1
        return constant_kl(self.run, self.group, [point[:, None, None]]).mean(1)

    def _constants(self, point: Tensor) -> Constants:
        every = torch.arange(len(self.group))
        return self._objective(self.run, every).constants(point, every)

    def _objective(self, run: CleanRun, problems: Tensor) -> Objective:
        return Objective(run, self.group.take(problems), self.slots, self.caps[:, problems])

    def _descend(
        self,
        run: CleanRun,
        problems: Tensor,
        start: Constants,
        tolerance: Tolerance,
        watcher: _Watcher | None = None,
        memory: Memory | None = None,
        is_near: bool = True,
    ) -> Minimum:
        """Descend with what is known of the curvature, or near a minimum with an estimate of it."""
        objective = self._objective(run, problems)
        flat = objective.flat(start)
        if memory is None and is_near:
            memory = Memory.empty(flat, objective.metric(flat))
        found = minimise(objective, flat, tolerance, watcher, memory)
        self.reading.index_add_(0, problems, objective.prompts_read / len(self.run))
        return found

    def _begin(self, given: list[Constants]) -> tuple[Constants, Float[Tensor, " problem"]]:
        """Descend from the starts on the sample; problems whose starts disagree get more of them.

        Returns:
            The best end of each problem, and by how much the worst is above it.
        """
        tolerance = self.tight if self.is_small else self.loose
        problems = torch.arange(len(self.group))
        best = self._objective(self.run, problems).flat(given[0])
        low = torch.full((len(problems),), torch.inf, dtype=torch.float64)
        high = torch.full_like(low, -torch.inf)
        for _ in range(self.config.rounds):
            starts = [*given, *self._starts(self.config.starts - len(given))]
            rows = problems.repeat(len(starts))
            chosen = [
                torch.cat([one[i][problems].expand(-1, self.slots.n, -1) for one in starts])
                for i in range(len(self.group.parts))
            ]
            found = self._descend(self.sample, rows, chosen, tolerance, is_near=False)
            value, first = found.value.nan_to_num(nan=torch.inf).view(len(starts), -1).min(0)
            is_better = value < low[problems]
            row = (first * len(problems) + torch.arange(len(problems)))[is_better]
            best[problems[is_better]] = found.point[row]
            worst = found.value.nan_to_num(nan=-torch.inf).view(len(starts), -1).amax(0)
            low[problems] = torch.minimum(low[problems], value)
            high[problems] = torch.maximum(high[problems], worst)
            apart = AGREE if self.is_small else 3 * ROUGH
            problems = (high - low > apart * low.clamp(min=1e-3)).nonzero().flatten()
            given = []
            if not len(problems):
                break
        return self._constants(best), high - low

    def _starts(self, count: int) -> list[Constants]:
        """Zero, then activations of random prompts, twice as far from the mean as they are.

        With one vector the activation is that of a random position. Such starts reached the best
        known minimum more often than the activations themselves or Gaussian ones.
        """
        means = self.means
        starts = [zero_constants(self.group)]
        while len(starts) < max(1, count):
            number = torch.randint(len(self.rest), (1,), generator=self.generator)
            one = self.rest.subset(number)
            if self.slots.n > 1:
                own = mean_constants(one, self.group, self.slots)
                own = [x.where(x.isfinite(), mean) for x, mean in zip(own, means, strict=True)]
            else:
                span = one.lengths[0] - one.first
                at = one.first + int(torch.randint(span, (1,), generator=self.generator))
                own = [v[0][:, :, at].double().cpu() for v in activations(one, self.group)]
            starts.append([mean + 2 * (x - mean) for x, mean in zip(own, means, strict=True)])
        return starts

    def _certified(self, end: Minimum, spread_of_starts: Tensor, stopped: Constants) -> Fit:
        """The fit that ends here, checked in float64.

        Where float32 was too coarse, it is gone on with for as many evaluations as there are left;
        an evaluation in float64 takes twice to three times as long.
        """
        every = torch.arange(len(self.group))
        found, course, begun = end, end.course, self.reading - end.evaluations
        if self.run.model.W_E.dtype != torch.float64:
            begin, exact = self._constants(end.point), self.run.double()
            left = max(1, self.config.evaluations - int(end.evaluations.max()))
            polish = Tolerance(self.config.gradient, self.config.gap, left)
            found = self._descend(exact, every, begin, polish, memory=end.memory)
            course = torch.cat([course, found.course[1:]])
        constants = self._constants(found.point)
        norms = torch.stack([one.norm(dim=-1).amax(1) for one in constants])
        capped = (norms >= self.caps * (1 - 1e-9)).any(0)
        gap = torch.maximum(end.gap, found.gap)
        converged = found.converged & (gap <= self.config.gap * found.value.clamp(min=1e-3))
        return Fit(
            constants,
            found.value,
            found.gradient,
            gap,
            converged,
            capped,
            spread_of_starts,
            self.reading,
            stopped,
            course,
            begun,
        )


def _vertex(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """The minimum of the parabola through three points, kept off them; else a golden section."""
    left, right = x[1] - x[0], x[2] - x[1]
    slopes = (y[1] - y[0]) / left, (y[2] - y[1]) / right
    curvature = (slopes[1] - slopes[0]) / (left + right)
    new = (x[0] + x[1]) / 2 - slopes[0] / (2 * curvature)
    is_inside = (curvature > 0) & (new > x[0]) & (new < x[2])
    section = torch.where(right > left, x[1] + 0.38 * right, x[1] - 0.38 * left)
    new = torch.where(is_inside, new, section)
    near = 0.02 * (x[2] - x[0])
    apart = torch.where(right > left, x[1] + near, x[1] - near)
    return torch.where((new - x[1]).abs() < 1e-3 * near, apart, new)


def _narrowed(
    x: list[Tensor], y: list[Tensor], new: Tensor, cost: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Three points around the least of four."""
    points, values = torch.stack([*x, new]), torch.stack([*y, cost])
    order = points.argsort(0)
    points, values = points.gather(0, order), values.gather(0, order)
    centre = values.argmin(0).clamp(1, 2)
    every = torch.arange(points.shape[1])
    return (
        [points[centre + step, every] for step in (-1, 0, 1)],
        [values[centre + step, every] for step in (-1, 0, 1)],
    )


def _caps(run: CleanRun, group: Group) -> Float[Tensor, "part problem"]:
    """The largest norm of a constant."""
    found = []
    for values in activations(run, group):
        norms = torch.cat([v[:, :, run.first :].norm(dim=-1).flatten(1) for v in values], 1)
        found.append(CAP * norms.double().quantile(0.99, dim=1).cpu())
    return torch.stack(found).clamp(min=1e-12)


class _Watcher:
    """The best iterate of each problem on prompts that it is not fitted on."""

    def __init__(self, run: CleanRun, group: Group, slots: Slots, caps: Tensor) -> None:
        self.run, self.group = run, group
        self.objective = Objective(run, group, slots, caps)
        n = len(group)
        self.value = torch.full((n,), torch.inf, dtype=torch.float64)
        self.point = torch.zeros(n, sum(self.objective.sizes), dtype=torch.float64)
        self.waited = torch.zeros(n, dtype=torch.long)

    def __call__(self, point: Tensor, problems: Tensor) -> Tensor:
        """Note accepted iterates; says which problems have waited too long for a better one."""
        constants = self.objective.constants(point, problems)
        value = constant_kl(self.run, self.group.take(problems), constants).mean(1)
        is_better = value < self.value[problems]
        better = problems[is_better]
        self.value[better], self.point[better] = value[is_better], point[is_better]
        self.waited[problems] = torch.where(is_better, 0, self.waited[problems] + 1)
        return self.waited[problems] > PATIENCE

    def best(self) -> Constants:
        return self.objective.constants(self.point, torch.arange(len(self.group)))
