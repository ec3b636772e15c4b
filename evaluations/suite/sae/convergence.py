"""Training curves of an autoencoder and a verdict on its convergence.

The verdict has two parts: the decrease of the mean total loss from the second-to-last tenth of the
steps to the last (per cent), and whether the explained variance on held-out text is at least 0.5.
Below that, results are marked 'not converged'. A learning rate that decays to zero flattens any
curve: a small decrease does not prove convergence, a large one shows that it is not reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluations.core.health import NOT_CONVERGED
from evaluations.suite.sae.metrics import LEAST_EXPLAINED

POINTS = 20
"""Number of times per training that the CE loss score is estimated."""

BINS = 100
"""Maximum number of points of a curve in a record."""


@dataclass
class Curve:
    """Training curves.

    Attributes:
        losses: total loss, reconstruction loss (in scaled units) and L0 of each step so far.
        probes: (step, CE loss score on a small held-out text), None where undefined.
    """

    losses: Float[Tensor, "steps 3"]
    probes: list[list[float | None]] = field(default_factory=list)

    @classmethod
    def empty(cls, steps: int, device: torch.device) -> Curve:
        """Return the curves of a training that has not started."""
        return cls(torch.zeros(steps, 3, device=device))

    def add(self, step: int, total: Tensor, mse: Tensor, l0: Tensor) -> None:
        """Add the losses and L0 of a step."""
        for place, value in enumerate((total, mse, l0)):
            self.losses[step, place] = value

    def probe(self, step: int, score: float | None) -> None:
        """Add a CE loss score."""
        self.probes.append([step + 1, score])

    def summary(self, step: int) -> str:
        """Describe a step for the progress bar."""
        score = self.probes[-1][1] if self.probes else None
        ce = "" if score is None else f", CE score {score:.3f}"
        return f"loss {self.losses[step, 0]:.3g}, L0 {self.losses[step, 2]:.1f}{ce}"

    def fall(self) -> float | None:
        """Return the decrease of the loss in the last tenth of steps, in % of the tenth before."""
        tenth = len(self.losses) // 10
        if tenth < 1:
            return None
        total = self.losses[:, 0].double()
        before, last = total[-2 * tenth : -tenth].mean(), total[-tenth:].mean()
        return float(100 * (before - last) / before) if before else 0.0

    def last_l0(self) -> float:
        """Return the mean L0 over the last tenth of the steps."""
        return float(self.losses[-max(1, len(self.losses) // 10) :, 2].double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Return the curves as means over at most 100 intervals of steps."""
        pieces = [piece for piece in self.losses.double().tensor_split(BINS) if len(piece)]
        means = torch.stack([piece.mean(0) for piece in pieces]).cpu()
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
        return {
            "loss_fall": self.fall(),
            "last_l0": self.last_l0(),
            "curve": {
                "step": ends.tolist(),
                "loss": means[:, 0].tolist(),
                "mse": means[:, 1].tolist(),
                "l0": means[:, 2].tolist(),
                "ce_score": self.probes,
            },
        }


def verdict(fall: float | None, explained: float | None) -> str:
    """Describe the convergence in one line."""
    parts = []
    if fall is None:
        parts.append("too few steps to tell whether the loss is still falling")
    elif fall > 0:
        parts.append(f"total loss still falling by {fall:.2g} % per 10 % of training")
    else:
        parts.append("total loss no longer falling")
    if explained is None or explained < LEAST_EXPLAINED:
        variance = "unknown" if explained is None else f"{explained:.2f}"
        parts.append(f"{NOT_CONVERGED}: explained variance {variance}, below {LEAST_EXPLAINED}")
    return "; ".join(parts)
