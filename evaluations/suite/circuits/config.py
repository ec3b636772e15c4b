"""The options of ``acdc``."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from sat_interp._util.errors import UserError, suggest
from sat_interp._util.settings import check_at_least

log = logging.getLogger(__name__)

Method = Literal["acdc", "eap", "eap-ig", "ugs", "hcgs", "edge-pruning"]
ATTRIBUTION: tuple[Method, ...] = ("eap", "eap-ig")
"""Methods that score edges by gradients of a circuit's cost."""
MASKED: tuple[Method, ...] = ("ugs", "hcgs", "edge-pruning")
"""Methods that search by gradients of random masks."""
Engine = Literal["fast", "auto-circuit"]
Ablation = Literal["resample", "zero", "mean", "cf_mean", "oa"]
RECORDED: Mapping[str, str] = {
    "zero": "zero_after_bos",
    "mean": "mean_after_bos",
    "cf_mean": "cf_mean_after_bos",
}
"""Names in records, where they differ from the option's: constants once replaced BOS, too."""
ScoreBy = Literal["logit-difference", "kl"]
Selection = Literal["greedy", "top", "consistent", "positive"]
Ranking = Literal["absolute", "signed"]
Points = Literal["paper", "released"]

TAU = 0.03
"""ACDC's threshold in Self-Ablating Transformers, in nats."""
SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds by which ACDC ranks edges if a single threshold is given."""
FIT = "by estimated curvature"
"""How optimal constants are fitted, in records of them; those without it were fitted without."""
STEPS = 5
"""Number of interpolation points of EAP-IG, as in its paper; EAP has one."""
LEAST_DRAWS = 5
"""Fewest counts for which a standard deviation is reported."""


@dataclass(frozen=True)
class FitOptions:
    """How optimal constants are fitted to circuits."""

    starts: int = 2
    """Number of starts of a circuit's optimal constants (--ablation oa): the clean means; the
    constants that it was searched with; zero; then random ones."""

    evaluations: int = 30
    """Most evaluations of a circuit's cost when its optimal constants are fitted."""

    def _check_fit(self) -> None:
        check_at_least(self, {"starts": 1, "evaluations": 1})


@dataclass(frozen=True)
class MaskOptions:
    """Settings of the searches by gradients of random masks."""

    search_steps: int = 400
    """Number of steps of ugs, hcgs and edge-pruning."""

    search_prompts: int = 8
    """Number of prompts of one step."""

    search_masks: int = 6
    """Number of masks drawn for each prompt of a step."""

    window: bool = False
    """Widen the window of ugs for edges with large gradients (dynamic window)."""

    exchanges: int = 6
    """Most exchanges of one or two edges for others in a circuit of a given number of edges. Each
    lowers its cost on prompts that circuits are found on. 0: the first edges by logit."""

    warm_start: bool = False
    """Start edge-pruning from the ranks of eap-ig by KL."""

    paper_schedule: bool = False
    """Steps, prompts, masks and learning rates of the paper of ugs, in place of those for small
    models: 6,000 steps under oa, else 3,000, of 5 prompts and 12 masks."""

    def _check_search(self) -> None:
        least = {"search_steps": 1, "search_prompts": 1, "search_masks": 1, "exchanges": 0}
        check_at_least(self, least)


@dataclass(frozen=True)
class CircuitConfig(MaskOptions, FitOptions):
    """Settings of circuit discovery and its controls."""

    tau: tuple[float, ...] = (TAU,)
    """Threshold of ACDC in nats: an edge whose removal raises KL by less is removed. Several are
    separated by commas; the controls are for 0.03 if it is among them, else for the first."""

    method: Method = "acdc"
    """Method that finds the circuit."""

    engine: Engine = "fast"
    """Engine of acdc. auto-circuit is an external package that takes prompts of one length only;
    the most common length is used."""

    ablation: Ablation = "resample"
    """Replacement of an ablated edge: its source's output on the corrupted prompt (resample), zero,
    its mean output over the clean prompts (mean) or the corrupted ones (cf_mean), or the constant
    with which the circuit costs least, fitted to each circuit (oa). Constants are the same at all
    positions but that of BOS, where prompts begin with it: there the source's own output stays."""

    grouped: bool = False
    """Of models with grouped queries: the keys of the heads that share them are one destination,
    and the values; by default every head has its own."""

    objective: ScoreBy = "kl"
    """What acdc, ugs, hcgs and edge-pruning go by: KL from the whole model, or the distance of the
    logit difference from the whole model's. Optimal constants are always fitted by KL."""

    penalty: float = 1e-3
    """Price of an edge in nats, for ugs and hcgs (lambda)."""

    edges: int | None = None
    """Number of edges that eap, eap-ig and edge-pruning choose, by default 5 % of all edges; and
    that ugs and hcgs choose, by default those whose mask is more likely on than off. The circuit
    is the chosen edges on a path from embedding to output. Those of a given number that ugs, hcgs
    and edge-pruning choose are improved by --exchanges."""

    score_by: ScoreBy = "logit-difference"
    """Metric that eap-ig attributes; eap supports logit-difference only."""

    selection: Selection = "greedy"
    """Selection of edges by eap and eap-ig: greedy (connected to the output), top by score,
    consistent (first the edges whose score has the same sign in 97.5 % of bootstrap samples of the
    prompts), or positive (a share of the edges by signed score, the rest by absolute score)."""

    ranking: Ranking = "absolute"
    """Scores that eap and eap-ig choose edges by. CPR is of the signed ranking, CMD of the absolute
    one, whatever this says."""

    positive_ratio: float = 0.5
    """Share of edges that the selection positive takes by signed score."""

    steps: int = STEPS
    """Number of interpolation points of eap-ig."""

    points: Points = "paper"
    """Interpolation points from corrupted (0) to clean prompt (1): 1/m ... 1, as in the equation of
    Hanna et al. 2024 (paper), or 0 ... (m - 1)/m, as in their code (released)."""

    random_circuits: int = 20
    """Number of random circuits for comparison, connected and matched by layer."""

    null_draws: int = 5
    """Number of draws of the null task: same template, as many tokens changed as in the task, none
    of them relevant to the answer."""

    bootstrap: int | None = None
    """Number of repetitions of the search with resampled prompts, and with other visiting orders;
    by default 5 for graphs of up to 2,000 edges, else 0. A standard deviation takes 5."""

    no_sweep: bool = False
    """Use this tau only: no ranking of edges, hence no CPR and CMD."""

    seed: int = 0
    """Seed of the prompts, of random circuits, null tasks, bootstrap samples and orders."""

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("method", self.method, Method),
            ("engine", self.engine, Engine),
            ("score", self.score_by, ScoreBy),
            ("selection", self.selection, Selection),
            ("ablation", self.ablation, Ablation),
            ("points", self.points, Points),
            ("objective", self.objective, ScoreBy),
            ("ranking", self.ranking, Ranking),
        ):
            if value not in get_args(choices):
                raise UserError(suggest(kind, value, get_args(choices)))
        if not self.tau:
            raise UserError("there is no tau: give one or several, such as 0.03")
        for tau in self.tau:
            check_tau(tau)
        check_at_least(
            self, {"edges": 0, "random_circuits": 0, "bootstrap": 0, "null_draws": 0, "seed": 0}
        )
        self._check_fit()
        self._check_search()
        if not (self.penalty >= 0 and math.isfinite(self.penalty)):
            raise UserError(f"penalty must be a number from 0 up, not {self.penalty}")
        if not 0 <= self.positive_ratio <= 1:
            raise UserError(f"positive-ratio must be from 0 to 1, not {self.positive_ratio}")
        if self.method in ATTRIBUTION:
            check_attribution(self.score_by, self.interpolation_steps, self.points)
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine != "auto-circuit":
            return
        plain = (self.method, self.ablation, self.objective) == ("acdc", "resample", "kl")
        if not plain or self.grouped:
            raise UserError(
                "auto-circuit is an engine of acdc by KL with resample ablation only, and not "
                "--grouped"
            )
        if not find_spec("auto_circuit"):
            raise UserError(
                "auto-circuit is not installed: run make auto-circuit, or use --engine fast"
            )

    @property
    def threshold(self) -> float:
        """The tau of the reported circuit and its controls."""
        return TAU if TAU in self.tau else self.tau[0]

    @property
    def interpolation_steps(self) -> int:
        """Number of interpolation points; EAP is EAP-IG with a single one."""
        return 1 if self.method == "eap" else self.steps

    def swept(self) -> list[float]:
        """Return the thresholds that ACDC runs at, in increasing order."""
        if self.no_sweep:
            return [self.threshold]
        return sorted({*self.tau, *(SWEEP if len(self.tau) == 1 else ())})

    def recorded(self) -> dict[str, Any]:
        """Return the settings under the names used in records.

        Records of constants that replaced BOS have other names, and a setting that came later is in
        a record only where it matters: no record is taken for another.
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["taus"], settings["sweep"] = settings.pop("tau"), not settings.pop("no_sweep")
        if not settings["grouped"]:
            del settings["grouped"]  # earlier records had no such option
        settings["ablation"] = RECORDED.get(self.ablation, self.ablation)
        for name in self._unused():
            del settings[name]
        if self.ablation == "oa":
            settings["fit"] = FIT
        return settings

    def _unused(self) -> set[str]:
        """Return settings that came later and have no effect here."""
        masks = {field.name for field in dataclasses.fields(MaskOptions)}
        unused = set() if self.method in MASKED else {*masks, "penalty"}
        if self.ablation != "oa":
            unused |= {"starts", "evaluations"}
        if self.method in ATTRIBUTION or self.objective == "kl":
            unused.add("objective")
        if self.method not in ATTRIBUTION or self.ranking == "absolute":
            unused.add("ranking")
        if self.method not in ATTRIBUTION or self.selection != "positive":
            unused.add("positive_ratio")
        return unused


def check_tau(tau: float) -> None:
    """Raise UserError unless tau is a positive number."""
    if not (tau > 0 and math.isfinite(tau)):
        raise UserError(f"tau is {tau}: it must be a positive number, such as 0.03 (nats of KL)")


def check_attribution(score_by: ScoreBy, steps: int, points: Points = "paper") -> None:
    """Raise UserError for attribution settings that are not defined.

    Raises:
        UserError: EAP by KL, no step, or a single step at the corrupted prompt.
    """
    if steps < 1:
        raise UserError(f"EAP-IG takes at least one step, not {steps}")
    if steps == 1 and points == "released":
        raise UserError(
            "one step of the released code's points is the corrupted prompt alone: take more steps"
        )
    if score_by == "kl" and steps == 1:
        raise UserError(
            "EAP by KL is zero for every edge, KL having no gradient at the clean prompt: "
            "use eap-ig, or the logit difference"
        )
