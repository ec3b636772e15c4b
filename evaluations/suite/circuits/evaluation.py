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
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.inputs import task_prompts
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request, TaskOptions
from evaluations.core.spec import Measurement
from evaluations.suite.circuits import metrics as told
from evaluations.suite.circuits.case import Case, finite_case, held_out_case
from evaluations.suite.circuits.config import LEAST_DRAWS, CircuitConfig, steps_of
from evaluations.suite.circuits.controls import (
    Spread,
    bootstrap_spread,
    order_spread,
    random_circuits,
)
from evaluations.suite.circuits.faithfulness import Area, Point, curve, faithfulness, tau_ranking
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.methods.eap import (
    interpolation,
    ranking,
)
from evaluations.suite.circuits.methods.find import (
    DEMO_EDGES,
    Find,
    Found,
    by_acdc,
    by_attribution,
)
from evaluations.suite.circuits.patched import PRECISE
from evaluations.tasks.null import null_prompts
from evaluations.tasks.pairs import TaskPrompts, competence
from evaluations.tasks.registry import make_task
from sat_interp._util import progress
from sat_interp._util.errors import UserError

log = logging.getLogger(__name__)

RESAMPLES_OF_PROMPTS = 2000
SMALL_SPREAD = LEAST_DRAWS


def evaluate(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Measurement:
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


def prepare(
    request: Request, configs: Sequence[CircuitConfig]
) -> Callable[[LoadedModel], TaskPrompts]:
    """Return what makes each model's prompts."""
    (config,) = configs
    if 0 < (config.bootstrap or 0) < LEAST_DRAWS:
        log.warning(
            "--bootstrap %d gives no standard deviation: it takes %d",
            config.bootstrap,
            LEAST_DRAWS,
        )

    def prompts_of(loaded: LoadedModel) -> TaskPrompts:
        prompts = task_prompts(request, loaded, config.seed)
        return one_length(prompts) if config.engine == "auto-circuit" else prompts

    return prompts_of


def one_length(prompts: TaskPrompts) -> TaskPrompts:
    """Return the prompts of the commonest length; the others are counted as left out."""
    sizes = [len(batch) for batch in prompts.batches]
    largest = sizes.index(max(sizes))
    first = sum(sizes[:largest])
    chosen = prompts.subset(range(first, first + sizes[largest]))
    if not (others := prompts.n - chosen.n):
        return chosen
    return dataclasses.replace(
        chosen, left_out={**chosen.left_out, "not of the commonest length": others}
    )


def preview(subject: Any) -> str:
    """Return what the defaults read of a model."""
    prompts = make_task(subject.task, subject.known.tokenizer, TaskOptions().prompts)
    return f"{subject.task}: {prompts.n} prompts, {Graph.of(subject.known.model).n_edges:,} edges"


def _circuits(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Measurement:
    skill = competence(model, prompts)
    case, left_out = finite_case(model, prompts, config.ablation)
    _check_edges(case.graph, config)
    held = held_out_case(case, config.ablation)
    sweep, orders = _found(case, config)
    circuit = sweep[config.threshold]
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
    return Measurement(metrics, extra)


def check(model: HookedTransformer, config: CircuitConfig) -> None:
    """Refuse a model whose graph cannot be drawn, or has fewer edges than are asked for.

    Raises:
        UserError: an architecture that the patched forward pass does not cover, or too few edges.
    """
    _check_edges(Graph.of(model), config)


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
        found = _finder(config, config.threshold)(case)
        return {config.threshold: found}, {
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
    graph, circuit, is_acdc = case.graph, sweep[config.threshold], config.method == "acdc"
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
        "tau": config.threshold if is_acdc else None,
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
    graph, find, seed = case.graph, _finder(config, config.threshold), config.seed
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
            prompts = null_prompts(case.prompts, config.seed + draw)
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
        return by_acdc(case, config.threshold, config.engine, order)

    return order_spread(circuit.kept, find, case.graph, n, config.seed), "--bootstrap 5"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
