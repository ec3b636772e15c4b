"""Frontiers: the circuits of a method that none of its others dominates, and their figures.

Circuits are chosen by their cost on the prompts they were found on, and their figures are of
held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluations.core.statistics import TAILS
from evaluations.suite.circuits.faithfulness import is_apart
from evaluations.suite.circuits.frontier import curves
from evaluations.suite.circuits.frontier.bench import Bench, Measured
from evaluations.suite.circuits.frontier.candidates import Candidate
from evaluations.suite.circuits.frontier.config import (
    EDGE_FIGURES,
    FAITHFUL,
    OVERFITTED,
    REFERENCE,
    FrontierConfig,
)
from evaluations.suite.circuits.frontier.curves import Estimate


@dataclass(frozen=True)
class Point:
    """A circuit of a frontier, or the mean of several random ones of one size.

    Attributes:
        candidate: the circuit; of random ones the first.
        fit: its cost on the prompts it was found on, in nats.
        kl, difference: of each held-out prompt.
    """

    candidate: Candidate
    fit: float
    kl: Float[np.ndarray, " prompt"]
    difference: Float[np.ndarray, " prompt"]

    @property
    def n(self) -> int:
        """Number of edges."""
        return self.candidate.n


@dataclass(frozen=True)
class Frontier:
    """The circuits of one curve, by number of edges, and what their figures are read against.

    Attributes:
        points: the empty circuit first.
        tried: all circuits that were measured: number of edges and cost on the fit prompts.
        ceiling: I of the task, in nats.
        whole, empty: logit differences of the whole model and of the empty circuit, by prompt.
        ends: fewest and most edges of the area.
        not_finite: circuits whose cost is not finite, left out.
        not_converged: circuits whose optimal constants are not at a minimum: upper bounds.
    """

    points: list[Point]
    tried: list[tuple[int, float]]
    ceiling: float
    whole: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]
    ends: tuple[int, int]
    resamples: int
    seed: int
    not_finite: int = 0
    not_converged: int = 0

    @cached_property
    def edges(self) -> np.ndarray:
        """Number of edges of each circuit."""
        return np.array([point.n for point in self.points])

    @cached_property
    def _kl(self) -> np.ndarray:
        return np.stack([point.kl for point in self.points])

    @cached_property
    def costs(self) -> Float[np.ndarray, " circuit"]:
        """Delta of each circuit on held-out prompts, in nats."""
        means: Float[np.ndarray, " circuit"] = self._kl.mean(1)
        return means

    @cached_property
    def _drawn(self) -> Float[np.ndarray, "draw circuit"]:
        return curves.resampled_means(self._kl, self.resamples, self.seed)

    @property
    def intervals(self) -> Float[np.ndarray, "2 circuit"]:
        """95 % interval of each circuit's Delta over the prompts."""
        ends: Float[np.ndarray, "2 circuit"] = np.quantile(self._drawn, TAILS, axis=0)
        return ends

    def edges_at(self, share: float) -> Estimate:
        """Return E(s): the fewest edges with Delta <= s I."""
        most = share * self.ceiling
        return self._estimate(
            lambda costs: curves.edges_at_cost(self.edges, costs, most), self.costs, self._drawn
        )

    @property
    def area(self) -> Estimate:
        """Return the mean of ln(Delta / I) over the logarithm of the number of edges."""
        return self._estimate(
            lambda costs: curves.area(self.edges, costs, self.ends, self.ceiling),
            self.costs,
            self._drawn,
        )

    @property
    def edges_at_faithfulness(self) -> Estimate:
        """Return the fewest edges with faithfulness 0.8; of what is undefined no value."""
        if not self.is_defined:
            return Estimate(None)
        gap = self.whole - self.empty
        gained = np.stack([point.difference for point in self.points]) - self.empty
        draws = curves.resampled_means(gained, self.resamples, self.seed)
        scales = curves.resampled_means(gap[None], self.resamples, self.seed)
        return self._estimate(
            lambda shares: curves.edges_at_faithfulness(self.edges, shares, FAITHFUL),
            gained.mean(1) / gap.mean(),
            draws / scales,
        )

    @property
    def is_defined(self) -> bool:
        """Whether faithfulness is: whole model and empty circuit differ (``is_apart``)."""
        return is_apart(self.whole, self.empty)

    @property
    def faithfulness(self) -> list[float | None]:
        """Faithfulness of each circuit: (m(circuit) - m(empty)) / (m(whole) - m(empty))."""
        if not self.is_defined:
            return [None] * len(self.points)
        scale = float((self.whole - self.empty).mean())
        return [float((point.difference - self.empty).mean()) / scale for point in self.points]

    def reference(self, share: float) -> Point | None:
        """Return the smallest circuit with a cost of at most ``share * I`` on the fit prompts."""
        most = share * self.ceiling
        return next((point for point in self.points if point.fit <= most), None)

    @property
    def excess(self) -> float | None:
        """Share by which the reference circuit costs more on held-out prompts; None without one.

        The reference circuit is the smallest that costs at most a fifth of I on the fit prompts.
        """
        point = self.reference(REFERENCE)
        if point is None or point.fit <= curves.FLOOR:
            return None
        return float(point.kl.mean()) / point.fit - 1

    @property
    def is_overfitted(self) -> bool:
        """Whether that is more than a fifth."""
        return self.excess is not None and self.excess > OVERFITTED

    def _estimate(self, figure: Any, means: np.ndarray, draws: np.ndarray) -> Estimate:
        return curves.estimate(figure, means, draws, self._kl.shape[1])

    @cached_property
    def summary(self) -> dict[str, Estimate]:
        """Return E(s) for each share, edges at faithfulness 0.8, and the area.

        Where the model's predictions do not depend on the prompt, there is none of them.
        """
        if not self.ceiling > curves.FLOOR:
            return dict.fromkeys((*EDGE_FIGURES, "faithful", "area"), Estimate(None))
        return {
            **{name: self.edges_at(share) for name, share in EDGE_FIGURES.items()},
            "faithful": self.edges_at_faithfulness,
            "area": self.area,
        }


def make_frontier(
    bench: Bench, candidates: Sequence[Candidate], ceiling: float, config: FrontierConfig
) -> Frontier:
    """Measure circuits and keep those that none of the others dominates on the fit prompts."""
    measured = bench.measure([one.kept for one in candidates])
    pairs = [pair for pair in zip(candidates, measured, strict=True) if pair[1].is_finite]
    edges = [one.n for one, _ in pairs]
    costs = [_fit(cost) for _, cost in pairs]
    points = [_point(pairs[place]) for place in curves.chosen(edges, costs)]
    tried = list(zip(edges, costs, strict=True))
    return _frontier(bench, points, tried, ceiling, config, measured)


def make_random(
    bench: Bench, sizes: Sequence[Sequence[Candidate]], ceiling: float, config: FrontierConfig
) -> Frontier:
    """Measure random circuits: a point is the mean over those of one size; none is chosen."""
    empty = bench.empty
    none = Candidate(sizes[0][0].kept & False, "no edges")
    points, tried, measured = [_point((none, empty))], [(0, _fit(empty))], [empty]
    for several in sizes:
        measured += (own := bench.measure([one.kept for one in several]))
        if finite := [one for one in own if one.is_finite]:
            points.append(_mean(several[0], finite))
            tried += [(several[0].n, _fit(one)) for one in finite]
    return _frontier(bench, points, tried, ceiling, config, measured)


def _frontier(
    bench: Bench,
    points: list[Point],
    tried: list[tuple[int, float]],
    ceiling: float,
    config: FrontierConfig,
    measured: Sequence[Measured],
) -> Frontier:
    cuts = config.cuts(bench.case.graph.n_edges)
    whole, empty = bench.held.full.difference.numpy(), np.array(bench.empty.difference)
    return Frontier(
        points,
        tried,
        ceiling,
        whole,
        empty,
        (cuts[0], max(cuts[-1], cuts[0] + 1)),
        config.resamples,
        config.seed,
        sum(not one.is_finite for one in measured),
        sum(one.converged is False for one in measured),
    )


def _fit(measured: Measured) -> float:
    assert measured.fit is not None
    return measured.fit


def _point(pair: tuple[Candidate, Measured]) -> Point:
    candidate, measured = pair
    return Point(candidate, _fit(measured), np.array(measured.kl), np.array(measured.difference))


def _mean(candidate: Candidate, measured: Sequence[Measured]) -> Point:
    return Point(
        candidate,
        float(np.mean([one.fit for one in measured])),
        np.mean([one.kl for one in measured], 0),
        np.mean([one.difference for one in measured], 0),
    )
