"""Effects of all points of a traced model, in every resample of the held-out facts."""

from __future__ import annotations

import numpy as np
import torch

from evaluations.core.record import Direction, Metric
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.curves import SMALLEST, TOO_SMALL, Resamples
from evaluations.suite.trace.measure import TRUTH, Losses, Plan, Traced
from evaluations.suite.trace.run import has_known_decider

Curve = tuple[str, str, int]
"""Kind, tokens and window."""
NO_PARTNER = "no unrelated subject"


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
        self.known = torch.tensor([has_known_decider(fact) for fact in traced.held_facts])
        self.effects = {method: self.effects_of(losses) for method, losses in traced.held.items()}
        self.truth_effects = {
            method: self.effects_of(losses.of(self.known))
            for method, losses in (traced.held.items() if self.known.any() else ())
        }

    def effects_of(self, losses: Losses) -> np.ndarray:
        """Return the effects of problems: problem, resample."""
        return self.resamples.effects(losses.p.numpy(), losses.corrupted.numpy())

    def held(self, method: str, curve: Curve) -> Losses:
        """Return a method's losses on the held-out facts that a curve is about."""
        losses = self.traced.held[method]
        return losses.of(self.known) if curve[1] in TRUTH else losses

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
        if curve[1] in TRUTH:
            losses = losses.of(self.traced.fit_known)
        below = float(losses.corrupted.nanmean())
        rows = self.rows(self.traced.plan, curve)
        if not below >= SMALLEST:
            return np.full(self.n_layers, np.nan)
        return 1 - losses.p[rows].nanmean(1).numpy() / below

    def metric(
        self,
        name: str,
        title: str,
        resampled: np.ndarray,
        description: str,
        direction: Direction | None = None,
        reason: str = TOO_SMALL,
        method: str | None = None,
        tokens: str = "",
    ) -> Metric:
        """Return a metric from a figure's resamples; null with a reason where it is not defined.

        Args:
            method: the one whose losses it is made of; facts that it could not corrupt are counted.
            tokens: where it is measured; at deciding tokens it is about the facts that have them.
        """
        found = self.resamples.value(resampled)
        of, failed = self.n_facts(method, tokens)
        reasons = {NO_PARTNER: failed} if failed else {}
        if found.value is None:
            reasons, failed = reasons if failed == of else {reason: of}, of
        interval = None
        if found.low is not None and found.high is not None:
            interval = self.resamples.interval(found.low, found.high)
        return Metric(
            name,
            title,
            found.value,
            direction=direction,
            interval=interval,
            n=of if found.value is None else of - failed,
            n_failed=failed,
            reasons=reasons,
            description=description,
        )

    def n_facts(self, method: str | None, tokens: str = "") -> tuple[int, int]:
        """Return how many facts a figure is about, and how many a method cannot corrupt."""
        about = self.known if tokens in TRUTH else torch.ones_like(self.known)
        if method is None:
            return int(about.sum()), 0
        return int(about.sum()), int((about & self.traced.held[method].corrupted.isnan()).sum())
