"""The figures of ``acdc``: what is computed elsewhere in this room, as metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evaluations.circuits.case import Case, Outcome
from evaluations.circuits.controls import Spread, jaccard, on_paths
from evaluations.circuits.faithfulness import (
    UNDEFINED,
    Point,
    areas,
    faithfulness,
    mean_over_prompts,
)
from evaluations.circuits.find import Found
from evaluations.record import Direction, Interval, Metric
from evaluations.tasks.pairs import Competence, wilson

ABLE = 0.9
"""Below this accuracy a count of edges is marked: it is low for the wrong reason."""

NOT_ASKED = {"not asked for": 1}


def mark(skill: Competence) -> str | None:
    """What has to be said above a circuit of a model that cannot do the task; None if it can."""
    share = f"{skill.accuracy:.2f} [{skill.low:.2f}, {skill.high:.2f}]"
    if skill.at_chance:
        return (
            f"does not do the task: accuracy {share} is not above chance; its circuit means nothing"
        )
    if skill.accuracy < ABLE:
        return f"does the task poorly: accuracy {share}; part of its edge count is low for free"
    return None


def task_metrics(skill: Competence, case: Case, resamples: int, seed: int) -> list[Metric]:
    """How well the model does the task, and what replacing everything costs."""
    failed = {"logits not finite": skill.n_failed} if skill.n_failed else {}

    def interval_of(share: float) -> Interval:
        ends = wilson(round(share * skill.n), skill.n)
        return Interval(*ends, 0.95, f"Wilson, {skill.n} prompts")

    kl, error, interval = mean_over_prompts(case.empty.kl, resamples, seed)
    return [
        Metric("accuracy", "Right answer above wrong one", skill.accuracy, "", "higher",
               None, interval_of(skill.accuracy), skill.n, skill.n_failed, failed,
               "share of prompts; chance is 0.5; n: prompts"),
        Metric("top_accuracy", "Right answer above all others", skill.top, "", "higher",
               None, interval_of(skill.top), skill.n, skill.n_failed, failed,
               "share of prompts; n: prompts"),
        Metric("logit_difference", "Logit difference", skill.logit_difference, "nats", "higher",
               skill.logit_difference_error, None, skill.n, skill.n_failed, failed,
               "mean of logit(right) - logit(wrong); n: prompts"),
        Metric("kl_corrupted", "KL, every edge replaced", kl, "nats", None, error, interval,
               case.prompts.n,
               description="mean KL(whole || empty circuit) at the last position: the scale tau "
               "is to be read on; n: prompts"),
    ]  # fmt: skip


def circuit_metrics(
    case: Case, circuit: Found, outcome: Outcome, resamples: int, seed: int
) -> list[Metric]:
    """The circuit's size, KL, faithfulness, and its distance from another circuit."""
    graph, n = case.graph, case.prompts.n
    kl, error, interval = mean_over_prompts(outcome.kl, resamples, seed)
    faith = faithfulness(case, outcome, resamples, seed)
    margin = circuit.margin if circuit.margin is not None else math.nan
    no_margin = circuit.margin is None or not math.isfinite(margin)
    return [
        Metric("edges", "Edges kept", float(circuit.n), "edges", "lower", n=graph.n_edges,
               description="edges of the circuit; n: edges of the graph"),
        Metric("edges_on_paths", "Edges on a path", float(on_paths(graph, circuit.kept).sum()),
               "edges", None, n=circuit.n,
               description="kept edges on a path of kept edges from embedding to output; n: kept"),
        Metric("circuit_kl", "KL of the circuit", kl, "nats", "lower", error, interval, n,
               description="mean KL(whole || circuit) at the last position; n: prompts"),
        Metric("faithfulness", "Faithfulness", faith.value, "", None, faith.standard_error,
               faith.interval, n, 0 if faith.value is not None else n,
               {} if faith.value is not None else {UNDEFINED: n},
               "(m(circuit) - m(empty)) / (m(whole) - m(empty)), m the mean logit difference; "
               "1 is the whole model; n: prompts"),
        Metric("margin", "Smallest margin to tau", None if no_margin else margin, "nats", "higher",
               n=circuit.tested, n_failed=int(no_margin),
               reasons={"none tested": 1} if no_margin else {},
               description="smallest |KL step - tau| met: how near another circuit is; n: edges "
               "tested"),
    ]  # fmt: skip


def method_metrics(points: Sequence[Point]) -> list[Metric]:
    """CPR and CMD of the method's ranking."""
    found = areas(points) if points else None
    reason = UNDEFINED if points else "one tau ranks no edges"
    failed = 0 if found else 1
    reasons = {} if found else {reason: 1}
    cpr, cmd = found or (None, None)
    return [
        Metric("cpr", "CPR", cpr, "", "higher", n=len(points), n_failed=failed, reasons=reasons,
               description="area under faithfulness over 0.1 ... 100 % of edges, of the method; "
               "the most is unbounded, a perfect method has 0.999; n: circuits"),
        Metric("cmd", "CMD", cmd, "", "lower", n=len(points), n_failed=failed, reasons=reasons,
               description="area of |1 - faithfulness| over 0.1 ... 100 % of edges, of the "
               "method; n: circuits"),
    ]  # fmt: skip


def random_metrics(
    case: Case, circuit: Outcome, outcomes: Sequence[Outcome], wanted: int
) -> list[Metric]:
    """Connected random circuits with as many edges in each layer."""
    values = [faithfulness(case, outcome).value for outcome in outcomes]
    known = [value for value in values if value is not None]
    kls = [float(outcome.kl.mean()) for outcome in outcomes]
    nearer = sum(kl <= float(circuit.kl.mean()) for kl in kls)
    missing: dict[str, int] = {}
    if not kls:
        missing = {"no edge of the circuit lies on a path": wanted} if wanted else NOT_ASKED
    undefined = {UNDEFINED: len(values) - len(known)} if len(known) < len(values) else missing
    about = "connected, as many edges into each layer; n: random circuits"
    return [
        _over("random_faithfulness", "Faithfulness, random circuits", known, "", None, undefined,
              "mean over random circuits, " + about),
        _over("random_kl", "KL, random circuits", kls, "nats", None, missing,
              "mean over random circuits, " + about),
        Metric("random_p", "Random circuits as near",
               (1 + nearer) / (1 + len(kls)) if kls else None, "", "lower", n=len(kls),
               n_failed=sum(missing.values()), reasons=missing,
               description="(1 + those of KL no larger than the circuit's) / (1 + n); "
               "n: random circuits"),
    ]  # fmt: skip


def null_metrics(circuit: Found, null: Found | None, reason: str, sized: bool) -> list[Metric]:
    """The circuit of the null task; its size says nothing where the method is told the size."""
    count = float(null.n) if null is not None and sized else None
    reasons = {} if count is not None else {reason or "size is given": 1}
    overlap = jaccard(circuit.kept, null.kept) if null is not None else None
    unknown = {} if overlap is not None else {reason or "both circuits are empty": 1}
    return [
        Metric("null_edges", "Edges, null task", count, "edges", None, n=1 if null else 0,
               n_failed=len(reasons), reasons=reasons,
               description="edges kept when corrupted prompts are paired with each other: what "
               "any change of words costs; n: null tasks"),
        Metric("null_jaccard", "Overlap with the null task's", overlap, "", "lower",
               n=1 if null else 0, n_failed=len(unknown), reasons=unknown,
               description="Jaccard overlap of the circuit with the null task's; n: null tasks"),
    ]  # fmt: skip


def spread_metrics(name: str, found: Spread, edges: int, reason: str) -> list[Metric]:
    """Size and overlap over bootstrap samples of prompts, or over visiting orders."""
    what = {"bootstrap": "bootstrap samples of prompts", "orders": "random visiting orders"}[name]
    missing = {} if found.edges else {reason: 1}
    counts = [float(count) for count in found.edges]
    deviation = float(np.std(counts, ddof=1)) if len(counts) > 1 else None
    return [
        _over(f"{name}_edges", f"Edges over {what}", counts, "edges", None, missing,
              f"mean edges kept; the circuit has {edges}; n: {what}"),
        Metric(f"{name}_sd", f"SD of edges over {what}", deviation, "edges", "lower",
               n=len(counts), n_failed=int(deviation is None),
               reasons={} if deviation is not None else {next(iter(missing), "only one"): 1},
               description=f"standard deviation of the count; n: {what}"),
        _over(f"{name}_jaccard", f"Overlap over {what}", found.jaccard, "", "higher",
              missing or found.failed, f"mean Jaccard overlap with the circuit; n: {what}"),
    ]  # fmt: skip


def _over(
    name: str, title: str, values: Sequence[float], unit: str, direction: Direction | None,
    reasons: dict[str, int], description: str,
) -> Metric:  # fmt: skip
    """A mean over repetitions, its standard error, and the range of 95 % of them."""
    n, failed = len(values), sum(reasons.values())
    if not n:
        return Metric(name, title, None, unit, direction, n=0, n_failed=failed, reasons=reasons,
                      description=description)  # fmt: skip
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    low, high = np.quantile(values, [0.025, 0.975])
    interval = Interval(float(low), float(high), 0.95, "the range of 95 % of the repetitions")
    return Metric(name, title, float(np.mean(values)), unit, direction, error,
                  interval if n > 1 else None, n, failed, reasons, description)  # fmt: skip
