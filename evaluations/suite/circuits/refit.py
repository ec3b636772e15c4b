"""Optimal constants of circuits: what ablated edges carry so that a circuit costs least.

Each source has one constant, for all edges that leave it and all positions from the first ablated
one on (arXiv 2409.09951, section 3). A head's constant replaces z, the others' their output: those
of heads are vectors of d_head numbers. The constants of a circuit minimise the mean KL from the
whole model on the prompts that the circuit was found on. Every circuit, random ones included, is
refitted by the same steps: full-batch L-BFGS from the same starts with the same budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_lbfgs import Evaluate, Tolerance, minimise
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import Constants, PromptBatch
from evaluations.suite.circuits.rows import RowPass, RowPrompts
from sat_interp._util import progress

RANDOM = 6
"""Random starts of the empty circuit's constants, which all searches begin from."""
SCALES = (0.1, 1.0, 3.0)
"""Random starts, in standard deviations of the sources' outputs."""
MEMORY = 64 * 2**20
"""Bytes of sources' outputs that one pass may hold."""

TOGETHER = 16
"""Circuits whose constants are fitted in one go."""

Flat = Float[Tensor, "_ size"]


@dataclass(frozen=True)
class Budget:
    """How constants are fitted to one circuit.

    Attributes:
        starts: the clean means; the constants under which the circuit was searched, by default
            those of the empty circuit; zero; then random ones.
        sample: prompts on which the starts are compared.
        first: evaluations of value and gradient for each start, on the sample.
        evaluations: at most so many from the best start, on all prompts.
        gradient, gap: when a fit has converged (``ablation_lbfgs.Tolerance``).
    """

    starts: int = 2
    sample: int = 50
    first: int = 15
    evaluations: int = 40
    gradient: float = 1e-5
    gap: float = 1e-4


@dataclass(frozen=True)
class Refitted:
    """Constants of circuits and the certificate of their fit.

    Attributes:
        flat: constants, one set for each circuit, laid out source after source.
        delta: mean KL on the prompts of the fit, in nats.
        gradient: largest entry of the gradient at the constants.
        gap: by how much the value fell in the second half of the evaluations.
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
        self.sample = self.rows.prompts(_thinned(buckets, budget.sample))
        self.mean = self.space.flat(buckets[0].replacement[:, 0, -1])
        self._spread = _standard_deviation(buckets)
        self._known: dict[bytes, Fit] = {}
        self._suggested: dict[bytes, Tensor] = {}
        empty = torch.zeros(1, graph.n_edges, dtype=torch.bool)
        random = [self._random(number) for number in range(max(RANDOM, budget.starts))]
        self.empty = self.refit(empty, [self.mean, torch.zeros_like(self.mean), *random]).flat[0]

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
        second = torch.stack([self._suggested.get(key, self.empty) for key in circuits])
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
            first = minimise(
                self._objective(every, self.sample),
                points.flatten(0, 1),
                Tolerance(None, budget.gap, budget.first),
            )
            best = first.value.view(n, -1).argmin(1)
            points = first.point.view(n, len(starts), -1)
        chosen = points[torch.arange(n), best]
        tolerance = Tolerance(budget.gradient, budget.gap, budget.evaluations)
        end = minimise(self._objective(circuits, self.prompts), chosen, tolerance)
        return Refitted(
            end.point.to(self.mean), end.value, end.gradient, end.gap, end.converged, best
        )

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
        sources, prompts, positions, width = batch.clean.shape
        each = 2 * sources * prompts * positions * width * batch.clean.element_size()
        size = max(1, MEMORY // each)
        return [slice(start, start + size) for start in range(0, n, size)]


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


def _thinned(buckets: Sequence[PromptBatch], n: int) -> list[PromptBatch]:
    """Return about ``n`` of the prompts, as many of each chunk in proportion, at least one."""
    share = min(1.0, n / sum(len(bucket) for bucket in buckets))
    return [bucket[: max(1, round(share * len(bucket)))] for bucket in buckets]
