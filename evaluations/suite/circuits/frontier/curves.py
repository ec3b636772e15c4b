"""Frontiers in numbers: E(s), the area below a frontier, and their bootstrap intervals.

A frontier is a list of circuits by number of edges, with the cost of each (Delta, mean KL from the
whole model). Between two circuits the logarithm of the cost is linear in the logarithm of the
number of edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from evaluations.core.statistics import ENOUGH, TAILS

FLOOR = 1e-6
"""Costs below are rounding of float32 logits and count as this, in nats."""

Edges = Int[np.ndarray, " circuit"]
Costs = Float[np.ndarray, "*rows circuit"]
Values = Float[np.ndarray, "circuit prompt"]


def chosen(edges: Sequence[int], costs: Sequence[float]) -> list[int]:
    """Return the circuits that no other one dominates, by number of edges.

    A circuit is dominated where another one has at most as many edges and costs at most as much.
    """
    order = sorted(range(len(edges)), key=lambda place: (edges[place], costs[place]))
    found: list[int] = []
    least = math.inf
    for place in order:
        if costs[place] < least:
            found.append(place)
            least = costs[place]
    return found


def crossing(edges: Edges, heights: Costs, level: float) -> Float[np.ndarray, "*rows"]:
    """Return the number of edges at which a curve first is at most at a level; NaN where never.

    Between two circuits the height is linear in the logarithm of the number of edges. Nothing is
    interpolated before the first circuit that has an edge.

    Args:
        edges: in ascending order.
        heights: of one curve or of several over the same circuits.
        level: the height.
    """
    below = heights <= level
    first = below.argmax(-1)
    before = np.maximum(first - 1, 0)
    upper = np.take_along_axis(heights, before[..., None], -1)[..., 0]
    lower = np.take_along_axis(heights, first[..., None], -1)[..., 0]
    starts = edges[before]
    is_between = (first > 0) & (starts > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (upper - level) / (upper - lower)
        x = np.log(starts) + share * (np.log(edges[first]) - np.log(starts))
    found: Float[np.ndarray, "*rows"] = np.where(is_between, np.exp(x), edges[first])
    return np.where(below.any(-1), found, np.nan)


def edges_at_cost(edges: Edges, costs: Costs, most: float) -> Float[np.ndarray, "*rows"]:
    """Return the fewest edges that cost at most so much (nats); NaN where no circuit does.

    E(s) is that for ``most = s I``, with I the cost of knowing nothing of the prompt.
    """
    logs = np.log(np.maximum(costs, FLOOR))
    return crossing(edges, logs, math.log(max(most, FLOOR)))


def edges_at_faithfulness(edges: Edges, shares: Costs, least: float) -> Float[np.ndarray, "*rows"]:
    """Return the fewest edges with at least this faithfulness; NaN where no circuit has it."""
    return crossing(edges, -shares, -least)


def area(
    edges: Edges, costs: Costs, ends: tuple[int, int], ceiling: float
) -> Float[np.ndarray, "*rows"]:
    """Return the mean of ln(Delta / I) over the logarithm of the number of edges.

    With fewer edges than the smallest circuit has, the empty circuit is all there is; with more
    than the largest has, the largest still serves.

    Args:
        edges: in ascending order, the empty circuit first.
        costs: Delta of every circuit, in nats.
        ends: fewest and most edges that the mean is taken over.
        ceiling: I, in nats.
    """
    logs = np.log(np.maximum(costs, FLOOR) / ceiling)
    return np.asarray(logs @ _weights(edges, ends))


def _weights(edges: Edges, ends: tuple[int, int]) -> Float[np.ndarray, " circuit"]:
    """Return what each circuit contributes to the mean over [ln low, ln high]."""
    low, high = (math.log(end) for end in ends)
    places = [-math.inf, *np.log(edges[edges > 0]).tolist(), math.inf]
    n_empty = int((edges == 0).sum())
    weights = np.zeros(len(edges))
    for place, (start, stop) in enumerate(zip(places, places[1:], strict=False)):
        a, b = max(start, low), min(stop, high)
        if b <= a:
            continue
        left, right = (place - 1 + n_empty + step for step in (0, 1))
        if not math.isfinite(start):
            weights[max(left, 0)] += b - a
        elif not math.isfinite(stop):
            weights[left] += b - a
        else:
            share = ((a + b) / 2 - start) / (stop - start)
            weights[left] += (b - a) * (1 - share)
            weights[right] += (b - a) * share
    return weights / (high - low)


# Intervals over prompts -------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure of a curve.

    Attributes:
        value: None where the curve never gets there.
        low, high: percentile interval over bootstrap samples of the prompts; ``high`` is None
            where too many of them never get there.
        missed: share of the samples that never get there.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    missed: float = 0.0


def resampled_means(values: Values, resamples: int, seed: int) -> Float[np.ndarray, "draw circuit"]:
    """Return each circuit's mean over bootstrap samples of the prompts.

    The same prompts are drawn for every circuit, and for every curve of as many prompts.
    """
    n = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    means: Float[np.ndarray, "draw circuit"] = counts @ values.T / n
    return means


def estimate(
    figure: Callable[[Costs], Float[np.ndarray, "*rows"]],
    means: Float[np.ndarray, " circuit"],
    draws: Float[np.ndarray, "draw circuit"],
    n: int,
) -> Estimate:
    """Return a figure of the mean costs and its interval over the draws.

    Args:
        figure: of one curve or of several; NaN where it never gets there.
        means: the curve.
        draws: the curve of every bootstrap sample.
        n: prompts; with fewer than five there is no interval.
    """
    value = float(figure(means))
    if math.isnan(value):
        return Estimate(None)
    if n < ENOUGH or len(draws) < 2:
        return Estimate(value)
    found = figure(draws)
    missed = float(np.isnan(found).mean())
    found = np.where(np.isnan(found), np.inf, found)
    low = float(np.quantile(found, TAILS[0], method="lower"))
    high = float(np.quantile(found, TAILS[1], method="higher"))
    return Estimate(value, _finite(low), _finite(high), missed)


def _finite(end: float) -> float | None:
    return end if math.isfinite(end) else None
