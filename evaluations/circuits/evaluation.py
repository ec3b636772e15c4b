"""acdc: the circuit of a task, and everything it takes to believe its size.

A circuit is found by ACDC (``acdc.py``), EAP or EAP-IG (``attribution.py``) on the edge-factorised
graph (``graph.py``). Beside it, always: how well the model does the task at all, the KL of the
fully corrupted model, the circuit's own KL and faithfulness, the method's CPR and CMD
(``faithfulness.py``), random circuits, the null task, the spread over prompts and visiting orders
(``controls.py``), and how near to the threshold the nearest edge was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.circuits import metrics as told
from evaluations.circuits.acdc import check_tau
from evaluations.circuits.attribution import ScoreBy, Selection, ranking
from evaluations.circuits.case import Case
from evaluations.circuits.controls import (
    Spread,
    bootstrap_spread,
    on_paths,
    order_spread,
    random_circuits,
)
from evaluations.circuits.faithfulness import curve, faithfulness, tau_ranking
from evaluations.circuits.find import (
    DEMO_EDGES,
    Engine,
    Find,
    Found,
    Method,
    by_acdc,
    by_attribution,
    check_method,
)
from evaluations.circuits.graph import Graph, circuit_to_dict
from evaluations.circuits.patched import Ablation
from evaluations.runner import Evaluation, Result
from evaluations.tasks.pairs import TaskPrompts, competence
from sat_interp import progress
from sat_interp.errors import UserError, suggest

TAU = 0.03
"""The paper's."""
SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds by which ACDC ranks edges where only one is asked for."""
RESAMPLES_OF_PROMPTS = 2000
SMALL_SPREAD = 5


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

    bootstrap: int | None = None
    """Bootstrap samples of the prompts, and random orders, the circuit is found again with; by
    default 5 on graphs of up to 2,000 edges, else none: each costs as much as the circuit."""

    sweep: bool = True
    """Whether ACDC runs at further thresholds, without which its CPR and CMD do not exist."""

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("method", self.method, Method), ("engine", self.engine, Engine),
            ("score", self.score_by, ScoreBy), ("selection", self.selection, Selection),
            ("ablation", self.ablation, Ablation),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise UserError(suggest(kind, value, get_args(choices)))
        if not self.taus:
            raise UserError("there is no tau: give one or several, such as 0.03")
        for tau in self.taus:
            check_tau(tau)
        if self.edges is not None and self.edges < 0:
            raise UserError(f"a circuit has no {self.edges} edges")
        if self.random_circuits < 0 or (self.bootstrap or 0) < 0:
            raise UserError("random_circuits and bootstrap cannot be negative")
        check_method(self.method, self.engine, self.ablation, self.score_by)

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

    Raises:
        UserError: an architecture that is not covered, or prompts that do not fit the model.
    """
    was_training = model.training
    model.eval()
    skill = competence(model, prompts)
    case = Case.of(model, prompts, config.ablation)
    _check_edges(case.graph, config)
    sweep, order = _found(case, config)
    circuit = sweep[config.tau]
    outcome = case.outcome(circuit.kept)
    points = [] if order is None else curve(case, order)
    n = _resamplings(case, config)
    extra: dict[str, Any] = {
        **_described(case, config, sweep),
        "competence": skill,
        "marked": told.mark(skill),
        "curve": points,
        "resamplings": n,
    }
    metrics = [
        *told.task_metrics(skill, case, RESAMPLES_OF_PROMPTS, config.seed),
        *told.circuit_metrics(case, circuit, outcome, RESAMPLES_OF_PROMPTS, config.seed),
        *told.method_metrics(points),
    ]
    metrics += _controls(case, circuit, config, n, extra)
    model.train(was_training)
    return Result(metrics, extra)


def check(model: HookedTransformer, config: CircuitConfig) -> None:
    """Refuse a model whose graph cannot be drawn, or has fewer edges than are asked for.

    Raises:
        UserError: an architecture that the patched forward pass does not cover, or too few edges.
    """
    _check_edges(Graph.of(model), config)


EVALUATION = Evaluation("acdc", CircuitConfig, circuits, check=check)


def _check_edges(graph: Graph, config: CircuitConfig) -> None:
    if config.edges is not None and config.edges > graph.n_edges:
        raise UserError(f"this model's graph has {graph.n_edges:,} edges, not {config.edges:,}")


def _finder(config: CircuitConfig, tau: float) -> Find:
    if config.method == "acdc":
        return lambda case: by_acdc(case, tau, config.engine)
    return lambda case: by_attribution(
        case, config.method, config.score_by, config.selection, config.edges
    )


def _found(
    case: Case, config: CircuitConfig
) -> tuple[dict[float, Found], Int[Tensor, "edge"] | None]:
    """Circuits by tau, and the method's ranking of all edges."""
    if config.method != "acdc":
        found = _finder(config, config.tau)(case)
        return {config.tau: found}, ranking(case.graph, found.scores, config.selection)
    taus = progress.bar(config.swept(), desc="tau", unit="circuit")
    sweep = {tau: _finder(config, tau)(case) for tau in taus}
    return sweep, tau_ranking(sweep) if len(sweep) > 1 else None


def _resamplings(case: Case, config: CircuitConfig) -> int:
    if config.bootstrap is not None:
        return config.bootstrap
    return SMALL_SPREAD if case.graph.n_edges <= DEMO_EDGES else 0


def _described(case: Case, config: CircuitConfig, sweep: dict[float, Found]) -> dict[str, Any]:
    """The circuits themselves: edges by name, and what each threshold gives."""
    graph, circuit = case.graph, sweep[config.tau]
    rows = []
    for tau, found in sorted(sweep.items()):
        outcome = case.outcome(found.kept)
        value = faithfulness(case, outcome, RESAMPLES_OF_PROMPTS, config.seed)
        rows.append(
            {
                "tau": tau if config.method == "acdc" else None,
                "edges": found.n,
                "edges_on_paths": int(on_paths(graph, found.kept).sum()),
                "edges_tested": found.tested,
                "margin": _finite(found.margin),
                "kl": float(outcome.kl.mean()),
                "faithfulness": value,
            }
        )
    method = config.method
    return {
        "circuit": circuit_to_dict(graph, circuit.kept, circuit.scores),
        "tau": config.tau if method == "acdc" else None,
        "order": "from the output to the input; edges are listed as visited (Graph.order)",
        "sweep": rows,
    }


def _controls(
    case: Case, circuit: Found, config: CircuitConfig, n: int, extra: dict[str, Any]
) -> list[Any]:
    """Random circuits, the null task, other prompts, other orders."""
    graph, find, seed = case.graph, _finder(config, config.tau), config.seed
    drawn = random_circuits(graph, circuit.kept, config.random_circuits, seed)
    outcomes = [case.outcome(mask) for mask in progress.bar(drawn, desc="random", unit="circuit")]
    found = told.random_metrics(case, case.outcome(circuit.kept), outcomes, config.random_circuits)
    extra["random"] = {
        "kl": [float(outcome.kl.mean()) for outcome in outcomes],
        "faithfulness": [faithfulness(case, outcome).value for outcome in outcomes],
    }
    null, reason = _null(case, find, config)
    found += told.null_metrics(circuit, null, reason, sized=config.method == "acdc")
    if null is not None:
        extra["null"] = circuit_to_dict(graph, null.kept)
    again = bootstrap_spread(case, circuit.kept, find, n, seed, config.ablation)
    orders, why = _orders(case, circuit, config, n)
    found += told.spread_metrics("bootstrap", again, circuit.n, "--bootstrap N")
    found += told.spread_metrics("orders", orders, circuit.n, why)
    extra["bootstrap"], extra["orders"] = again, orders
    return found


def _null(case: Case, find: Find, config: CircuitConfig) -> tuple[Found | None, str]:
    """The circuit of the null task; or why there is none."""
    try:
        prompts = case.prompts.null(config.seed)
    except UserError:
        return None, "no two prompts of one length"
    return find(Case.of(case.model, prompts, config.ablation)), ""


def _orders(case: Case, circuit: Found, config: CircuitConfig, n: int) -> tuple[Spread, str]:
    """The spread over visiting orders; or why there is none."""
    if config.method != "acdc":
        return Spread(), "no order"
    if config.engine == "auto-circuit":
        return Spread(), "only in ours"

    def find(order: Tensor) -> Found:
        return by_acdc(case, config.tau, config.engine, order)

    return order_spread(circuit.kept, find, case.graph, n, config.seed), "--bootstrap N"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
