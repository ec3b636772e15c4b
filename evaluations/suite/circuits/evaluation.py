"""acdc: the circuit of a task, and everything it takes to believe its size.

A circuit is found by ACDC (``acdc.py``), EAP or EAP-IG (``attribution.py``) on the edge-factorised
graph (``graph.py``); edges off every path are not part of it. Beside it, always: how well the model
does the task at all, the KL of the fully corrupted model, the circuit's own KL and faithfulness on
the prompts it was found on and on held-out ones, the method's CPR and CMD on held-out prompts
(``faithfulness.py``), random circuits, several draws of the null task, the spread over prompts and
visiting orders (``controls.py``), and how near to the threshold the nearest edge was.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.runner import Evaluation, Result
from evaluations.core.versions import VERSIONS
from evaluations.suite.circuits import metrics as told
from evaluations.suite.circuits.case import Case, finite_case, held_out_case
from evaluations.suite.circuits.controls import (
    Spread,
    bootstrap_spread,
    order_spread,
    random_circuits,
)
from evaluations.suite.circuits.faithfulness import Area, Point, curve, faithfulness, tau_ranking
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.methods.acdc.search import check_tau
from evaluations.suite.circuits.methods.eap import (
    STEPS,
    Points,
    ScoreBy,
    Selection,
    interpolation,
    ranking,
)
from evaluations.suite.circuits.methods.find import (
    DEMO_EDGES,
    Engine,
    Find,
    Found,
    Method,
    by_acdc,
    by_attribution,
    check_method,
    steps_of,
)
from evaluations.suite.circuits.patched import PRECISE, Ablation
from evaluations.tasks.pairs import TaskPrompts, competence
from sat_interp._util import progress
from sat_interp._util.errors import UserError, suggest

log = logging.getLogger(__name__)

TAU = 0.03
"""The paper's."""
SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds by which ACDC ranks edges where only one is asked for."""
RESAMPLES_OF_PROMPTS = 2000
SMALL_SPREAD = told.LEAST_DRAWS


@dataclass(frozen=True)
class CircuitConfig:
    """What decides a circuit and its controls, besides the model and the prompts."""

    seed: int = 0
    """Of random circuits, the null task, bootstrap samples, orders."""

    method: Method = "acdc"

    engine: Engine = "fast"
    """Of ACDC."""

    taus: tuple[float, ...] = (TAU,)
    """ACDC's thresholds in nats: a lower one keeps more edges. The circuit in question is that of
    0.03 where it is among them, else that of the first."""

    edges: int | None = None
    """How many edges EAP and EAP-IG keep; by default 5 % of all."""

    score_by: ScoreBy = "logit-difference"
    """What EAP and EAP-IG attribute."""

    selection: Selection = "greedy"
    """How EAP and EAP-IG choose edges by score."""

    ablation: Ablation = "resample"
    """What replaces an edge."""

    random_circuits: int = 20

    null_draws: int = 5
    """How many times the null task's prompts are drawn and its circuit is found."""

    bootstrap: int | None = None
    """Bootstrap samples of the prompts, and random orders, the circuit is found again with; by
    default 5 on graphs of up to 2,000 edges, else none: each costs as much as the circuit. With
    fewer than 5 there is no standard deviation."""

    steps: int = STEPS
    """Interpolation points of EAP-IG."""

    points: Points = "paper"
    """Where they lie: as in the equation of Hanna et al. 2024, or as in their released code."""

    sweep: bool = True
    """Whether ACDC runs at further thresholds, without which its CPR and CMD do not exist."""

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("method", self.method, Method), ("engine", self.engine, Engine),
            ("score", self.score_by, ScoreBy), ("selection", self.selection, Selection),
            ("ablation", self.ablation, Ablation), ("points", self.points, Points),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise UserError(suggest(kind, value, get_args(choices)))
        if not self.taus:
            raise UserError("there is no tau: give one or several, such as 0.03")
        for tau in self.taus:
            check_tau(tau)
        if self.edges is not None and self.edges < 0:
            raise UserError(f"a circuit has no {self.edges} edges")
        if min(self.random_circuits, self.bootstrap or 0, self.null_draws) < 0:
            raise UserError("random_circuits, null_draws and bootstrap cannot be negative")
        check_method(
            self.method, self.engine, self.ablation, self.score_by, self.steps, self.points
        )

    @property
    def tau(self) -> float:
        """The threshold of the circuit in question."""
        return TAU if TAU in self.taus else self.taus[0]

    def swept(self) -> list[float]:
        """All thresholds ACDC runs at, smallest first."""
        if not self.sweep:
            return [self.tau]
        return sorted({*self.taus, *(SWEEP if len(self.taus) == 1 else ())})


def circuits(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Result:
    """The circuit of a task in a model, with all its controls.

    A model in less than float32 is copied to float32, in which KL steps are not rounding. Prompts
    on which the model's logits are not finite are left out, and counted.

    Args:
        prompts: what the circuit is found on; ``prompts.held_out`` what it is then measured on.

    Raises:
        UserError: an architecture that is not covered, or prompts that do not fit the model, or no
            prompt on which its logits are finite.
    """
    was_training = model.training
    model.eval()
    try:
        return _circuits(_precise(model), prompts, config)
    finally:
        model.train(was_training)


def _circuits(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Result:
    skill = competence(model, prompts)
    case, left_out = finite_case(model, prompts, config.ablation)
    _check_edges(case.graph, config)
    held = held_out_case(case, config.ablation)
    sweep, orders = _found(case, config)
    circuit = sweep[config.tau]
    curves = {
        name: curve(held, order) if held and order is not None else []
        for name, order in orders.items()
    }
    extra: dict[str, Any] = {
        **_described(case, held, config, sweep),
        "competence": skill,
        "marked": told.mark(skill),
        "curve": _plain_points(curves["cpr"]),
        "absolute_curve": _plain_points(curves["cmd"]),
        "resamplings": _resamplings(case, config),
        "prompts_not_finite": left_out,
        "precision": str(model.W_E.dtype).removeprefix("torch."),
    }
    numbers = (RESAMPLES_OF_PROMPTS, config.seed)
    metrics = [
        *told.task_metrics(skill, case, *numbers, left_out),
        *told.circuit_metrics(case, held, circuit, *numbers),
        *told.method_metrics(held, curves, *numbers, ranked=orders["cpr"] is not None),
    ]
    metrics += _controls(case, held, circuit, config, extra)
    return Result(metrics, extra)


def check(model: HookedTransformer, config: CircuitConfig) -> None:
    """Refuse a model whose graph cannot be drawn, or has fewer edges than are asked for.

    Raises:
        UserError: an architecture that the patched forward pass does not cover, or too few edges.
    """
    _check_edges(Graph.of(model), config)


EVALUATION = Evaluation("acdc", CircuitConfig, circuits, version=VERSIONS["acdc"], check=check)


def _check_edges(graph: Graph, config: CircuitConfig) -> None:
    if config.edges is not None and config.edges > graph.n_edges:
        raise UserError(f"this model's graph has {graph.n_edges:,} edges, not {config.edges:,}")


def _precise(model: HookedTransformer) -> HookedTransformer:
    """The model, or a copy in float32 of one in less."""
    if model.W_E.dtype in PRECISE:
        return model
    kind = str(model.W_E.dtype).removeprefix("torch.")
    log.warning("the model is in %s: its circuits are searched in float32", kind)
    copied = copy.deepcopy(model)
    copied.to(torch.float32, print_details=False)
    return copied


def _plain_points(points: list[Point]) -> list[dict[str, Any]]:
    """A curve as a record holds it."""
    return [
        {
            "share": one.share,
            "edges": one.edges,
            "edges_on_paths": one.edges_on_paths,
            "faithfulness": one.faithfulness,
            "kl": one.kl,
        }
        for one in points
    ]


def _finder(config: CircuitConfig, tau: float) -> Find:
    if config.method == "acdc":
        return lambda case: by_acdc(case, tau, config.engine)
    return lambda case: by_attribution(
        case, config.method, config.score_by, config.selection, config.edges, config.steps,
        config.points,
    )  # fmt: skip


def _found(
    case: Case, config: CircuitConfig
) -> tuple[dict[float, Found], dict[Area, Int[Tensor, "edge"] | None]]:
    """Circuits by tau, and the method's rankings of all edges: signed for CPR, absolute for CMD."""
    areas: dict[Area, bool] = {"cpr": True, "cmd": False}
    if config.method != "acdc":
        found = _finder(config, config.tau)(case)
        return {config.tau: found}, {
            name: ranking(case.graph, found.scores, config.selection, signed)
            for name, signed in areas.items()
        }
    taus = progress.bar(config.swept(), desc="tau", unit="circuit")
    sweep = {tau: _finder(config, tau)(case) for tau in taus}
    return sweep, {
        name: tau_ranking(sweep, signed) if len(sweep) > 1 else None
        for name, signed in areas.items()
    }


def _resamplings(case: Case, config: CircuitConfig) -> int:
    if config.bootstrap is not None:
        return config.bootstrap
    return SMALL_SPREAD if case.graph.n_edges <= DEMO_EDGES else 0


def _described(
    case: Case, held: Case | None, config: CircuitConfig, sweep: dict[float, Found]
) -> dict[str, Any]:
    """The circuits themselves: edges by name, and what each threshold gives."""
    graph, circuit, is_acdc = case.graph, sweep[config.tau], config.method == "acdc"
    rows = []
    for tau, found in sorted(sweep.items()):
        outcome = case.outcome(found.kept)
        value = faithfulness(case, outcome, RESAMPLES_OF_PROMPTS, config.seed)
        row: dict[str, Any] = {
            "tau": tau if is_acdc else None,
            "edges": found.n,
            "edges_chosen": int(found.all_chosen.sum()),
            "edges_tested": found.tested,
            "margin": _finite(found.margin),
            "kl": _finite(float(outcome.kl.mean())),
            "faithfulness": value,
        }
        if held:
            other = held.outcome(found.kept)
            row["held_out_kl"] = _finite(float(other.kl.mean()))
            row["held_out_faithfulness"] = faithfulness(
                held, other, RESAMPLES_OF_PROMPTS, config.seed
            )
        rows.append(row)
    kept_at_no_tau = [found.all_chosen for found in sweep.values()]
    return {
        "circuit": circuit_to_dict(graph, circuit.kept, circuit.scores),
        "off_paths": circuit_to_dict(graph, circuit.all_chosen & ~circuit.kept)["edges"],
        "tau": config.tau if is_acdc else None,
        "order": "from the output to the input; edges are listed as visited (Graph.order)",
        "sweep": rows,
        "edges_without_rank": int((~torch.stack(kept_at_no_tau).any(0)).sum()) if is_acdc else 0,
        "interpolation": None
        if is_acdc
        else interpolation(steps_of(config.method, config.steps), config.points),
    }


def _controls(
    case: Case, held: Case | None, circuit: Found, config: CircuitConfig, extra: dict[str, Any]
) -> list[Any]:
    """Random circuits, the null task, other prompts, other orders."""
    graph, find, seed = case.graph, _finder(config, config.tau), config.seed
    n, judge = extra["resamplings"], held or case
    drawn = random_circuits(graph, circuit.kept, config.random_circuits, seed)
    outcomes = [judge.outcome(mask) for mask in progress.bar(drawn, desc="random", unit="circuit")]
    found = told.random_metrics(
        judge, judge.outcome(circuit.kept), outcomes, config.random_circuits, held is not None
    )
    extra["random"] = {
        "kl": [float(outcome.kl.mean()) for outcome in outcomes],
        "faithfulness": [faithfulness(judge, outcome).value for outcome in outcomes],
    }
    nulls, sizes, reason = _nulls(case, find, config)
    found += told.null_metrics(circuit, nulls, reason, sized=config.method == "acdc")
    extra["null"] = [
        {**size, **circuit_to_dict(graph, null.kept)}
        for size, null in zip(sizes, nulls, strict=True)
    ]
    again = bootstrap_spread(case, circuit.kept, find, n, seed, config.ablation)
    orders, why = _orders(case, circuit, config, n)
    found += told.spread_metrics("bootstrap", again, circuit.n, "--bootstrap 5")
    found += told.spread_metrics("orders", orders, circuit.n, why)
    extra["bootstrap"], extra["orders"] = again, orders
    return found


def _nulls(
    case: Case, find: Find, config: CircuitConfig
) -> tuple[list[Found], list[dict[str, Any]], str]:
    """Circuits of the null task, what their prompts were; or why there is none."""
    if not config.null_draws:
        return [], [], "not asked for"
    nulls: list[Found] = []
    sizes: list[dict[str, Any]] = []
    for draw in progress.bar(range(config.null_draws), desc="null task", unit="draw"):
        try:
            prompts = case.prompts.null(config.seed + draw)
        except UserError as error:
            return [], [], str(error).removeprefix(f"{case.prompts.name}: ")
        nulls.append(find(Case.of(case.model, prompts, config.ablation)))
        sizes.append({"n_prompts": prompts.n, "left_out": prompts.left_out})
    return nulls, sizes, ""


def _orders(case: Case, circuit: Found, config: CircuitConfig, n: int) -> tuple[Spread, str]:
    """The spread over visiting orders; or why there is none."""
    if config.method != "acdc":
        return Spread(), "no order"
    if config.engine == "auto-circuit":
        return Spread(), "auto-circuit has an order of its own"

    def find(order: Tensor) -> Found:
        return by_acdc(case, config.tau, config.engine, order)

    return order_spread(circuit.kept, find, case.graph, n, config.seed), "--bootstrap 5"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
