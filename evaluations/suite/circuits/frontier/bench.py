"""Circuits on fit and held-out prompts: what each costs, measured once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.case import (
    Case,
    CircuitOutcome,
    budget_of,
    finite_case,
    held_out_case,
)
from evaluations.suite.circuits.config import Ablation
from evaluations.suite.circuits.forward import Kept
from evaluations.suite.circuits.frontier.config import FrontierConfig
from evaluations.suite.circuits.frontier.data import LEAST, apart
from evaluations.suite.circuits.frontier.store import Store, case_key, circuit_name
from evaluations.suite.circuits.graph import Graph
from evaluations.tasks.pairs import TaskPrompts
from sat_interp._util import progress
from sat_interp._util.errors import UserError

TOGETHER = 8
"""Circuits that are measured before they are kept in the cache."""
MEASURED = "circuits"


@dataclass(frozen=True)
class Measured:
    """A circuit's cost.

    Attributes:
        fit: mean KL(whole model || circuit) on the prompts it was found on, in nats; None if it is
            not finite.
        kl: that KL on each held-out prompt.
        difference: logit(right) - logit(wrong) on each held-out prompt, in nats.
        converged: whether its optimal constants are at a minimum; None of other ablations.
    """

    fit: float | None
    kl: list[float]
    difference: list[float]
    converged: bool | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the circuit can be compared with others."""
        return self.fit is not None and all(map(math.isfinite, (*self.kl, *self.difference)))


class Bench:
    """One ablation on one task: cases of fit and held-out prompts that share none.

    Attributes:
        case: the prompts that circuits are found and chosen on.
        held: those that they are measured on.
        left_out: prompts on which the model's activations are not finite.
    """

    def __init__(
        self,
        model: HookedTransformer,
        prompts: TaskPrompts,
        ablation: Ablation,
        graph: Graph,
        config: FrontierConfig,
    ) -> None:
        """Run the prompts; under ``oa`` fit the constants of the empty circuit.

        Raises:
            UserError: too few prompts, or activations that are not finite on any of them.
        """
        prompts = apart(prompts)
        budget = budget_of(config)
        self.case, failed = finite_case(model, prompts, ablation, graph=graph, budget=budget)
        held = held_out_case(self.case, ablation)
        n_held = held.prompts.n if held else 0
        if held is None or min(self.case.prompts.n, n_held) < LEAST:
            raise UserError(
                f"{prompts.name}: {self.case.prompts.n} prompts to find circuits on and {n_held} "
                f"others to measure them on; it takes {LEAST} of each: raise --prompts and "
                "--held-out"
            )
        self.held = held
        asked = prompts.held_out.n if prompts.held_out else 0
        self.left_out = failed + asked - n_held
        self.store = Store(case_key([self.case, self.held], budget))
        self._known = _read(self.store)

    @property
    def empty(self) -> Measured:
        """The circuit without edges."""
        none = torch.zeros(self.case.graph.n_edges, dtype=torch.bool)
        return self.measure([none])[0]

    def measure(self, circuits: Sequence[Bool[Tensor, "edge"]]) -> list[Measured]:
        """Measure circuits, a few at a time; what the cache knows is read."""
        names = list(map(circuit_name, circuits))
        waiting = {
            name: kept
            for name, kept in zip(names, circuits, strict=True)
            if name not in self._known
        }
        with progress.bar(total=len(waiting), desc="circuits", unit="circuit") as bar:
            for start in range(0, len(waiting), TOGETHER):
                some = list(waiting)[start : start + TOGETHER]
                self._measure(some, [waiting[name] for name in some])
                bar.update(len(some))
        return [self._known[name] for name in names]

    def _measure(self, names: Sequence[str], circuits: Sequence[Bool[Tensor, "edge"]]) -> None:
        self.case.fit(circuits)
        outcomes = [[case.outcome(kept) for kept in circuits] for case in (self.case, self.held)]
        refitter = self.case.refitter
        fits: list[bool | None] = [None] * len(circuits)
        if refitter:
            fits = [one.converged for one in refitter.fits(circuits)]
        measured = map(_measured, *outcomes, fits)
        found = dict(zip(names, measured, strict=True))
        self._known.update(found)
        finite = {name: one for name, one in found.items() if one.is_finite}
        self.store.append(MEASURED, ({"name": name, **asdict(one)} for name, one in finite.items()))

    def restored(self, kept: Kept, draws: int, seed: int) -> Float[np.ndarray, " prompt"]:
        """Return the KL on each held-out prompt with excluded edges restored at random.

        Every excluded edge is restored with probability 1/2, and the mean is taken over the draws.
        Constants stay those of the circuit. A mean above the circuit's own KL says that the circuit
        lives on harms that cancel out.
        """
        name = f"restored-{draws}-{seed}-{circuit_name(kept)}"
        return np.array(self.store.kept(name, lambda: self._restored(kept, draws, seed)))

    def _restored(self, kept: Kept, draws: int, seed: int) -> list[float]:
        generator, held = torch.Generator().manual_seed(seed), self.held
        if held.refitter:
            constants = held.refitter.constants(kept)
            held = Case.of(held.model, held.prompts, constants, self.case, held.graph)
        total = torch.zeros(held.prompts.n, dtype=torch.float64)
        for _ in progress.bar(range(draws), desc="restoration", unit="draw"):
            coins = torch.rand(kept.shape, generator=generator) < 0.5
            total += held.outcome(kept | coins).kl
        found: list[float] = (total / draws).tolist()
        return found


def _measured(fit: CircuitOutcome, held: CircuitOutcome, converged: bool | None) -> Measured:
    mean = float(fit.kl.mean())
    known = mean if math.isfinite(mean) else None
    return Measured(known, held.kl.tolist(), held.difference.tolist(), converged)


def _read(store: Store) -> dict[str, Measured]:
    """Return the circuits that the cache knows, by name."""
    names = {field.name for field in fields(Measured)}
    return {
        name: Measured(**entry)
        for name, entry in store.lines(MEASURED).items()
        if entry.keys() == names
    }
