"""The options of ``circuits``; imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from evaluations.core.options import TaskOptions
from evaluations.suite.circuits.config import MASKED, Ablation, FitOptions, MaskOptions, Method
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.settings import check_at_least

METHODS: tuple[Method, ...] = ("ugs", "hcgs", "edge-pruning", "acdc", "eap", "eap-ig")
ABLATIONS: dict[str, Ablation] = {
    "oa": "oa",
    "cf": "resample",
    "zero": "zero",
    "mean": "mean",
    "cf_mean": "cf_mean",
}
"""Ablations by name, and what circuits call them."""
SHARES = (0.5, 0.2, 0.1, 0.05)
"""Shares s of the ceiling I at which the fewest edges, E(s), are reported."""
EDGE_FIGURES = {f"e{round(100 * share):02d}": share for share in SHARES}
"""The share of each E(s), by the name of the figure in records."""
REFERENCE = 0.2
"""The share at which circuits are drawn and compared with each other."""
FAITHFUL = 0.8
THRESHOLDS = (1e-3, 0.1)
"""Smallest and largest threshold of acdc, as shares of the ceiling I."""
OVERFITTED = 0.2
"""Share by which a circuit costs more on held-out prompts, above which its curve is marked."""


@dataclass(frozen=True)
class FrontierTask(TaskOptions):
    """The prompts of frontiers: more than one circuit takes."""

    prompts: int = 400
    """Number of prompts to find circuits with. Optimal constants are fitted on them: with few,
    circuits cost much more on held-out prompts."""


@dataclass(frozen=True)
class FrontierConfig(MaskOptions, FitOptions):
    """Which circuits are compared, and how many of them."""

    methods: tuple[str, ...] = ("ugs", "acdc", "eap-ig")
    """Methods that find circuits: ugs, hcgs, edge-pruning, acdc, eap, eap-ig."""

    ablations: tuple[str, ...] = ("oa", "cf", "zero")
    """What ablated edges carry: the constant with which the circuit costs least (oa), the source's
    output on the corrupted prompt (cf), zero, its mean over clean prompts (mean) or over corrupted
    ones (cf_mean)."""

    sizes: tuple[int, ...] = ()
    """Numbers of edges at which rankings are cut; by default --points of them, from 5 to three
    quarters of all edges, in equal ratios."""

    points: int = 8
    """Number of such sizes, and of thresholds of acdc."""

    thresholds: tuple[float, ...] = ()
    """Thresholds of acdc, as shares of I; by default --points of them, from 0.001 to 0.1, in equal
    ratios. Larger ones follow while the smallest circuit costs at most a fifth of I."""

    penalties: tuple[float, ...] = (3e-4, 3e-3, 1e-2, 3e-2, 1e-1)
    """Prices of an edge in nats, for ugs and hcgs: a search for each."""

    random_circuits: int = 3
    """Random circuits of each size, connected and matched by layer."""

    restorations: int = 50
    """Draws in which every excluded edge is restored with probability 1/2."""

    ceiling_prompts: int = 1000
    """Prompts on which I, the cost of knowing nothing, is measured; too few make it too small."""

    grouped: bool = False
    """Of models with grouped queries: the keys of the heads that share them are one destination,
    and the values; by default every head has its own."""

    resamples: int = 2000
    """Bootstrap resamples of the held-out prompts."""

    seed: int = 0
    """Seed of the prompts, the null task, random circuits, restorations and the bootstrap."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: an unknown method or ablation, none, one twice, or too small a number.
        """
        for kind, values, known in (
            ("method", self.methods, METHODS),
            ("ablation", self.ablations, tuple(ABLATIONS)),
        ):
            for value in values:
                if value not in known:
                    raise UserError(suggest(kind, value, known))
            if not values:
                raise UserError(f"name at least one {kind}: {', '.join(known)}")
            if len(set(values)) < len(values):
                raise UserError(f"every {kind} is named once, not {','.join(values)}")
        if min(self.sizes, default=1) < 1:
            raise UserError(f"sizes are numbers of edges, at least 1, not {min(self.sizes)}")
        self._check_prices()
        least = {
            "points": 2,
            "random_circuits": 1,
            "restorations": 0,
            "ceiling_prompts": 2,
            "resamples": 1,
            "seed": 0,
        }
        check_at_least(self, least)
        self._check_fit()
        self._check_search()

    def _check_prices(self) -> None:
        for price in self.penalties:
            if not (price >= 0 and math.isfinite(price)):
                raise UserError(f"penalties are prices in nats, at least 0, not {price}")
        for share in self.thresholds:
            if not (share > 0 and math.isfinite(share)):
                raise UserError(f"thresholds are shares of I, above 0, not {share}")

    def recorded(self) -> dict[str, Any]:
        """Return what decides the figures, besides the model and the prompts."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not set(self.methods) & set(MASKED):
            for name in ("penalties", *(field.name for field in dataclasses.fields(MaskOptions))):
                del settings[name]
        return settings

    def shares_of_ceiling(self) -> list[float]:
        """Return the thresholds of acdc as shares of I, in ascending order."""
        if self.thresholds:
            return sorted(set(self.thresholds))
        low, high = THRESHOLDS
        ratio = (high / low) ** (1 / (self.points - 1))
        return [low * ratio**step for step in range(self.points)]

    def cuts(self, n_edges: int) -> list[int]:
        """Return the sizes at which rankings of so many edges are cut, in ascending order."""
        if self.sizes:
            return sorted({min(size, n_edges) for size in self.sizes})
        low, high = min(5, max(1, n_edges // 4)), max(1, 3 * n_edges // 4)
        ratio = (high / low) ** (1 / (self.points - 1))
        return sorted({round(low * ratio**step) for step in range(self.points)})
