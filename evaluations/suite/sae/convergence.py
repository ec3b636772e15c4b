"""How the training of an autoencoder went, and whether it had come to rest.

Two things are said: by how much the mean total loss of the last tenth of the steps lies under that
of the tenth before (per cent), and whether the explained variance on held-out text is at least a
half. Below that the cells are marked 'not converged'. A learning rate that decays to zero flattens
any curve: a small fall is no proof, a large one is a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluations.core.health import NOT_CONVERGED
from evaluations.suite.sae.figures import LEAST_EXPLAINED

POINTS = 20
"""How often in a training the CE loss score is probed."""

BINS = 100
"""Points of the curves that a record keeps."""


@dataclass
class Curve:
    """What each step cost.

    Attributes:
        losses: total loss, its reconstruction part (in scaled units), and L0, of each step so far.
        probes: (step, CE loss score on a little held-out text), None where it could not be had.
    """

    losses: Float[Tensor, "steps 3"]
    probes: list[list[float | None]] = field(default_factory=list)

    @classmethod
    def empty(cls, steps: int, device: torch.device) -> Curve:
        return cls(torch.zeros(steps, 3, device=device))

    def add(self, step: int, total: Tensor, mse: Tensor, l0: Tensor) -> None:
        for place, value in enumerate((total, mse, l0)):
            self.losses[step, place] = value

    def probe(self, step: int, score: float | None) -> None:
        self.probes.append([step + 1, score])

    def told(self, step: int) -> str:
        """For the progress bar."""
        score = self.probes[-1][1] if self.probes else None
        ce = "" if score is None else f", CE score {score:.3f}"
        return f"loss {self.losses[step, 0]:.3g}, L0 {self.losses[step, 2]:.1f}{ce}"

    def fall(self) -> float | None:
        """Per cent by which the total loss fell from the last tenth but one to the last."""
        tenth = len(self.losses) // 10
        if tenth < 1:
            return None
        total = self.losses[:, 0].double()
        before, last = total[-2 * tenth : -tenth].mean(), total[-tenth:].mean()
        return float(100 * (before - last) / before) if before else 0.0

    def last_l0(self) -> float:
        """Mean L0 over the last tenth of the steps."""
        return float(self.losses[-max(1, len(self.losses) // 10) :, 2].double().mean())

    def to_dict(self) -> dict[str, Any]:
        """The curves, as means over at most 100 stretches of steps."""
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
    """One line for the record."""
    parts = []
    if fall is None:
        parts.append("too few steps to tell whether the loss still falls")
    elif fall > 0:
        parts.append(f"total loss still falling by {fall:.2g} % per 10 % of training")
    else:
        parts.append("total loss no longer falling")
    if explained is None or explained < LEAST_EXPLAINED:
        told = "unknown" if explained is None else f"{explained:.2f}"
        parts.append(f"{NOT_CONVERGED}: explained variance {told}, under {LEAST_EXPLAINED}")
    return "; ".join(parts)
