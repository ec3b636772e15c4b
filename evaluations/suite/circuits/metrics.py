"""The figures of ``acdc``, computed elsewhere in this package, as metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from evaluations.core.record import Direction, Interval, Metric
from evaluations.core.statistics import LEVEL, mean_interval
from evaluations.suite.circuits.case import Case, Outcome
from evaluations.suite.circuits.config import LEAST_DRAWS
from evaluations.suite.circuits.controls import Spread, jaccard
from evaluations.suite.circuits.faithfulness import (
    UNDEFINED,
    Area,
    Point,
    area_interval,
    cmd,
    cpr,
    faithfulness,
    mean_over_prompts,
)
from evaluations.suite.circuits.methods.find import Found
from evaluations.tasks.pairs import Competence, wilson

ABLE = 0.9
"""Below this accuracy a count of edges is marked: it is low for the wrong reason."""

NOT_ASKED = {"not asked for": 1}
NO_HELD_OUT = {"no held-out prompts": 1}


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


def task_metrics(
    skill: Competence, case: Case, resamples: int, seed: int, left_out: int = 0
) -> list[Metric]:
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
               case.prompts.n, left_out, {"not finite": left_out} if left_out else {},
               "mean KL(whole || empty circuit) at the last position: the scale tau is to be read "
               "on; n: prompts"),
    ]  # fmt: skip


def circuit_metrics(
    case: Case, held: Case | None, circuit: Found, resamples: int, seed: int
) -> list[Metric]:
    """The circuit's size, KL and faithfulness here and held out, its distance from another."""
    margin = circuit.margin if circuit.margin is not None else math.nan
    no_margin = circuit.margin is None or not math.isfinite(margin)
    n_chosen = int(circuit.all_chosen.sum())
    return [
        Metric("edges", "Edges kept", float(circuit.n), "edges", "lower", n=case.graph.n_edges,
               description="edges of the circuit: chosen edges on a path of chosen edges from "
               "embedding to output; n: edges of the graph"),
        Metric("edges_chosen", "Edges chosen by the method", float(n_chosen), "edges", None,
               n=case.graph.n_edges,
               description="all edges the method keeps, those off every path included; n: edges of "
               "the graph"),
        *_fit_metrics(case, circuit, resamples, seed, "", "prompts it was found on"),
        *_fit_metrics(held, circuit, resamples, seed, "held_out_", "held-out prompts"),
        Metric("margin", "Smallest margin to tau", None if no_margin else margin, "nats", "higher",
               n=circuit.tested, n_failed=int(no_margin),
               reasons={"none tested": 1} if no_margin else {},
               description="smallest |KL step - tau| met: how near another circuit is; n: edges "
               "tested"),
    ]  # fmt: skip


def _fit_metrics(
    case: Case | None, circuit: Found, resamples: int, seed: int, prefix: str, where: str
) -> list[Metric]:
    """KL and faithfulness of the circuit on the prompts of a case."""
    kl_name = f"{prefix}kl" if prefix else "circuit_kl"
    titles = (f"KL of the circuit, {where}", f"Faithfulness, {where}")
    if case is None:
        return [
            Metric(kl_name, titles[0], None, "nats", "lower", n=0, n_failed=1,
                   reasons=NO_HELD_OUT),
            Metric(f"{prefix}faithfulness", titles[1], None, n=0, n_failed=1, reasons=NO_HELD_OUT),
        ]  # fmt: skip
    outcome, n = case.outcome(circuit.kept), case.prompts.n
    kl, error, interval = mean_over_prompts(outcome.kl, resamples, seed)
    faith = faithfulness(case, outcome, resamples, seed)
    return [
        Metric(kl_name, titles[0], kl, "nats", "lower", error, interval, n,
               description=f"mean KL(whole || circuit) at the last position; n: {where}"),
        Metric(f"{prefix}faithfulness", titles[1], faith.value, "", None, faith.standard_error,
               faith.interval, n, 0 if faith.value is not None else n,
               {} if faith.value is not None else {UNDEFINED: n},
               "(m(circuit) - m(empty)) / (m(whole) - m(empty)), m the mean logit difference; "
               f"1 is the whole model; n: {where}"),
    ]  # fmt: skip


def method_metrics(
    held: Case | None,
    curves: Mapping[Area, Sequence[Point]],
    resamples: int,
    seed: int,
    ranked: bool = True,
) -> list[Metric]:
    """CPR of the method's signed ranking, CMD of its absolute one, on held-out prompts.

    Args:
        ranked: whether the method ranks edges at all: one threshold does not.
    """
    metrics = []
    for name, area, title, direction, what in (
        ("cpr", cpr, "CPR", "higher", "area under faithfulness, edges ranked by score with its "
         "sign; unbounded, a perfect method has 0.999"),
        ("cmd", cmd, "CMD", "lower", "area of |1 - faithfulness|, edges ranked by the score's "
         "size"),
    ):  # fmt: skip
        points = curves[cast(Area, name)]
        value = area(points) if points else None
        reason = "one tau ranks no edges" if not ranked else "no held-out prompts"
        empty = [f"{100 * point.share:g} %" for point in points if not point.edges]
        note = f"; circuits of no edge at {', '.join(empty)}" if empty else ""
        metrics.append(
            Metric(
                name, title, value, "", cast(Direction, direction),
                interval=area_interval(held, points, cast(Area, name), resamples, seed)
                if held and value is not None else None,
                n=held.prompts.n if held else 0, n_failed=int(value is None),
                reasons={} if value is not None else {UNDEFINED if points else reason: 1},
                description=f"{what}; over 0.1 ... 100 % of edges{note}; n: held-out prompts",
            )
        )  # fmt: skip
    return metrics


def random_metrics(
    case: Case,
    circuit: Outcome,
    outcomes: Sequence[Outcome],
    wanted: int,
    held_out: bool = False,
) -> list[Metric]:
    """Connected random circuits with as many edges in each layer.

    Args:
        case: the prompts that the circuit and the random ones are measured on.
        held_out: whether they are held-out prompts.
    """
    values = [faithfulness(case, outcome).value for outcome in outcomes]
    known = [value for value in values if value is not None]
    kls = [float(outcome.kl.mean()) for outcome in outcomes]
    nearer = sum(kl <= float(circuit.kl.mean()) for kl in kls)
    missing: dict[str, int] = {}
    if not kls:
        missing = {"no edge of the circuit lies on a path": wanted} if wanted else NOT_ASKED
    undefined = {UNDEFINED: len(values) - len(known)} if len(known) < len(values) else missing
    where = "held-out prompts" if held_out else "the prompts the circuit was found on"
    about = f"connected, as many edges into each layer, on {where}; n: random circuits"
    return [
        _over("random_faithfulness", "Faithfulness, random circuits", known, "", None, undefined,
              "mean over random circuits, " + about),
        _over("random_kl", "KL, random circuits", kls, "nats", None, missing,
              "mean over random circuits, " + about),
        Metric("random_p", "Random circuits as near",
               (1 + nearer) / (1 + len(kls)) if kls else None, "", "lower", n=len(kls),
               n_failed=sum(missing.values()), reasons=missing,
               description=f"(1 + those of KL no larger than the circuit's on {where}) / (1 + n); "
               "n: random circuits"),
    ]  # fmt: skip


def null_metrics(circuit: Found, nulls: Sequence[Found], reason: str, sized: bool) -> list[Metric]:
    """The circuits of the null task; their size says nothing where the method is given the size."""
    counts = [float(null.n) for null in nulls] if sized else []
    unsized = {} if counts else {reason or "size is given": 1}
    overlaps = [jaccard(circuit.kept, null.kept) for null in nulls]
    known = [overlap for overlap in overlaps if overlap is not None]
    empty = len(overlaps) - len(known)
    unknown = {"both circuits are empty": empty} if empty else {}
    found = []
    for name, title, unit, direction, values, reasons, what in (
        ("null_edges", "Edges, null task", "edges", None, counts, unsized,
         "mean edges of the null task's circuits: the frame stays, as many tokens change as in the "
         "task, none of them bears on the answer"),
        ("null_jaccard", "Overlap with the null task's", "", "lower", known,
         unknown if nulls else {reason: 1}, "mean Jaccard overlap with the null task's circuits"),
    ):  # fmt: skip
        n = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
        found.append(
            Metric(
                name, title, float(np.mean(values)) if n else None, unit,
                cast(Direction | None, direction), error, mean_interval(values, "draws"), n,
                sum(reasons.values()), reasons, f"{what}; n: draws of the null task",
            )
        )  # fmt: skip
    return found


def spread_metrics(name: str, found: Spread, edges: int, reason: str) -> list[Metric]:
    """Size and overlap over bootstrap samples of prompts, or over visiting orders."""
    what = {"bootstrap": "bootstrap samples of prompts", "orders": "random visiting orders"}[name]
    missing = {} if found.edges else {reason: 1}
    counts = [float(count) for count in found.edges]
    deviation, interval = standard_deviation(counts)
    too_few = {f"takes at least {LEAST_DRAWS}: --bootstrap {LEAST_DRAWS}": 1}
    return [
        _over(f"{name}_edges", f"Edges over {what}", counts, "edges", None, missing,
              f"mean edges of the circuits found again; the circuit has {edges}; n: {what}"),
        Metric(f"{name}_sd", f"SD of edges over {what}", deviation, "edges", "lower",
               interval=interval, n=len(counts), n_failed=int(deviation is None),
               reasons={} if deviation is not None else missing or too_few,
               description=f"standard deviation of the count of edges; n: {what}"),
        _over(f"{name}_jaccard", f"Overlap over {what}", found.jaccard, "", "higher",
              missing or found.failed, f"mean Jaccard overlap with the circuit; n: {what}"),
    ]  # fmt: skip


def standard_deviation(counts: Sequence[float]) -> tuple[float | None, Interval | None]:
    """Return the standard deviation of counts and its chi-square interval.

    The interval is sqrt((n - 1) s^2 / chi2), exact for normal draws. Counts are whole numbers: in
    its upper end 1/12, the variance of rounding, is added to s^2, so that equal counts do not say
    that nothing varies.

    Returns:
        (None, None) with fewer than ``LEAST_DRAWS`` counts.
    """
    from scipy.stats import chi2

    n = len(counts)
    if n < LEAST_DRAWS:
        return None, None
    variance = float(np.var(counts, ddof=1))
    tail = (1 - LEVEL) / 2
    low, high = (
        math.sqrt((n - 1) * value / float(chi2.ppf(point, n - 1)))
        for value, point in ((variance, 1 - tail), (variance + 1 / 12, tail))
    )
    return math.sqrt(variance), Interval(low, high, LEVEL, f"chi-square, {n} draws")


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
