"""Optimal constants of circuits: what ablated edges carry so that a circuit costs least.

Each source has one constant, for all edges that leave it and all positions from the first ablated
one on (arXiv 2409.09951, section 3). A head's constant replaces z, the others' their output: those
of heads are vectors of d_head numbers. The constants of a circuit minimise the mean KL from the
whole model on the prompts that the circuit was found on. Every circuit, random ones included, is
refitted by the same steps: full-batch L-BFGS from the same starts with the same budget. Steps are
measured by an estimate of the curvature (``ablation_metric``), which is made anew every few
evaluations, since fits begin far from a minimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_lbfgs import Evaluate, Memory, Tolerance, minimise
from evaluations.core.ablation_metric import Metric, n_draws, score_direction
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import Constants, PromptBatch
from evaluations.suite.circuits.rows import RowPass, RowPrompts
from sat_interp._util import progress

SCALES = (0.1, 1.0, 3.0)
"""Random starts, in standard deviations of the sources' outputs."""
MEMORY = 64 * 2**20
"""Bytes of sources' outputs that one pass may hold."""

TOGETHER = 16
"""Circuits whose constants are fitted in one go."""
ROUND = 10
"""Evaluations after which the curvature is estimated anew."""
DAMPING = 0.3
"""Of the estimated curvature, as a share of its mean diagonal entry."""

Flat = Float[Tensor, "_ size"]


@dataclass(frozen=True)
class Budget:
    """How constants are fitted to one circuit.

    Attributes:
        starts: the clean means; the constants under which the circuit was searched, by default
            those of the empty circuit; zero; then random ones.
        sample: prompts on which the starts are compared.
        first: evaluations of value and gradient for each start, on the sample.
        evaluations: at most so many from where the best start led, on all prompts.
        gradient, gap: when a fit has converged (``ablation_lbfgs.Tolerance``).
    """

    starts: int = 2
    sample: int = 100
    first: int = 10
    evaluations: int = 30
    gradient: float = 1e-5
    gap: float = 1e-4


@dataclass(frozen=True)
class Refitted:
    """Constants of circuits and the certificate of their fit.

    Attributes:
        flat: constants, one set for each circuit, laid out source after source.
        delta: mean KL on the prompts of the fit, in nats.
        gradient: largest entry of the gradient at the constants.
        gap: by how much the value fell in the second half of the last round (``ROUND`` evaluations,
            fewer where the fit ended sooner), not of all evaluations.
        converged: whether both are small enough.
        start: the start that was best on the sample.
    """

    flat: Flat
    delta: Float[Tensor, " circuit"]
    gradient: Float[Tensor, " circuit"]
    gap: Float[Tensor, " circuit"]
    converged: Bool[Tensor, " circuit"]
    start: Int[Tensor, " circuit"]


@dataclass(frozen=True)
class Fit:
    """The constants of one circuit, their cost on the prompts of the fit, and its certificate."""

    flat: Float[Tensor, " size"]
    delta: float
    converged: bool


class ConstantSpace:
    """The constants of a model's sources as vectors: heads' in z, the others' in the stream."""

    def __init__(self, model: HookedTransformer, graph: Graph) -> None:
        self.graph, width = graph, model.W_E.shape[1]
        self.sizes = []
        self._out: list[Tensor | None] = []
        for source in graph.sources:
            out = None
            if source.head is not None:
                out = model.blocks[source.layer].attn.W_O[source.head].detach()
            self._out.append(out)
            self.sizes.append(width if out is None else len(out))

    @property
    def size(self) -> int:
        """Numbers of one set of constants."""
        return sum(self.sizes)

    def written(self, flat: Flat) -> Float[Tensor, "_ source d_model"]:
        """Return what sources write with these constants; differentiable."""
        parts = flat.split(self.sizes, 1)
        return torch.stack(
            [
                part if out is None else part @ out
                for part, out in zip(parts, self._out, strict=True)
            ],
            1,
        )

    def flat(self, written: Constants) -> Float[Tensor, " size"]:
        """Return the constants with which sources write this, or what is nearest to it."""
        parts = [
            row if out is None else torch.linalg.pinv(out.cpu().double()).to(row).T @ row
            for row, out in zip(written, self._out, strict=True)
        ]
        return torch.cat(parts)


class Refitter:
    """Fits constants to circuits on one set of prompts.

    Args:
        model: the model.
        graph: its graph.
        buckets: cached prompts whose replacement are the clean means (``mean``): the first start.
        budget: the same for every circuit.
    """

    def __init__(
        self,
        model: HookedTransformer,
        graph: Graph,
        buckets: Sequence[PromptBatch],
        budget: Budget = Budget(),
    ) -> None:
        self.graph, self.budget = graph, budget
        self.rows = RowPass(model, graph)
        self.space = ConstantSpace(model, graph)
        self.prompts = self.rows.prompts(buckets)
        self.sample = self.rows.prompts(thinned(buckets, budget.sample))
        self.mean = self.space.flat(buckets[0].replacement[:, 0, -1])
        self._spread = _standard_deviation(buckets)
        self._known: dict[bytes, Fit] = {}
        self._suggested: dict[bytes, Tensor] = {}
        self.empty = self._empty()

    def _empty(self) -> Float[Tensor, " size"]:
        """Return the constants of the circuit without edges, which all searches begin from.

        Its cost is that of the sum of all constants. Steps along the gradient, from the means and
        without a metric, move all sources alike, so that each stays near what it writes. Constants
        far from that cost the empty circuit no more, but ACDC and EAP-IG find worse circuits with
        them.
        """
        none = torch.zeros(1, self.graph.n_edges, dtype=torch.bool)
        budget = self.budget
        tolerance = Tolerance(budget.gradient, budget.gap, budget.evaluations)
        end = minimise(self._objective(none, self.prompts), self.mean[None].cpu(), tolerance)
        return end.point[0].to(self.mean)

    def suggest(self, kept: Bool[Tensor, "edge"], flat: Float[Tensor, " size"]) -> None:
        """Start from these constants, found together with a circuit, in place of the empty's."""
        self._suggested[_key(kept)] = flat

    def constants(self, kept: Bool[Tensor, "edge"]) -> Constants:
        """Return what the sources of one circuit write on ablated edges; fitted once."""
        return self.space.written(self.fits([kept])[0].flat[None])[0]

    def fits(self, circuits: Sequence[Bool[Tensor, "edge"]]) -> list[Fit]:
        """Return the constants of each circuit; fitted once, together."""
        missing = {key: kept for kept in circuits if (key := _key(kept)) not in self._known}
        with progress.bar(total=len(missing), desc="constants", unit="circuit") as bar:
            while missing:
                some = dict(itertools.islice(missing.items(), TOGETHER))
                self._fit(some)
                missing = {key: kept for key, kept in missing.items() if key not in some}
                bar.update(len(some))
        return [self._known[_key(kept)] for kept in circuits]

    def _fit(self, circuits: dict[bytes, Tensor]) -> None:
        second = torch.stack([self.start_of(kept) for kept in circuits.values()])
        others = [torch.zeros_like(self.mean), *map(self._random, range(self.budget.starts))]
        starts = [self.mean, second, *others][: max(1, self.budget.starts)]
        found = self.refit(torch.stack(list(circuits.values())), starts)
        for place, key in enumerate(circuits):
            delta, good = float(found.delta[place]), bool(found.converged[place])
            self._known[key] = Fit(found.flat[place], delta, good)

    def _random(self, number: int) -> Float[Tensor, " size"]:
        """Return a random start: the clean means and noise in units of the outputs' spread."""
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(self._spread.shape, generator=generator).to(self._spread)
        return self.mean + self.space.flat(SCALES[number % len(SCALES)] * self._spread * noise)

    def refit(self, circuits: Bool[Tensor, "circuit edge"], starts: Sequence[Tensor]) -> Refitted:
        """Fit constants to every circuit from each start.

        Args:
            circuits: edges kept.
            starts: constants, the same for all circuits (size) or one set for each (circuit, size).
        """
        n, budget = len(circuits), self.budget
        points = torch.stack(
            [start.expand(n, -1) if start.ndim == 1 else start for start in starts], 1
        ).cpu()
        best = torch.zeros(n, dtype=torch.long)
        if len(starts) > 1:
            every = circuits.repeat_interleave(len(starts), 0)
            loose = Tolerance(None, budget.gap, budget.first)
            first = self._descend(every, points.flatten(0, 1), self.sample, loose)
            best = first.delta.view(n, -1).argmin(1)
            points = first.flat.view(n, len(starts), -1)
        chosen = points[torch.arange(n), best]
        tight = Tolerance(budget.gradient, budget.gap, budget.evaluations)
        end = self._descend(circuits, chosen, self.prompts, tight)
        return replace(end, flat=end.flat.to(self.mean), start=best)

    def start_of(self, kept: Bool[Tensor, "edge"]) -> Float[Tensor, " size"]:
        """Return the constants that a circuit was found with, by default those of the empty one."""
        return self._suggested.get(_key(kept), self.empty)

    def briefly(
        self,
        circuits: Bool[Tensor, "circuit edge"],
        start: Flat,
        prompts: Sequence[RowPrompts],
        evaluations: int,
    ) -> Flat:
        """Return constants after a few evaluations, from one set for all circuits or for each."""
        points = start.expand(len(circuits), -1).cpu().clone()  # changed in place
        loose = Tolerance(None, self.budget.gap, evaluations)
        return self._descend(circuits, points, prompts, loose).flat.to(self.mean)

    def _descend(
        self,
        circuits: Bool[Tensor, "circuit edge"],
        points: Flat,
        prompts: Sequence[RowPrompts],
        tolerance: Tolerance,
    ) -> Refitted:
        """Descend from one point for each circuit, in rounds; circuits that have converged rest."""
        n, left = len(circuits), tolerance.evaluations
        point, active = points.double(), torch.arange(n)
        delta, gradient, gap = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
        converged = torch.zeros(n, dtype=torch.bool)
        memory = Memory.empty(point)
        while left > 0 and len(active):
            own = memory.take(active)
            own.scale.zero_()
            own.metric = self._metric(circuits[active], point[active], prompts)
            size = replace(tolerance, evaluations=min(ROUND, left))
            evaluate = self._objective(circuits[active], prompts)
            end = minimise(evaluate, point[active], size, memory=own)
            point[active], delta[active] = end.point, end.value
            gradient[active], gap[active] = end.gradient, end.gap
            converged[active] = end.converged
            for history in ("s", "y", "rho"):
                getattr(memory, history)[active] = getattr(own, history)
            active, left = active[~end.converged], left - ROUND
        none = torch.zeros(n, dtype=torch.long)
        return Refitted(point, delta, gradient, gap, converged, none)

    def _metric(
        self, circuits: Bool[Tensor, "circuit edge"], flat: Flat, prompts: Sequence[RowPrompts]
    ) -> Metric:
        """Estimate each circuit's curvature at its constants, by a draw for each prompt."""
        wanted, _ = n_draws(self.space.size, sum(map(len, prompts)))
        drawn = [
            self._scores(circuits, flat, batch, some)
            for batch, some in zip(prompts, _shares(prompts, wanted), strict=True)
        ]
        return Metric.of(torch.cat(drawn, 1), DAMPING)

    def _scores(
        self, circuits: Bool[Tensor, "circuit edge"], flat: Flat, batch: RowPrompts, n: int
    ) -> Float[Tensor, "circuit draw size"]:
        """Return draws, on the first prompts, whose mean square is the Fisher information."""
        number = torch.arange(n).repeat(len(circuits))
        owner = torch.arange(len(circuits)).repeat_interleave(n)
        found = []
        for some in torch.arange(len(number)).split(self._rows(batch, 1)):
            point = flat[owner[some]].to(self.mean).requires_grad_()
            masks = circuits[owner[some]].to(point)
            with torch.enable_grad():
                rows = number[some, None].to(point.device)
                logits = self.rows.logits(batch, rows, masks, self.space.written(point))
                drawn = logits * score_direction(logits[None], number[some], 0)[0]
                (gradient,) = torch.autograd.grad(drawn.sum(), point, materialize_grads=True)
            found.append(gradient.double().cpu())
        return torch.cat(found).view(len(circuits), n, -1)

    def cost(
        self, circuits: Bool[Tensor, "circuit edge"], flat: Flat, prompts: Sequence[RowPrompts]
    ) -> tuple[Float[Tensor, " circuit"], Flat]:
        """Return the mean KL of each circuit with its constants, and its gradient; float64."""
        total = torch.zeros(len(circuits), dtype=torch.float64)
        slope = torch.zeros(len(circuits), flat.shape[1], dtype=torch.float64)
        n = sum(len(batch) for batch in prompts)
        for batch in prompts:
            for rows in self._parts(len(circuits), batch):
                value, gradient = self._cost(circuits[rows], flat[rows], batch)
                total[rows] += value / n
                slope[rows] += gradient / n
        return total, slope

    def _cost(
        self, circuits: Bool[Tensor, "circuit edge"], flat: Flat, batch: RowPrompts
    ) -> tuple[Tensor, Tensor]:
        device = batch.logits.device
        point = flat.to(self.mean).requires_grad_()
        masks = circuits.to(point)
        index = torch.arange(len(batch), device=device).expand(len(circuits), -1)
        with torch.enable_grad():
            kl = self.rows.divergence(batch, index, masks, self.space.written(point))
            (gradient,) = torch.autograd.grad(kl.sum(), point, materialize_grads=True)
        return kl.detach().double().sum(1).cpu(), gradient.double().cpu()

    def _objective(
        self, circuits: Bool[Tensor, "circuit edge"], prompts: Sequence[RowPrompts]
    ) -> Evaluate:
        def evaluate(points: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            return self.cost(circuits[numbers], points, prompts)

        return evaluate

    def _parts(self, n: int, batch: RowPrompts) -> list[slice]:
        size = self._rows(batch, len(batch))
        return [slice(start, start + size) for start in range(0, n, size)]

    @staticmethod
    def _rows(batch: RowPrompts, prompts: int) -> int:
        """Return how many rows of so many prompts one pass may hold."""
        sources, _, positions, width = batch.clean.shape
        each = 2 * sources * prompts * positions * width * batch.clean.element_size()
        return max(1, MEMORY // each)


def _standard_deviation(buckets: Sequence[PromptBatch]) -> Constants:
    """Return the standard deviation of each source's output over prompts and ablated positions."""
    mean = buckets[0].replacement[:, 0, -1]
    total, squares, n = torch.zeros_like(mean), torch.zeros_like(mean), 0
    for bucket in buckets:
        away = bucket.clean[:, :, bucket.first :] - mean[:, None, None]
        total, squares = total + away.sum((1, 2)), squares + away.square().sum((1, 2))
        n += away[0, :, :, 0].numel()
    return (squares / n - (total / n) ** 2).clamp(min=0).sqrt()


def _key(kept: Bool[Tensor, "edge"]) -> bytes:
    return kept.cpu().numpy().tobytes()


def thinned(buckets: Sequence[PromptBatch], n: int) -> list[PromptBatch]:
    """Return about ``n`` of the prompts, as many of each chunk in proportion, at least one."""
    return [bucket[:some] for bucket, some in zip(buckets, _shares(buckets, n), strict=True)]


def _shares(chunks: Sequence[Sized], n: int) -> list[int]:
    """Return how many items of each chunk are about ``n`` in all, at least one of each."""
    share = min(1.0, n / sum(map(len, chunks)))
    return [max(1, round(share * len(chunk))) for chunk in chunks]
