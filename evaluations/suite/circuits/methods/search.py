"""Searches by gradients of random masks: one loop, whatever the distribution of the masks.

A step draws prompts of one length and several masks for each, removes from every mask the edges
that lie on no path in it, and follows the gradient of the mean loss over these rows plus the
distribution's price. With optimal ablation the constants are fitted alongside, by the gradient that
passes through edges whose mask is exactly 0 (Li and Janson 2024, arXiv 2409.09951, appendix F).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from evaluations.core.weights import tensor_bytes
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import Ablation, MaskOptions
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.masks import Distribution
from evaluations.suite.circuits.patched import PromptBatch
from evaluations.suite.circuits.rows import RowPass, RowPrompts, kl, live_edges
from evaluations.suite.circuits.shape import PARTS
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically

BETAS = (0.9, 0.995)
"""AdamW's averages: edges near 0 or 1 are seldom undecided, so that squares are kept long."""
NORM = 5.0
"""Most that the gradient of a family of edges may be long."""
CONSTANTS_RATE = 0.02
"""Of AdamW on the constants, which begin at the clean means. With the paper's rate, 400 steps end
before the constants have followed the masks."""
PAPER_CONSTANTS_RATE = 2e-3
SAVED_EVERY = 50
"""Steps after which an unfinished search is saved."""
PAPER_STEPS = {True: 6000, False: 3000}
"""Steps of the paper, under optimal ablation and others."""
PAPER_SLOWER = {"ugs": 5.0, "hcgs": 3.0}
"""What the paper divides the learning rate by where edges carry counterfactual outputs."""


@dataclass(frozen=True)
class Schedule:
    """How long a search is and what a step consists of."""

    steps: int = 400
    prompts: int = 8
    masks: int = 6
    seed: int = 0
    constants_rate: float = CONSTANTS_RATE

    @classmethod
    def of(cls, options: MaskOptions, ablation: Ablation, seed: int) -> Schedule:
        """Return the schedule that options ask for."""
        if options.paper_schedule:
            return cls(PAPER_STEPS[ablation == "oa"], 5, 12, seed, PAPER_CONSTANTS_RATE)
        return cls(options.search_steps, options.search_prompts, options.search_masks, seed)


def learning_rate(price: float, slower: float = 1.0) -> float:
    """Return the learning rate of theta: larger where edges are cheap."""
    rate = 0.15 if price <= 1e-4 else 0.10 if price <= 5e-4 else 0.05
    return rate / slower


@dataclass(frozen=True)
class Searched:
    """The end of a search.

    Attributes:
        theta: logits of the edges' masks, by which edges are ranked.
        constants: optimal constants fitted alongside, one set; None without.
        losses: mean loss of the rows of each step, in nats, without the price.
        steps: of the search, those of an earlier run that was resumed included.
    """

    theta: Float[Tensor, "edge"]
    constants: Float[Tensor, " size"] | None
    losses: list[float] = field(repr=False)
    steps: int


def search(
    case: Case, distribution: Distribution, schedule: Schedule, state: Path | None = None
) -> Searched:
    """Fit a distribution of masks to a case.

    Args:
        case: the prompts, with the replacements of edges. Constants are fitted alongside where it
            fits them to circuits (``oa``).
        distribution: with its start and price; changed in place.
        schedule: length and size of the search.
        state: a file that an interrupted search of the same case, start and schedule is resumed
            from; written every few steps and removed at the end.

    Raises:
        UserError: the loss is not finite.
    """
    loop = _Loop(case, distribution, schedule)
    start = loop.load(state) if state else 0
    name = type(distribution).__name__
    with progress.bar(total=schedule.steps, desc=name, unit="step", initial=start) as bar:
        for step in range(start, schedule.steps):
            loop.step(step)
            bar.update()
            if state and (step + 1) % SAVED_EVERY == 0:
                loop.save(state, step + 1)
    if state:
        state.unlink(missing_ok=True)
    return loop.result(schedule.steps)


class _Loop:
    """Parameters and optimisers of a search."""

    def __init__(self, case: Case, distribution: Distribution, schedule: Schedule) -> None:
        self.case, self.distribution, self.schedule = case, distribution, schedule
        self.graph = case.graph
        self.rows = case.refitter.rows if case.refitter else RowPass(case.model, case.graph)
        self.prompts = self.rows.prompts(case.buckets)
        self.sizes = torch.tensor([float(len(batch)) for _, batch in case.parts()])
        self.families = edge_families(case.graph)
        self.groups = distribution.parameters()
        groups = [dict(group) for group in self.groups]
        self.optimiser = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        self.constants = None
        self.fitter: torch.optim.Optimizer | None = None
        if case.refitter:
            self.constants = case.refitter.mean.clone().unsqueeze(0).requires_grad_()
            rate = schedule.constants_rate
            self.fitter = torch.optim.AdamW([self.constants], lr=rate, weight_decay=0.0)
        self.identity = identity_of(case, distribution, schedule)
        self.losses: list[float] = []

    def step(self, step: int) -> None:
        """Take one step.

        Raises:
            UserError: the loss is not finite.
        """
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + step)
        number, index = self._draw(generator)
        like = self.distribution.theta
        u = torch.rand(len(index), self.graph.n_edges, generator=generator, dtype=torch.float64)
        edge = torch.finfo(like.dtype).eps  # a draw of 0 or 1 has no logit
        masks = self.distribution.sample(u.to(like).clamp(edge, 1 - edge))
        masks = masks.to(self.case.model.W_E.device)
        masks = masks * live_edges(self.graph, masks.detach() > 0)
        loss = self._loss(number, index, masks).mean()
        if not math.isfinite(loss.item()):
            raise UserError(f"the search's loss is {loss.item()} at step {step + 1}: not finite")
        self.losses.append(loss.item())
        price = self.distribution.price(step / self.schedule.steps)
        for optimiser in self._optimisers():
            optimiser.zero_grad()
        (loss + price.to(loss)).backward()
        self._clip()
        share = (step + 1) / (self.distribution.warm_up * self.schedule.steps + 1e-9)
        for group, own in zip(self.optimiser.param_groups, self.groups, strict=True):
            group["lr"] = own["lr"] * min(1.0, share)
        for optimiser in self._optimisers():
            optimiser.step()
        self.distribution.stepped(self.optimiser)

    def _draw(self, generator: torch.Generator) -> tuple[int, Int[Tensor, "row 1"]]:
        """Prompts of one length, each as often as masks are drawn for it."""
        number = int(torch.multinomial(self.sizes, 1, generator=generator))
        n = int(self.sizes[number])
        wanted = min(self.schedule.prompts, n)
        chosen = torch.randperm(n, generator=generator)[:wanted]
        return number, chosen.repeat_interleave(self.schedule.masks)[:, None]

    def _loss(self, number: int, index: Tensor, masks: Tensor) -> Float[Tensor, "row 1"]:
        prompts, bucket = self.prompts[number], self.case.buckets[number]
        constants = None
        if self.constants is not None:
            assert self.case.refitter is not None
            constants = self.case.refitter.space.written(self.constants)
        return row_losses(
            prompts, bucket, index, self.rows.logits(prompts, index, masks, constants)
        )

    def _clip(self) -> None:
        """Shorten the gradient of each family of edges."""
        gradient = self.distribution.theta.grad
        if gradient is None:
            return
        for family in self.families:
            norm = gradient[family].norm()
            if norm > NORM:
                gradient[family] *= NORM / norm

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [self.optimiser, *([self.fitter] if self.fitter else [])]

    def result(self, steps: int) -> Searched:
        """Return the end of the search."""
        constants = None if self.constants is None else self.constants.detach()[0].clone()
        return Searched(self.distribution.theta.detach().clone(), constants, self.losses, steps)

    # Interrupted searches ----------------------------------------------------------------------

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a later step depends on, by name."""
        for number, optimiser in enumerate(self._optimisers()):
            for place, group in enumerate(optimiser.param_groups):
                for index, parameter in enumerate(group["params"]):
                    name = f"{number}.{place}.{index}"
                    yield name, parameter.data
                    for key, value in optimiser.state.get(parameter, {}).items():
                        yield f"{name}.{key}", value
        scale = getattr(self.distribution, "scale", None)
        if scale is not None:
            yield "scale", scale

    def save(self, path: Path, step: int) -> None:
        """Write the state of the search."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self._tensors()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        write_atomically(path, save(tensors, {"identity": self.identity, "step": str(step)}))

    def load(self, path: Path) -> int:
        """Take up the state of an interrupted search of the same kind; return its step."""
        if not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                note = file.metadata() or {}
            tensors = load_file(path)
        except (SafetensorError, OSError):
            return 0
        if note.get("identity") != self.identity:
            return 0
        for number, optimiser in enumerate(self._optimisers()):
            for place, group in enumerate(optimiser.param_groups):
                for index, parameter in enumerate(group["params"]):
                    name = f"{number}.{place}.{index}"
                    parameter.data.copy_(tensors[name])
                    optimiser.state[parameter] = {
                        key.removeprefix(f"{name}."): value
                        for key, value in tensors.items()
                        if key.startswith(f"{name}.")
                    }
        if "scale" in tensors:
            vars(self.distribution)["scale"] = tensors["scale"]
        self.losses = tensors["losses"].tolist()
        return int(note["step"])


def row_losses(
    prompts: RowPrompts,
    bucket: PromptBatch,
    index: Int[Tensor, "row prompt"],
    logits: Float[Tensor, "row prompt d_vocab"],
) -> Float[Tensor, "row prompt"]:
    """Return what rows cost by the case's objective, in nats.

    That is KL(whole model || row); or, where the chunk has answers, how far the row's logit
    difference is from the whole model's.
    """
    if bucket.answers is None:
        return kl(prompts, index, logits)
    answers = bucket.answers.to(logits.device)[index]
    right, wrong = logits.gather(-1, answers).unbind(-1)
    whole = bucket.logits[index].gather(-1, answers)
    return (right - wrong - whole[..., 0] + whole[..., 1]).abs()


def edge_families(graph: Graph) -> list[Int[Tensor, " edge"]]:
    """Return the four families of edges whose gradients are clipped apart.

    Edges from heads and from others, into heads and into others.
    """
    from_head = torch.tensor([node.head is not None for node in graph.sources])[graph.edge_source]
    into_head = torch.tensor([node.part in PARTS for node in graph.destinations])
    kind = 2 * from_head.long() + into_head[graph.edge_destination].long()
    families = [(kind == number).nonzero().flatten() for number in range(4)]
    return [family for family in families if len(family)]


def identity_of(case: Case, distribution: Distribution, schedule: Schedule) -> str:
    """Return a hash of everything that the search's steps depend on."""
    settings = {
        name: value for name, value in vars(distribution).items() if isinstance(value, float | bool)
    }
    price = getattr(getattr(distribution, "prices", None), "per_edge", None)
    text = f"{case.graph!r} {schedule!r} {type(distribution).__name__} {settings!r} {price!r}"
    digest = hashlib.sha256(text.encode())
    tensors: list[Any] = [distribution.theta.data]
    for bucket in case.buckets:
        tensors += [bucket.logits, bucket.replacement, bucket.clean]
        tensors += [] if bucket.answers is None else [bucket.answers]
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
