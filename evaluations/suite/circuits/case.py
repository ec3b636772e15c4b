"""Cases: a model, its graph, and the cached activations of a task's prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.config import Ablation, FitOptions, ScoreBy
from evaluations.suite.circuits.forward import Kept
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import (
    Constants,
    Prepared,
    PromptBatch,
    circuit_logits,
    kl_divergence,
    prepare,
)
from evaluations.suite.circuits.refit import Budget, Refitter
from evaluations.tasks.pairs import PairBatch, TaskPrompts, check_fit
from sat_interp._util.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CircuitOutcome:
    """A circuit's KL and logit difference on each prompt, in order, in float64 on the CPU.

    Attributes:
        kl: KL(whole model || circuit) at the last position, in nats.
        difference: logit(right) - logit(wrong), in nats.
    """

    kl: Float[Tensor, "prompt"]
    difference: Float[Tensor, "prompt"]


DEFAULT = Budget()


def budget_of(options: FitOptions) -> Budget:
    """Return the budget of optimal constants that options ask for."""
    return Budget(options.starts, evaluations=options.evaluations)


@dataclass(frozen=True)
class Case:
    """A model, its graph, and prompts with the replacements of ablated edges.

    Attributes:
        ablation: what the replacements are.
        refitter: of optimal constants (``oa``), fitted to each circuit on the prompts that circuits
            are found on; else None.
        objective: what methods that measure circuits find them by: KL from the whole model, or the
            distance of the logit difference from the whole model's. Constants are fitted by KL.
    """

    model: HookedTransformer
    graph: Graph
    prompts: TaskPrompts
    buckets: Prepared
    ablation: Ablation | Constants = "resample"
    refitter: Refitter | None = None
    objective: ScoreBy = "kl"

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        prompts: TaskPrompts,
        ablation: Ablation | Constants = "resample",
        fitted: Case | None = None,
        graph: Graph | None = None,
        budget: Budget = DEFAULT,
        objective: ScoreBy = "kl",
    ) -> Case:
        """Return the case of prompts.

        Args:
            model: the model.
            prompts: the prompts.
            ablation: replacement of ablated edges (``patched.prepare``). With ``oa`` those in
                ``buckets`` are the optimal constants of the empty circuit, and :meth:`outcome`
                fits those of every circuit.
            fitted: the case whose prompts means are taken over and constants fitted on, by default
                this one.
            graph: the model's graph, by default with destinations for every head.
            budget: of optimal constants.
            objective: what circuits are found by.

        Raises:
            UserError: the model's architecture is not covered, the prompts do not fit it, or an
                unknown ablation.
        """
        check_fit(model, prompts)
        graph = graph or Graph.of(model)
        means = None if fitted is None else fitted.prompts.batches
        first = (fitted.prompts if fitted else prompts).first_ablated
        refitter, replacement = None, ablation
        if _is_optimal(ablation):
            refitter = fitted.refitter if fitted else None
            if refitter is None:
                clean = prepare(model, graph, prompts.batches, "mean", first=first)
                refitter = Refitter(model, graph, clean, budget)
            replacement = refitter.space.written(refitter.empty[None])[0]
        buckets = prepare(model, graph, prompts.batches, replacement, means, first)
        if objective != "kl":
            answers = [torch.stack([batch.right, batch.wrong], 1) for batch in prompts.batches]
            buckets = buckets.answered(answers)
        return cls(model, graph, prompts, buckets, ablation, refitter, objective)

    def of_prompts(self, prompts: TaskPrompts) -> Case:
        """Return the case of other prompts, on which means and constants are fitted anew."""
        budget = self.refitter.budget if self.refitter else DEFAULT
        own = self.ablation, None, self.graph, budget, self.objective
        return Case.of(self.model, prompts, *own)

    def outcome(self, kept: Kept) -> CircuitOutcome:
        """Return the outcome of the circuit of these edges, all others ablated."""
        constants = self.refitter.constants(kept) if self.refitter else None
        logits = []
        with torch.no_grad():
            for bucket, _ in self.parts():
                own = bucket if constants is None else bucket.with_constants(constants)
                logits += circuit_logits(self.model, self.graph, [own], kept)
        return self._outcome(logits)

    def fit(self, circuits: Sequence[Bool[Tensor, "edge"]]) -> None:
        """Fit optimal constants to circuits whose outcomes will be asked for, all together."""
        if self.refitter and circuits:
            self.refitter.fits(circuits)

    @cached_property
    def full(self) -> CircuitOutcome:
        """The outcome of the whole model; its KL is zero."""
        return self._outcome([bucket.logits for bucket, _ in self.parts()])

    @cached_property
    def empty(self) -> CircuitOutcome:
        """The outcome of the fully corrupted model, in which no edge is kept."""
        return self.outcome(torch.zeros(self.graph.n_edges, dtype=torch.bool))

    def parts(self) -> Iterator[tuple[PromptBatch, PairBatch]]:
        """Iterate over chunks of the prompts, with answers."""
        for (number, rows), bucket in zip(self.buckets.chunks, self.buckets, strict=True):
            batch = self.prompts.batches[number]
            yield bucket, batch[range(len(batch))[rows]]

    def _outcome(self, logits: list[Float[Tensor, "_ d_vocab"]]) -> CircuitOutcome:
        kls, differences = [], []
        for (bucket, batch), patched in zip(self.parts(), logits, strict=True):
            kls.append(kl_divergence(bucket.logits.double(), patched.double()).cpu())
            differences.append(logit_difference(patched.double(), batch).cpu())
        return CircuitOutcome(torch.cat(kls), torch.cat(differences))


def _is_optimal(ablation: Ablation | Constants) -> bool:
    return isinstance(ablation, str) and ablation == "oa"


def finite_case(
    model: HookedTransformer,
    prompts: TaskPrompts,
    ablation: Ablation | Constants,
    fitted: Case | None = None,
    graph: Graph | None = None,
    budget: Budget = DEFAULT,
    objective: ScoreBy = "kl",
) -> tuple[Case, int]:
    """Return the case of the prompts on which all activations are finite (see ``Case.of``).

    Returns:
        The case, and the number of prompts left out.

    Raises:
        UserError: as ``Case.of``; or the activations are finite on no prompt.
    """
    fits_here = _is_optimal(ablation) and fitted is None
    own = fitted, graph, budget, objective
    case = Case.of(model, prompts, "mean" if fits_here else ablation, *own)
    finite = torch.cat([_finite_rows(bucket) for bucket in case.buckets])
    n_failed = int((~finite).sum())
    if n_failed == len(finite):
        raise UserError(f"{prompts.name}: the model's activations are not finite on any prompt")
    if not n_failed and not fits_here:
        return case, 0
    if n_failed:
        log.warning("%d of %d prompts left out: not finite", n_failed, len(finite))
        prompts = prompts.subset(finite.nonzero().flatten().tolist())
    return Case.of(model, prompts, ablation, *own), n_failed


def _finite_rows(bucket: PromptBatch) -> Bool[Tensor, "batch"]:
    """Return whether logits, clean outputs and replacements of each prompt are finite."""
    finite = bucket.logits.isfinite().all(-1)
    for outputs in (bucket.clean, bucket.replacement):
        finite = finite & outputs.isfinite().flatten(2).all(-1).all(0)
    return finite.cpu()


def held_out_case(case: Case, ablation: Ablation | Constants) -> Case | None:
    """Return the case of the held-out prompts, with edges replaced as in the case itself.

    Means and constants are those of the discovery prompts.

    Returns:
        The case; None if no prompt is held out, or activations are finite on none of them.
    """
    prompts = case.prompts.held_out
    if prompts is None or not prompts.n:
        return None
    try:
        own = case, case.graph, DEFAULT, case.objective
        return finite_case(case.model, prompts, ablation, *own)[0]
    except UserError as error:
        log.warning("held-out prompts cannot be used: %s", error)
        return None


def logit_difference(
    logits: Float[Tensor, "batch d_vocab"], batch: PairBatch
) -> Float[Tensor, "batch"]:
    """Return logit(right) - logit(wrong) of each prompt."""
    rows = torch.arange(len(batch), device=logits.device)
    right, wrong = batch.right.to(logits.device), batch.wrong.to(logits.device)
    return logits[rows, right] - logits[rows, wrong]
