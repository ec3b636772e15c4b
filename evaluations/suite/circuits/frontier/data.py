"""The prompts of frontiers, the null task's beside them, and the ceiling I."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformer_lens import HookedTransformer

from evaluations.core.inputs import default_task, task_prompts
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request
from evaluations.suite.circuits.frontier.config import FrontierConfig
from evaluations.tasks.null import NoNullTaskError, null_prompts
from evaluations.tasks.pairs import LOGITS, TaskPrompts
from evaluations.tasks.registry import make_task

LEAST = 5
"""Fewest prompts that circuits are found on, or measured on."""
OTHER_SEED = 1_000_003
"""Added to the seed for the prompts of the ceiling."""


@dataclass(frozen=True)
class FrontierData:
    """Prompts to find circuits on, with held-out ones, and a sample for the ceiling alone."""

    prompts: TaskPrompts
    sample: tuple[TaskPrompts, ...]

    @classmethod
    def of(cls, prompts: TaskPrompts) -> FrontierData:
        """Return prompts that are all there is: they are the sample for the ceiling, too."""
        held = () if prompts.held_out is None else (prompts.held_out,)
        return cls(prompts, (prompts, *held))

    @cached_property
    def content(self) -> str:
        """A hash of all tokens."""
        parts = [one.content for one in (self.prompts, *self.sample)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the facts that a record states."""
        n = sum(one.n for one in self.sample)
        return {**self.prompts.describe(), "content": self.content, "n_ceiling": n}

    def null(self, seed: int) -> FrontierData:
        """Return the null task of the prompts, of the held-out ones, and of the sample.

        Raises:
            NoNullTaskError: there is none, or too few prompts of it.
        """
        held = self.prompts.held_out
        prompts = null_prompts(self.prompts, seed)
        if held is not None:
            prompts = apart(dataclasses.replace(prompts, held_out=null_prompts(held, seed)))
        sizes = (prompts.n, prompts.held_out.n if prompts.held_out else 0)
        if min(sizes) < LEAST:
            raise NoNullTaskError(
                self.prompts.name,
                f"{sizes[0]} and {sizes[1]} held-out null prompts, fewer than {LEAST} of each",
            )
        return FrontierData(prompts, tuple(null_prompts(one, seed) for one in self.sample))


def apart(prompts: TaskPrompts) -> TaskPrompts:
    """Return the prompts with those of the held-out ones whose text is not among them."""
    if prompts.held_out is None:
        return prompts
    known = {tuple(row) for batch in prompts.batches for row in batch.clean.tolist()}
    rows = [row for batch in prompts.held_out.batches for row in batch.clean.tolist()]
    kept = [number for number, row in enumerate(rows) if tuple(row) not in known]
    return dataclasses.replace(prompts, held_out=prompts.held_out.subset(kept))


def frontier_data(request: Request, loaded: LoadedModel, config: FrontierConfig) -> FrontierData:
    """Return a task's prompts in a model's own tokens.

    Raises:
        UserError: no such task, or none of its prompts can be used.
    """
    prompts = task_prompts(request, loaded, config.seed)
    task = request.task.task or default_task(loaded)
    if isinstance(task, TaskPrompts):
        return FrontierData.of(prompts)
    sample = make_task(
        task,
        loaded.tokenizer,
        config.ceiling_prompts,
        config.seed + OTHER_SEED,
        not request.task.no_bos,
    )
    return FrontierData(prompts, (sample,))


def ceiling(model: HookedTransformer, sample: Sequence[TaskPrompts]) -> float:
    """Return I = mean over prompts of KL(p || mean of p), the cost of knowing nothing, in nats.

    p is the model's prediction at the last position. I = H(mean p) - mean H(p) is at most the
    logarithm of the number of prompts, and too small with few of them (arXiv 2409.09951 has no such
    ceiling; a circuit whose output does not depend on the prompt costs at least I). Prompts on
    which the logits are not finite are left out.
    """
    total = torch.zeros(model.cfg.d_vocab_out, dtype=torch.float64)
    entropy, n = 0.0, 0
    with torch.no_grad():
        for tokens in (batch.clean for prompts in sample for batch in prompts.batches):
            rows = max(1, LOGITS // (tokens.shape[1] * model.cfg.d_vocab_out))
            for part in tokens.split(rows):
                logits = model(part.to(model.W_E.device), return_type="logits")[:, -1].cpu()
                logs = logits[logits.isfinite().all(-1)].double().log_softmax(-1)
                total += logs.exp().sum(0)
                entropy -= float((logs.exp() * logs).sum())
                n += len(logs)
    if not n:
        return 0.0
    mean = total / n
    return float(-torch.special.xlogy(mean, mean).sum()) - entropy / n
