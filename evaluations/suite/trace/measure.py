"""Tracing of one model: how far restoring some outputs brings a corrupted answer back.

Everything is measured as a *loss* of each fact, (p_clean - p)_+ averaged over draws of the noise;
``curves`` makes effects of them. Constants are fitted on the facts of 60 % of the subjects.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.corrupt import constants, draw_partners, noise, noise_size, swap
from evaluations.suite.trace.fit import Constants, fit
from evaluations.suite.trace.run import (
    NOTHING,
    Answers,
    Change,
    Problem,
    TraceRun,
    has_known_decider,
)
from evaluations.tasks.facts import FactPrompt

FIT_SHARE = 0.6
LEAST = 5
"""Fewest facts on either side of the split."""
LISTED = 10_000
"""Sets of layers that are listed, to draw from; of more, sets are drawn one by one."""
TRUTH = ("deciding", "other")
ROLES = ("first_subject", "middle_subject", "last_subject", "next", "further", "last")
"""Tokens of the heat map, in their order."""
HEAT_METHODS = ("gnt", "oat_shared")

Cell = tuple[str, str, int, int]
"""Kind, tokens, window and layer of a point of a curve."""


@dataclass(frozen=True)
class Plan:
    """The problems of all points: points that restore the same outputs share one.

    Attributes:
        problems: ``NOTHING`` first.
        at: number of each point's problem.
    """

    problems: list[Problem]
    at: Mapping[Cell, int]

    @classmethod
    def of(cls, points: Sequence[tuple[str, str, int]], n_layers: int) -> Plan:
        """Return the plan of all layers of some (kind, tokens, window)."""
        problems, at = [NOTHING], {}
        for kind, tokens, window in points:
            for layer in range(n_layers):
                problem = Problem(kind, tokens, window_layers(layer, window, n_layers))
                if problem not in problems:
                    problems.append(problem)
                at[kind, tokens, window, layer] = problems.index(problem)
        return cls(problems, at)


def window_layers(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """The layers of a window of that many, centred on a layer and cut at both ends."""
    half = window // 2
    return tuple(range(max(0, layer - half), min(n_layers - 1, layer + half) + 1))


@dataclass
class Losses:
    """(p_clean - p)_+ of problems on facts, averaged over draws; the same in centred logits.

    Not a number of facts that no draw could corrupt: those without an unrelated subject.
    """

    p: Float[Tensor, "problem fact"]
    logit: Float[Tensor, "problem fact"]

    @property
    def corrupted(self) -> Float[Tensor, " fact"]:
        """The loss with nothing restored."""
        return self.p[0]

    def of(self, facts: Bool[Tensor, " fact"]) -> Losses:
        """Return the losses of some facts; those of the others are not a number."""
        nan = torch.tensor(torch.nan, dtype=self.p.dtype)
        return Losses(torch.where(facts, self.p, nan), torch.where(facts, self.logit, nan))


@dataclass
class Traced:
    """What was measured of one model.

    Attributes:
        plan: points of the curves, those at deciding tokens among them.
        fit_known: which of the facts fitted on have a subject whose deciding token is known.
        fitted, held: losses by method on the facts of either side.
        knocked: losses of the clean run with the plan's outputs put to 0, on the held facts.
        heat_plan, heat: points of the heat map, and their losses on the held facts.
        random_plans, random: by window, random sets of layers, and their losses.
        span: by method, the loss with a span beside the subject corrupted; nan where there is none.
        kept: shares of the held facts whose answer stays when one token of the subject is another
            subject's: the deciding token, the other one.
        constants: the certificate of the optimal constants.
    """

    plan: Plan
    held_facts: Sequence[FactPrompt]
    fit_known: Bool[Tensor, " fitted"]
    p_clean: Float[Tensor, " fact"]
    fitted: dict[str, Losses] = field(default_factory=dict)
    held: dict[str, Losses] = field(default_factory=dict)
    knocked: Losses | None = None
    heat_plan: Plan | None = None
    heat: dict[str, Losses] = field(default_factory=dict)
    random_plans: dict[int, list[Problem]] = field(default_factory=dict)
    random: dict[int, dict[str, Losses]] = field(default_factory=dict)
    span: dict[str, Float[Tensor, " fact"]] = field(default_factory=dict)
    kept: dict[str, Bool[Tensor, " fact"]] = field(default_factory=dict)
    constants: Constants | None = None
    n_without_partner: int = 0

    @property
    def n_fit(self) -> int:
        """Facts that constants are fitted on."""
        return len(self.fit_known)


def split_by_subject(facts: Sequence[FactPrompt], seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the facts to fit on and of the others, which share no subject."""
    subjects = sorted({fact.fact.subject or repr(fact.tokens) for fact in facts})
    random.Random(f"split/{seed}").shuffle(subjects)
    fitted = set(subjects[: round(FIT_SHARE * len(subjects))])
    sides: tuple[list[int], list[int]] = ([], [])
    for number, fact in enumerate(facts):
        sides[(fact.fact.subject or repr(fact.tokens)) not in fitted].append(number)
    return sides


def draw_span(fact: FactPrompt, first: int, rng: random.Random) -> tuple[int, ...]:
    """As many neighbouring positions as the subject has, none of them its own, nor the last."""
    size, free = len(fact.subject), len(fact.tokens) - 1
    starts = [
        start
        for start in range(first, free - size + 1)
        if not set(range(start, start + size)) & set(fact.subject)
    ]
    if not starts:
        return ()
    start = rng.choice(starts)
    return tuple(range(start, start + size))


def draw_layers(n_layers: int, size: int, n_sets: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Return different sets of so many layers, or all of them where there are no more."""
    if math.comb(n_layers, size) <= LISTED:
        every = list(itertools.combinations(range(n_layers), size))
        return rng.sample(every, min(n_sets, len(every)))
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < min(n_sets, LISTED):
        chosen.setdefault(tuple(sorted(rng.sample(range(n_layers), size))))
    return list(chosen)


class Bench:
    """A model with the facts it knows, those to fit on and those held out.

    Args:
        answers: the tokens that are traced.
        first: the first position of a prompt's own.
    """

    def __init__(
        self,
        model: HookedTransformer,
        facts: Sequence[FactPrompt],
        answers: Sequence[int],
        first: int,
        config: TraceConfig,
    ) -> None:
        self.model, self.config = model, config
        rng = random.Random(f"span/{config.seed}")
        spans = [draw_span(fact, first, rng) for fact in facts]
        sides = split_by_subject(facts, config.seed)
        self.fit_run, self.held_run = (
            TraceRun(
                model,
                [facts[i] for i in side],
                [answers[i] for i in side],
                [spans[i] for i in side],
                config.memory * 2**20,
            )
            for side in sides
        )
        self.clean = {id(run): self._clean(run) for run in (self.fit_run, self.held_run)}
        self.sizes = {
            "gnt": noise_size(self.fit_run, by_dimension=False),
            "gnt_dims": noise_size(self.fit_run, by_dimension=True),
        }
        self.kinds = [kind for kind in config.kinds if kind == "attn" or not model.cfg.attn_only]

    def _clean(self, run: TraceRun) -> Answers:
        return run.answers([NOTHING])

    def measure(self) -> Traced:
        """Measure all methods and controls."""
        config, n_layers = self.config, self.model.cfg.n_layers
        held = self.held_run
        has_truth = any(bool(bucket.sets["deciding"].any()) for bucket in held.buckets)
        points = list(itertools.product(self.kinds, config.tokens, config.windows))
        if has_truth:
            points += itertools.product(self.kinds, TRUTH, sorted({1, *config.windows}))
        plan = Plan.of(points, n_layers)
        fit_known = torch.tensor([has_known_decider(fact) for fact in self.fit_run.facts])
        traced = Traced(plan, held.facts, fit_known, self.clean[id(held)].p[0])
        if {"oat", "oat_shared"} & set(config.methods):
            own = plan.problems if "oat" in config.methods else [NOTHING]
            p_clean = self.clean[id(self.fit_run)].p[0]
            traced.constants = fit(self.fit_run, own, p_clean, config.evaluations, config.polish)
        for method in config.methods:
            for run, losses in ((self.fit_run, traced.fitted), (held, traced.held)):
                losses[method] = self._losses(run, method, plan.problems, traced.constants)
        traced.knocked = self._knocked(plan)
        self._heat(traced)
        self._random_sets(traced)
        self._spans(traced)
        if has_truth:
            self._swaps(traced)
        return traced

    def _losses(
        self,
        run: TraceRun,
        method: str,
        problems: Sequence[Problem],
        fitted: Constants | None,
        where: str = "all_subject",
    ) -> Losses:
        """The losses of problems by one method, averaged over its draws."""
        found = [
            self._lost(run, run.answers(problems, change)).of(is_changed)
            for change, is_changed in self._changes(run, method, fitted, where)
        ]
        return Losses(
            torch.stack([one.p for one in found]).nanmean(0),
            torch.stack([one.logit for one in found]).nanmean(0),
        )

    def _lost(self, run: TraceRun, answers: Answers) -> Losses:
        clean = self.clean[id(run)]
        return Losses(
            (clean.p - answers.p).clamp(min=0), (clean.logit - answers.logit).clamp(min=0)
        )

    def _changes(
        self, run: TraceRun, method: str, fitted: Constants | None, where: str
    ) -> Iterator[tuple[Change, Bool[Tensor, " fact"]]]:
        """Each draw of a method, and the facts that it changes."""
        every = torch.ones(len(run), dtype=torch.bool)
        if method in ("oat", "oat_shared"):
            assert fitted is not None
            vectors = fitted.vectors if method == "oat" else fitted.vectors[:1]
            yield constants(vectors, where), every
            return
        for draw in range(self.config.draws):
            seed = 1000 * self.config.seed + draw
            if method == "swap":
                partners = draw_partners(run, seed)
                yield (
                    swap(run, partners, where),
                    torch.tensor([one is not None for one in partners]),
                )
            else:
                yield noise(run, self.sizes[method], seed, where), every

    def _knocked(self, plan: Plan) -> Losses:
        run = self.held_run
        return self._lost(run, run.answers(plan.problems, restored="zero"))

    def _heat(self, traced: Traced) -> None:
        """Each layer's output restored at each token, where all share one corruption."""
        points = [(kind, role, 1) for kind in self.kinds for role in ROLES]
        traced.heat_plan = Plan.of(points, self.model.cfg.n_layers)
        for method in HEAT_METHODS:
            if method in self.config.methods:
                traced.heat[method] = self._losses(
                    self.held_run, method, traced.heat_plan.problems, traced.constants
                )

    def _random_sets(self, traced: Traced) -> None:
        """Layers drawn at random in place of neighbours: as many as most windows have."""
        config, n_layers = self.config, self.model.cfg.n_layers
        rng = random.Random(f"layers/{config.seed}")
        for window in config.windows:
            sizes = {len(window_layers(at, window, n_layers)) for at in range(n_layers)}
            size = max(sizes - {n_layers}, default=1)
            if size == 1 or not config.random_sets:
                continue
            chosen = draw_layers(n_layers, size, config.random_sets, rng)
            problems = [
                NOTHING,
                *itertools.starmap(Problem, itertools.product(self.kinds, config.tokens, chosen)),
            ]
            traced.random_plans[window] = problems
            traced.random[window] = {
                method: self._losses(self.held_run, method, problems, traced.constants)
                for method in HEAT_METHODS
                if method in config.methods
            }

    def _spans(self, traced: Traced) -> None:
        """Corrupt as many tokens beside the subject, in place of it."""
        held, config = self.held_run, self.config
        has_span = torch.zeros(len(held), dtype=torch.bool)
        for bucket in held.buckets:
            has_span[bucket.numbers] = bucket.sets["span"].any(1).cpu()
        if not has_span.any() or not self._can_fit_span():
            return
        for method in ("gnt", "oat"):
            if method not in config.methods:
                continue
            fitted = None
            if method == "oat":
                p_clean = self.clean[id(self.fit_run)].p[0]
                fitted = fit(self.fit_run, [NOTHING], p_clean, config.evaluations, where="span")
            loss = self._losses(held, method, [NOTHING], fitted, "span").corrupted
            traced.span[method] = torch.where(has_span, loss, torch.nan)

    def _can_fit_span(self) -> bool:
        return any(bool(bucket.sets["span"].any()) for bucket in self.fit_run.buckets)

    def _swaps(self, traced: Traced) -> None:
        """Whether answers stay when one token of the subject is an unrelated subject's."""
        run = self.held_run
        partners = draw_partners(run, self.config.seed)
        traced.n_without_partner = sum(one is None for one in partners)
        known = torch.zeros(len(run), dtype=torch.bool)
        for bucket in run.buckets:
            known[bucket.numbers] = bucket.sets["deciding"].any(1).cpu()
        known &= torch.tensor([one is not None for one in partners])
        for where in TRUTH:
            top = run.answers([NOTHING], swap(run, partners, where)).is_top[0]
            traced.kept[where] = top[known]
