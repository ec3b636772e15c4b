"""Effects of all points of a traced model, in every resample of the held-out facts."""

from __future__ import annotations

import numpy as np
import torch

from evaluations.core.record import Direction, Metric
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.curves import SMALLEST, TOO_SMALL, Resamples
from evaluations.suite.trace.measure import TRUTH, Losses, Plan, Traced

Curve = tuple[str, str, int]
"""Kind, tokens and window."""


class Figures:
    """Effects of all points of a model, in every resample.

    Args:
        traced: what was measured.
        config: with the number of resamples and their seed.
    """

    def __init__(self, traced: Traced, config: TraceConfig) -> None:
        self.traced, self.config = traced, config
        self.n = len(traced.held_facts)
        self.resamples = Resamples(self.n, config.resamples, config.seed)
        self.n_layers = 1 + max(layer for *_, layer in traced.plan.at)
        self.curves: list[Curve] = sorted({cell[:3] for cell in traced.plan.at})
        self.known = torch.tensor(
            [f.fact.decides is not None and len(f.subject) == 2 for f in traced.held_facts]
        )
        self.effects = {
            method: self.resamples.effects(losses.p.numpy(), losses.corrupted.numpy())
            for method, losses in traced.held.items()
        }
        self.truth_effects = {
            method: self.resamples.effects(*self._of_known(losses))
            for method, losses in (traced.held.items() if self.known.any() else ())
        }

    def _of_known(self, losses: Losses) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the facts whose deciding token is known; nan of the others."""
        nan = torch.tensor(torch.nan, dtype=torch.float64)
        p = torch.where(self.known, losses.p, nan).numpy()
        return p, torch.where(self.known, losses.corrupted, nan).numpy()

    def rows(self, plan: Plan, curve: Curve) -> list[int]:
        """Return the numbers of a curve's problems, layer by layer."""
        return [plan.at[(*curve, layer)] for layer in range(self.n_layers)]

    def of(self, method: str, curve: Curve) -> np.ndarray:
        """Return the effects of a curve: layer, resample."""
        table = self.truth_effects if curve[1] in TRUTH else self.effects
        return table[method][self.rows(self.traced.plan, curve)]

    def fitted(self, method: str, curve: Curve) -> np.ndarray:
        """Return a curve's effects on the facts that constants were fitted on: layer."""
        losses = self.traced.fitted[method]
        below = float(losses.corrupted.mean())
        rows = self.rows(self.traced.plan, curve)
        if not below >= SMALLEST:
            return np.full(self.n_layers, np.nan)
        return 1 - losses.p[rows].mean(1).numpy() / below

    def metric(
        self,
        name: str,
        title: str,
        resampled: np.ndarray,
        description: str,
        direction: Direction | None = None,
        reason: str = TOO_SMALL,
        unit: str = "",
    ) -> Metric:
        """Return a metric from a figure's resamples; null with a reason where it is not defined."""
        found = self.resamples.value(resampled)
        if found.value is None:
            return Metric(
                name,
                title,
                None,
                unit,
                direction,
                n=self.n,
                n_failed=self.n,
                reasons={reason: self.n},
                description=description,
            )
        interval = None
        if found.low is not None and found.high is not None:
            interval = self.resamples.interval(found.low, found.high)
        return Metric(
            name,
            title,
            found.value,
            unit,
            direction,
            interval=interval,
            n=self.n,
            description=description,
        )
