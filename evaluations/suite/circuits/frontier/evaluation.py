"""circuits: frontiers of cost against number of edges, by method and ablation.

Every method finds circuits of many sizes on the task's prompts and on those of the null task.
Circuits are chosen by their cost on the prompts they were found on and measured on held-out ones.
Random circuits are a curve of their own. ``docs/evaluations/circuits.md`` defines every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens import HookedTransformer

from evaluations.core.models import LoadedModel, at_least_float32, evaluation_mode
from evaluations.core.options import Request
from evaluations.core.spec import Measurement
from evaluations.suite.circuits.frontier import metrics
from evaluations.suite.circuits.frontier.bench import Bench
from evaluations.suite.circuits.frontier.candidates import Candidate, draw_random, find_circuits
from evaluations.suite.circuits.frontier.config import (
    ABLATIONS,
    REFERENCE,
    FrontierConfig,
    FrontierTask,
)
from evaluations.suite.circuits.frontier.data import FrontierData, ceiling, frontier_data
from evaluations.suite.circuits.frontier.frontiers import make_frontier, make_random
from evaluations.suite.circuits.frontier.overlap import overlaps
from evaluations.suite.circuits.frontier.results import Curve, Restored
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.metrics import mark, skill_metrics
from evaluations.tasks.null import NoNullTaskError
from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import make_task
from sat_interp._util import progress


def evaluate(model: HookedTransformer, data: FrontierData, config: FrontierConfig) -> Measurement:
    """Measure the frontiers of a model on a task.

    Args:
        model: the model; one in lower precision is copied to float32.
        data: the prompts; circuits are found on them and measured on the held-out ones.
        config: the settings.

    Raises:
        UserError: the architecture is not covered, too few prompts, or prompts that do not fit the
            model.
    """
    with evaluation_mode(model):
        return _frontiers(at_least_float32(model), data, config)


def prepare(
    request: Request, configs: Sequence[FrontierConfig]
) -> Callable[[LoadedModel], FrontierData]:
    """Return a function that makes the prompts for a model."""
    (config,) = configs
    return lambda loaded: frontier_data(request, loaded, config)


def check(model: HookedTransformer, config: FrontierConfig) -> None:
    """Refuse an architecture that circuits do not cover.

    Raises:
        UserError: it is not covered.
    """
    Graph.of(model, config.grouped)


def preview(subject: Any) -> str:
    """Describe the prompts and the curves under default settings."""
    config = FrontierConfig()
    prompts = make_task(subject.task, subject.known.tokenizer, FrontierTask().prompts)
    curves = len(config.methods) * len(config.ablations)
    edges = Graph.of(subject.known.model).n_edges
    return f"{subject.task}: {prompts.n} prompts, {curves} frontiers of {edges:,} edges"


@dataclass(frozen=True)
class _Side:
    """The task, or its null task: prompts and ceiling."""

    data: FrontierData
    ceiling: float


def _frontiers(model: HookedTransformer, data: FrontierData, config: FrontierConfig) -> Measurement:
    skill = competence(model, data.prompts)
    graph = Graph.of(model, config.grouped)
    task = _Side(data, ceiling(model, data.sample))
    null, no_null = _null(model, data, config)
    curves: list[Curve] = []
    restored: list[Restored] = []
    left_out = 0
    for ablation in progress.bar(config.ablations, desc="ablations", unit="ablation"):
        bench, own = _curves(model, graph, task, ablation, config)
        curves += [*own, *_random(bench, own, task.ceiling, config)]
        restored += _restorations(bench, own, config)
        left_out = max(left_out, bench.left_out)
        if null is not None:
            curves += _curves(model, graph, null, ablation, config, is_null=True)[1]
    found = [
        *skill_metrics(skill),
        *metrics.ceiling_metrics(task.ceiling, null.ceiling if null else None, data, no_null),
        *metrics.curve_metrics(curves, skill, no_null),
        *metrics.restored_metrics(restored, config),
    ]
    extra: dict[str, Any] = {
        "marked": mark(skill),
        "graph": {**graph.to_dict(), "n_edges": graph.n_edges},
        "ceiling": task.ceiling,
        "null_ceiling": null.ceiling if null else None,
        "no_null": no_null,
        "prompts_not_finite": left_out,
        "curves": [metrics.curve_row(curve) for curve in curves],
        "circuits": [row for curve in curves if (row := metrics.circuit_row(curve, graph))],
        "overlap": overlaps(curves),
        "restored": [metrics.restored_row(one) for one in restored],
    }
    return Measurement(found, extra)


def _null(
    model: HookedTransformer, data: FrontierData, config: FrontierConfig
) -> tuple[_Side | None, str]:
    """Return the null task; or why there is none."""
    try:
        null = data.null(config.seed)
    except NoNullTaskError as error:
        return None, error.reason
    return _Side(null, ceiling(model, null.sample)), ""


def _curves(
    model: HookedTransformer,
    graph: Graph,
    side: _Side,
    ablation: str,
    config: FrontierConfig,
    is_null: bool = False,
) -> tuple[Bench, list[Curve]]:
    """Return the frontier of every method and that of all of them together, one ablation."""
    bench = Bench(model, side.data.prompts, ABLATIONS[ablation], graph, config)
    made: list[Curve] = []
    pool: list[Candidate] = []
    for method in config.methods:
        found = find_circuits(method, bench, config, side.ceiling)
        pool += [Candidate(one.kept, f"{method}: {one.setting}") for one in found]
        frontier = make_frontier(bench, found, side.ceiling, config)
        made.append(Curve(ablation, method, is_null, frontier))
    frontier = make_frontier(bench, pool, side.ceiling, config)
    return bench, [*made, Curve(ablation, "all", is_null, frontier)]


def _random(
    bench: Bench, curves: Sequence[Curve], ceiling: float, config: FrontierConfig
) -> list[Curve]:
    """Return the curve of random circuits; none where no method found a circuit with edges."""
    found = [point.candidate for curve in curves for point in curve.frontier.points]
    sizes = [several for several in draw_random(bench.case, found, config) if several]
    if not sizes:
        return []
    frontier = make_random(bench, sizes, ceiling, config)
    return [Curve(curves[0].ablation, "random", False, frontier, sizes)]


def _restorations(bench: Bench, curves: Sequence[Curve], config: FrontierConfig) -> list[Restored]:
    """Return what restoring excluded edges at random does to each method's reference circuit."""
    found: list[Restored] = []
    for curve in curves:
        point = curve.frontier.reference(REFERENCE)
        if point is None or not config.restorations:
            found.append(Restored(curve, None))
            continue
        kl = bench.restored(point.candidate.kept, config.restorations, config.seed)
        found.append(Restored(curve, metrics.mean_of(kl - point.kl, config)))
    return found
