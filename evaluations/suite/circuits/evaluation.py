"""acdc: the circuit of a task, with controls.

The circuit is found by ACDC (``methods/acdc``), EAP or EAP-IG (``methods/eap.py``), UGS, HCGS or
Edge Pruning (``methods/search.py``) on the edge-factorised graph (``graph.py``); edges on no path
from embedding to output are removed. It is reported with the model's accuracy on the task, the KL
of the fully corrupted model, the circuit's KL and faithfulness on discovery and held-out prompts,
the method's CPR and CMD on held-out prompts (``faithfulness.py``), random circuits, draws of the
null task, the spread over prompts and visiting orders (``controls.py``), and the smallest margin to
the threshold.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.inputs import task_prompts
from evaluations.core.models import LoadedModel, evaluation_mode
from evaluations.core.options import Request, TaskOptions
from evaluations.core.spec import Measurement
from evaluations.suite.circuits import metrics
from evaluations.suite.circuits.case import Case, budget_of, finite_case, held_out_case
from evaluations.suite.circuits.config import (
    ATTRIBUTION,
    LEAST_DRAWS,
    MASKED,
    CircuitConfig,
    Ranking,
)
from evaluations.suite.circuits.controls import (
    Spread,
    bootstrap_spread,
    order_spread,
    random_circuits,
)
from evaluations.suite.circuits.faithfulness import Area, Point, curve, faithfulness, tau_ranking
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.methods.eap import interpolation
from evaluations.suite.circuits.methods.find import (
    DEMO_EDGES,
    CircuitFinder,
    FoundCircuit,
    attributed,
    by_acdc,
    by_attribution,
    by_logit,
    by_masks,
    of_ranking,
)
from evaluations.suite.circuits.patched import PRECISE
from evaluations.tasks.null import NoNullTaskError, null_prompts
from evaluations.tasks.pairs import TaskPrompts, competence
from evaluations.tasks.registry import make_task
from sat_interp._util import progress
from sat_interp._util.errors import UserError

log = logging.getLogger(__name__)

RESAMPLES_OF_PROMPTS = 2000
RANKINGS: dict[Area, Ranking] = {"cpr": "signed", "cmd": "absolute"}


def evaluate(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Measurement:
    """Find the circuit of a task in a model and measure it and its controls.

    A model in lower precision is copied to float32, since rounding would exceed most KL steps.
    Prompts on which the model's logits are not finite are left out, and counted.

    Args:
        model: the model.
        prompts: the discovery prompts; ``prompts.held_out`` are used for evaluation only.
        config: the settings.

    Raises:
        UserError: the architecture is not supported, the prompts do not fit the model, or its
            logits are finite on no prompt.
    """
    with evaluation_mode(model):
        return _circuits(_precise(model), prompts, config)


def prepare(
    request: Request, configs: Sequence[CircuitConfig]
) -> Callable[[LoadedModel], TaskPrompts]:
    """Return a function that makes the prompts for a model."""
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
    """Return the prompts of the most common length; the others are counted as left out."""
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
    """Describe the number of prompts and edges under default settings."""
    prompts = make_task(subject.task, subject.known.tokenizer, TaskOptions().prompts)
    return f"{subject.task}: {prompts.n} prompts, {Graph.of(subject.known.model).n_edges:,} edges"


def _circuits(model: HookedTransformer, prompts: TaskPrompts, config: CircuitConfig) -> Measurement:
    skill = competence(model, prompts)
    graph = Graph.of(model, config.grouped)
    case, left_out = finite_case(
        model, prompts, config.ablation, None, graph, budget_of(config), config.objective
    )
    _check_edges(case.graph, config)
    held = held_out_case(case, config.ablation)
    sweep, rankings = _circuits_and_rankings(case, config)
    circuit = sweep[config.threshold]
    curves = {
        name: curve(held, order) if held and order is not None else []
        for name, order in rankings.items()
    }
    extra: dict[str, Any] = {
        **_described(case, held, config, sweep),
        **_ranked(case, held, config, circuit, rankings),
        "competence": skill,
        "marked": metrics.mark(skill),
        "curve": _plain_points(curves["cpr"]),
        "absolute_curve": _plain_points(curves["cmd"]),
        "resamplings": _resamplings(case, config),
        "prompts_not_finite": left_out,
        "precision": str(model.W_E.dtype).removeprefix("torch."),
    }
    numbers = (RESAMPLES_OF_PROMPTS, config.seed)
    is_ranked = rankings["cpr"] is not None
    measured = [
        *metrics.task_metrics(skill, case, *numbers, left_out),
        *metrics.circuit_metrics(case, held, circuit, *numbers),
        *metrics.method_metrics(held, curves, *numbers, ranked=is_ranked),
        *_controls(case, held, circuit, config, extra),
    ]
    return Measurement(measured, extra)


def check(model: HookedTransformer, config: CircuitConfig) -> None:
    """Check that the model's architecture is supported and its graph has enough edges.

    Raises:
        UserError: the patched forward pass does not support it, or ``config.edges`` is larger than
            the graph.
    """
    _check_edges(Graph.of(model, config.grouped), config)


def _check_edges(graph: Graph, config: CircuitConfig) -> None:
    if config.edges is not None and config.edges > graph.n_edges:
        raise UserError(f"this model's graph has {graph.n_edges:,} edges, not {config.edges:,}")


def _precise(model: HookedTransformer) -> HookedTransformer:
    """Return the model, or a float32 copy of a model in lower precision."""
    if model.W_E.dtype in PRECISE:
        return model
    kind = str(model.W_E.dtype).removeprefix("torch.")
    log.warning("the model is in %s: its circuits are searched in float32", kind)
    copied = copy.deepcopy(model)
    copied.to(torch.float32, print_details=False)
    return copied


def _plain_points(points: list[Point]) -> list[dict[str, Any]]:
    """Return a curve for the record."""
    names = ("share", "edges", "edges_on_paths", "faithfulness", "kl")
    return [{name: getattr(point, name) for name in names} for point in points]


def _finder(config: CircuitConfig, tau: float) -> CircuitFinder:
    if config.method == "acdc":
        return lambda case: by_acdc(case, tau, config.engine)
    if config.method in MASKED:
        return lambda case: by_masks(case, config)
    return lambda case: by_attribution(case, config)


def _circuits_and_rankings(
    case: Case, config: CircuitConfig
) -> tuple[dict[float, FoundCircuit], dict[Area, Int[Tensor, "edge"] | None]]:
    """Return circuits by tau, and rankings of all edges: signed for CPR, absolute for CMD."""
    if config.method in MASKED:
        circuit = by_masks(case, config)
        order = by_logit(circuit.scores)
        return {config.threshold: circuit}, {"cpr": order, "cmd": order}
    if config.method in ATTRIBUTION:
        found = attributed(case, config)
        order = found.order(config.ranking)
        circuit = of_ranking(case.graph, found.scores, order, config.edges)
        orders: dict[Area, Tensor | None] = {
            area: found.order(ranking) for area, ranking in RANKINGS.items()
        }
        return {config.threshold: circuit}, orders
    taus = progress.bar(config.swept(), desc="tau", unit="circuit")
    sweep = {tau: _finder(config, tau)(case) for tau in taus}
    return sweep, {
        area: tau_ranking(sweep, ranking == "signed") if len(sweep) > 1 else None
        for area, ranking in RANKINGS.items()
    }


def _resamplings(case: Case, config: CircuitConfig) -> int:
    if config.bootstrap is not None:
        return config.bootstrap
    return LEAST_DRAWS if case.graph.n_edges <= DEMO_EDGES else 0


def _described(
    case: Case, held: Case | None, config: CircuitConfig, sweep: dict[float, FoundCircuit]
) -> dict[str, Any]:
    """Return the circuit's edges by name, and the circuit of each threshold in numbers."""
    graph, circuit, is_acdc = case.graph, sweep[config.threshold], config.method == "acdc"
    rows = [_swept(case, held, config, tau, swept) for tau, swept in sorted(sweep.items())]
    kept = torch.stack([swept.all_chosen for swept in sweep.values()]).any(0)
    return {
        "circuit": circuit_to_dict(graph, circuit.kept, circuit.scores),
        "off_paths": circuit_to_dict(graph, circuit.all_chosen & ~circuit.kept)["edges"],
        "tau": config.threshold if is_acdc else None,
        "order": "from the output to the input; edges are listed as visited (Graph.order)",
        "sweep": rows,
        "edges_without_rank": int((~kept).sum()) if is_acdc else 0,
        "interpolation": interpolation(config.interpolation_steps, config.points)
        if config.method in ATTRIBUTION
        else None,
    }


def _ranked(
    case: Case,
    held: Case | None,
    config: CircuitConfig,
    circuit: FoundCircuit,
    rankings: Mapping[Area, Int[Tensor, "edge"] | None],
) -> dict[str, Any]:
    """Return the circuits of the signed and of the absolute ranking, where scores have signs."""
    if config.method not in ATTRIBUTION:
        return {}
    rows = []
    for area, name in RANKINGS.items():
        order = rankings[area]
        assert order is not None
        own = of_ranking(case.graph, circuit.scores, order, config.edges)
        edges = circuit_to_dict(case.graph, own.kept, circuit.scores)["edges"]
        row = _swept(case, held, config, config.threshold, own)
        rows.append({"ranking": name, **row, "circuit": edges})
    return {"rankings": rows}


def _swept(
    case: Case, held: Case | None, config: CircuitConfig, tau: float, circuit: FoundCircuit
) -> dict[str, Any]:
    """Return size, KL and faithfulness of the circuit of one threshold."""
    row: dict[str, Any] = {
        "tau": tau if config.method == "acdc" else None,
        "edges": circuit.n,
        "edges_chosen": int(circuit.all_chosen.sum()),
        "edges_tested": circuit.tested,
        "margin": _finite(circuit.margin),
    }
    for prefix, prompts in (("", case), ("held_out_", held)):
        if prompts:
            outcome = prompts.outcome(circuit.kept)
            row[f"{prefix}kl"] = _finite(float(outcome.kl.mean()))
            row[f"{prefix}faithfulness"] = faithfulness(
                prompts, outcome, RESAMPLES_OF_PROMPTS, config.seed
            )
    return row


def _controls(
    case: Case,
    held: Case | None,
    circuit: FoundCircuit,
    config: CircuitConfig,
    extra: dict[str, Any],
) -> list[Any]:
    """Measure random circuits, the null task, other prompts and other orders."""
    graph, find, seed = case.graph, _finder(config, config.threshold), config.seed
    n, unseen = extra["resamplings"], held or case
    drawn = random_circuits(graph, circuit.kept, config.random_circuits, seed)
    unseen.fit(drawn)
    outcomes = [unseen.outcome(mask) for mask in progress.bar(drawn, desc="random", unit="circuit")]
    measured = metrics.random_metrics(
        unseen, unseen.outcome(circuit.kept), outcomes, config.random_circuits, held is not None
    )
    extra["random"] = {
        "kl": [float(outcome.kl.mean()) for outcome in outcomes],
        "faithfulness": [faithfulness(unseen, outcome).value for outcome in outcomes],
    }
    nulls, sizes, reason = _nulls(case, find, config)
    measured += metrics.null_metrics(circuit, nulls, reason, sized=_is_sized(config))
    extra["null"] = [
        {**size, **circuit_to_dict(graph, null.kept)}
        for size, null in zip(sizes, nulls, strict=True)
    ]
    samples = bootstrap_spread(case, circuit.kept, find, n, seed)
    orders, why = _orders(case, circuit, config, n)
    measured += metrics.spread_metrics("bootstrap", samples, circuit.n, "--bootstrap 5")
    measured += metrics.spread_metrics("orders", orders, circuit.n, why)
    extra["bootstrap"], extra["orders"] = samples, orders
    return measured


def _nulls(
    case: Case, find: CircuitFinder, config: CircuitConfig
) -> tuple[list[FoundCircuit], list[dict[str, Any]], str]:
    """Return circuits of the null task and the size of its prompts; or why there are none."""
    if not config.null_draws:
        return [], [], "not requested"
    nulls: list[FoundCircuit] = []
    sizes: list[dict[str, Any]] = []
    for draw in progress.bar(range(config.null_draws), desc="null task", unit="draw"):
        try:
            prompts = null_prompts(case.prompts, config.seed + draw)
        except NoNullTaskError as error:
            return [], [], error.reason
        nulls.append(find(case.of_prompts(prompts)))
        sizes.append({"n_prompts": prompts.n, "left_out": prompts.left_out})
    return nulls, sizes, ""


def _orders(case: Case, circuit: FoundCircuit, config: CircuitConfig, n: int) -> tuple[Spread, str]:
    """Return the spread over visiting orders; or why there is none."""
    if config.method != "acdc":
        return Spread(), "no order"
    if config.engine == "auto-circuit":
        return Spread(), "auto-circuit has its own order"

    def find(order: Tensor) -> FoundCircuit:
        return by_acdc(case, config.threshold, config.engine, order)

    return order_spread(circuit.kept, find, case.graph, n, config.seed), "--bootstrap 5"


def _is_sized(config: CircuitConfig) -> bool:
    """Whether the method decides the number of edges."""
    return config.method == "acdc" or (config.method in ("ugs", "hcgs") and config.edges is None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
