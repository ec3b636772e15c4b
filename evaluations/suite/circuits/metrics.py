"""The metrics of ``acdc``, as records hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from evaluations.core.record import Direction, Interval, Metric
from evaluations.core.statistics import LEVEL, TAILS, mean_interval, percentile_interval
from evaluations.suite.circuits.case import Case, CircuitOutcome
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
from evaluations.suite.circuits.methods.find import FoundCircuit
from evaluations.tasks.pairs import Competence, wilson

ABLE = 0.9
"""Accuracy below which a circuit's edge count is marked as not meaningful."""

NOT_REQUESTED = {"not requested": 1}
NO_HELD_OUT = {"no held-out prompts": 1}
CMD_AND_CPR: tuple[tuple[Area, Callable[[Sequence[Point]], float | None], Direction, str], ...] = (
    (
        "cpr",
        cpr,
        "higher",
        "area under faithfulness, edges ranked by signed score; unbounded, 0.999 for a perfect "
        "method",
    ),
    ("cmd", cmd, "lower", "area of |1 - faithfulness|, edges ranked by absolute score"),
)


def mark(skill: Competence) -> str | None:
    """Return a warning about the circuit of a model that fails the task; None if it succeeds."""
    share = f"{skill.accuracy:.2f} [{skill.low:.2f}, {skill.high:.2f}]"
    if skill.at_chance:
        return (
            f"does not do the task: accuracy {share} is not above chance; edge count not meaningful"
        )
    if skill.accuracy < ABLE:
        return f"does the task poorly: accuracy {share} below {ABLE}; edge count not meaningful"
    return None


def _probability_difference(skill: Competence) -> list[Metric]:
    """The probability difference of a task with many right and wrong answers; else nothing."""
    differences = skill.probability_differences
    if not differences:
        return []
    return [
        Metric(
            "probability_difference",
            "Probability difference",
            sum(differences) / len(differences),
            "",
            "higher",
            interval=mean_interval(differences, "prompts"),
            n=len(differences),
            description="probability of all right answers minus that of all wrong ones, mean over "
            "prompts (greater-than: arXiv 2305.00586); n: prompts",
        )
    ]


def skill_metrics(skill: Competence) -> list[Metric]:
    """Return the model's performance on the task."""
    failed = {"logits not finite": skill.n_failed} if skill.n_failed else {}

    def accuracy(name: str, title: str, share: float, description: str) -> Metric:
        ends = wilson(round(share * skill.n), skill.n)
        interval = Interval(*ends, 0.95, f"Wilson, {skill.n} prompts")
        return Metric(
            name,
            title,
            share,
            "",
            "higher",
            interval=interval,
            n=skill.n,
            n_failed=skill.n_failed,
            reasons=failed,
            description=description,
        )

    return [
        *_probability_difference(skill),
        accuracy(
            "accuracy",
            "Accuracy: right answer above wrong answer",
            skill.accuracy,
            "share of prompts; chance is 0.5; n: prompts",
        ),
        accuracy(
            "top_accuracy",
            "Top-1 accuracy: right answer above all tokens",
            skill.top,
            "share of prompts; n: prompts",
        ),
        Metric(
            "logit_difference",
            "Logit difference",
            skill.logit_difference,
            "nats",
            "higher",
            skill.logit_difference_error,
            n=skill.n,
            n_failed=skill.n_failed,
            reasons=failed,
            description="mean of logit(right) - logit(wrong); n: prompts",
        ),
    ]


def task_metrics(
    skill: Competence, case: Case, resamples: int, seed: int, left_out: int = 0
) -> list[Metric]:
    """Return the model's performance on the task, and the KL of the fully corrupted model."""
    kl, error, interval = mean_over_prompts(case.empty.kl, resamples, seed)
    return [
        *skill_metrics(skill),
        Metric(
            "kl_corrupted",
            "KL, all edges replaced",
            kl,
            "nats",
            None,
            error,
            interval,
            case.prompts.n,
            left_out,
            {"not finite": left_out} if left_out else {},
            "mean KL(whole model || empty circuit) at the last position: the scale for tau; "
            "n: prompts",
        ),
    ]


def circuit_metrics(
    case: Case, held: Case | None, circuit: FoundCircuit, resamples: int, seed: int
) -> list[Metric]:
    """Return the circuit's size, its KL and faithfulness, and its margin to tau."""
    margin = circuit.margin if circuit.margin is not None else math.nan
    no_margin = circuit.margin is None or not math.isfinite(margin)
    return [
        Metric(
            "edges",
            "Edges in the circuit",
            float(circuit.n),
            "edges",
            "lower",
            n=case.graph.n_edges,
            description="chosen edges on a path of chosen edges from embedding to output; "
            "n: edges of the graph",
        ),
        Metric(
            "edges_chosen",
            "Edges chosen by the method",
            float(int(circuit.all_chosen.sum())),
            "edges",
            n=case.graph.n_edges,
            description="all edges the method keeps, including those on no path from embedding to "
            "output; n: edges of the graph",
        ),
        *_fit_metrics(case, circuit, resamples, seed, "", "discovery prompts"),
        *_fit_metrics(held, circuit, resamples, seed, "held_out_", "held-out prompts"),
        Metric(
            "margin",
            "Smallest margin to tau",
            None if no_margin else margin,
            "nats",
            "higher",
            n=circuit.tested,
            n_failed=int(no_margin),
            reasons={"none tested": 1} if no_margin else {},
            description="smallest |KL step - tau| over the tested edges; n: edges tested",
        ),
    ]


def _fit_metrics(
    case: Case | None, circuit: FoundCircuit, resamples: int, seed: int, prefix: str, prompts: str
) -> list[Metric]:
    """Return KL and faithfulness of the circuit on the prompts of a case."""
    names = (f"{prefix}kl" if prefix else "circuit_kl", f"{prefix}faithfulness")
    titles = (f"KL of the circuit, {prompts}", f"Faithfulness, {prompts}")
    if case is None:
        kl_missing = Metric(
            names[0], titles[0], None, "nats", "lower", n=0, n_failed=1, reasons=NO_HELD_OUT
        )
        return [
            kl_missing,
            Metric(names[1], titles[1], None, n=0, n_failed=1, reasons=NO_HELD_OUT),
        ]
    outcome, n = case.outcome(circuit.kept), case.prompts.n
    kl, error, interval = mean_over_prompts(outcome.kl, resamples, seed)
    share = faithfulness(case, outcome, resamples, seed)
    return [
        Metric(
            names[0],
            titles[0],
            kl,
            "nats",
            "lower",
            error,
            interval,
            n,
            description=f"mean KL(whole model || circuit) at the last position; n: {prompts}",
        ),
        Metric(
            names[1],
            titles[1],
            share.value,
            "",
            None,
            share.standard_error,
            share.interval,
            n,
            0 if share.value is not None else n,
            {} if share.value is not None else {UNDEFINED: n},
            "(m(circuit) - m(empty)) / (m(whole) - m(empty)), m the mean logit difference; "
            f"1 for the whole model; n: {prompts}",
        ),
    ]


def method_metrics(
    held: Case | None,
    curves: Mapping[Area, Sequence[Point]],
    resamples: int,
    seed: int,
    ranked: bool = True,
) -> list[Metric]:
    """Return CPR of the method's signed ranking and CMD of its absolute one, held-out prompts.

    Args:
        held: the held-out prompts.
        curves: circuits of growing size, by metric.
        resamples: number of bootstrap resamples of the prompts.
        seed: seed of the bootstrap.
        ranked: whether the method ranks edges; ACDC at a single threshold does not.
    """
    metrics = []
    for name, area, direction, definition in CMD_AND_CPR:
        points = curves[name]
        value = area(points) if points else None
        reason = "one tau ranks no edges" if not ranked else "no held-out prompts"
        empty = [f"{100 * point.share:g} %" for point in points if not point.edges]
        note = f"; no edges at {', '.join(empty)}" if empty else ""
        interval = None
        if held and value is not None:
            interval = area_interval(held, points, name, resamples, seed)
        metrics.append(
            Metric(
                name,
                name.upper(),
                value,
                "",
                direction,
                interval=interval,
                n=held.prompts.n if held else 0,
                n_failed=int(value is None),
                reasons={} if value is not None else {UNDEFINED if points else reason: 1},
                description=f"{definition}; over 0.1 ... 100 % of edges{note}; n: held-out prompts",
            )
        )
    return metrics


def random_metrics(
    case: Case,
    circuit: CircuitOutcome,
    outcomes: Sequence[CircuitOutcome],
    requested: int,
    held_out: bool = False,
) -> list[Metric]:
    """Return the metrics of connected random circuits with as many edges in each layer.

    Args:
        case: the prompts on which the circuit and the random circuits are measured.
        circuit: the outcome of the circuit.
        outcomes: those of the random circuits.
        requested: number of random circuits asked for.
        held_out: whether the prompts are held-out prompts.
    """
    values = [faithfulness(case, outcome).value for outcome in outcomes]
    known = [value for value in values if value is not None]
    kls = [float(outcome.kl.mean()) for outcome in outcomes]
    nearer = sum(kl <= float(circuit.kl.mean()) for kl in kls)
    missing: dict[str, int] = {}
    if not kls:
        no_path = {"no edge of the circuit lies on a path": requested}
        missing = no_path if requested else NOT_REQUESTED
    undefined = {UNDEFINED: len(values) - len(known)} if len(known) < len(values) else missing
    prompts = "held-out prompts" if held_out else "discovery prompts"
    about = f"connected, as many edges into each layer, on {prompts}; n: random circuits"
    return [
        _mean(
            Metric(
                "random_faithfulness",
                "Faithfulness of random circuits",
                None,
                description="mean over random circuits, " + about,
            ),
            known,
            undefined,
        ),
        _mean(
            Metric(
                "random_kl",
                "KL of random circuits",
                None,
                "nats",
                description="mean over random circuits, " + about,
            ),
            kls,
            missing,
        ),
        Metric(
            "random_p",
            "P-value against random circuits",
            (1 + nearer) / (1 + len(kls)) if kls else None,
            "",
            "lower",
            n=len(kls),
            n_failed=sum(missing.values()),
            reasons=missing,
            description="(1 + number of random circuits whose KL is at most the circuit's on "
            f"{prompts}) / (1 + n); n: random circuits",
        ),
    ]


def null_metrics(
    circuit: FoundCircuit, nulls: Sequence[FoundCircuit], reason: str, sized: bool
) -> list[Metric]:
    """Return size and overlap of the null task's circuits.

    Args:
        circuit: the circuit of the task.
        nulls: those of the null task.
        reason: why there are no circuits of the null task.
        sized: whether the method decides the number of edges; if it is given, no size is reported.
    """
    counts = [float(null.n) for null in nulls] if sized else []
    unsized = {} if counts else {reason or "size is given": 1}
    overlaps = [jaccard(circuit.kept, null.kept) for null in nulls]
    known = [overlap for overlap in overlaps if overlap is not None]
    empty = len(overlaps) - len(known)
    unknown = {"both circuits are empty": empty} if empty else {}
    size = Metric(
        "null_edges",
        "Edges, null task",
        None,
        "edges",
        description="mean edges of the null task's circuits (same template, as many tokens changed "
        "as in the task, none of them relevant to the answer); n: draws of the null task",
    )
    overlap = Metric(
        "null_jaccard",
        "Overlap with circuits of the null task",
        None,
        "",
        "lower",
        description="mean Jaccard overlap with the null task's circuits; n: draws of the null task",
    )
    interval_of = partial(mean_interval, things="draws")
    return [
        _mean(size, counts, unsized, interval_of),
        _mean(overlap, known, unknown if nulls else {reason: 1}, interval_of),
    ]


def spread_metrics(name: str, spread: Spread, edges: int, reason: str) -> list[Metric]:
    """Return size and overlap over bootstrap samples of prompts, or over visiting orders."""
    samples = {"bootstrap": "bootstrap samples of prompts", "orders": "random visiting orders"}
    what = samples[name]
    missing = {} if spread.edges else {reason: 1}
    counts = [float(count) for count in spread.edges]
    deviation, interval = standard_deviation(counts)
    too_few = {f"takes at least {LEAST_DRAWS}: --bootstrap {LEAST_DRAWS}": 1}
    size = Metric(
        f"{name}_edges",
        f"Edges over {what}",
        None,
        "edges",
        description=f"mean edges of the circuits of the {what}; the circuit has {edges}; n: {what}",
    )
    overlap = Metric(
        f"{name}_jaccard",
        f"Overlap over {what}",
        None,
        "",
        "higher",
        description=f"mean Jaccard overlap with the circuit; n: {what}",
    )
    return [
        _mean(size, counts, missing),
        Metric(
            f"{name}_sd",
            f"SD of edges over {what}",
            deviation,
            "edges",
            "lower",
            interval=interval,
            n=len(counts),
            n_failed=int(deviation is None),
            reasons={} if deviation is not None else missing or too_few,
            description=f"standard deviation of the number of edges; n: {what}",
        ),
        _mean(overlap, spread.jaccard, missing or spread.failed),
    ]


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
    low, high = (
        math.sqrt((n - 1) * value / float(chi2.ppf(point, n - 1)))
        for value, point in zip((variance, variance + 1 / 12), reversed(TAILS), strict=True)
    )
    return math.sqrt(variance), Interval(low, high, LEVEL, f"chi-square, {n} draws")


def _mean(
    metric: Metric,
    values: Sequence[float],
    reasons: dict[str, int],
    interval_of: Callable[[Sequence[float]], Interval | None] | None = None,
) -> Metric:
    """Return the metric with the mean over repetitions, its standard error and its interval.

    Args:
        metric: the metric without a value.
        values: one for each repetition.
        reasons: why values are missing, and how many.
        interval_of: computes the interval; by default the range of 95 % of the repetitions.
    """
    n = len(values)
    metric = dataclasses.replace(metric, n=n, n_failed=sum(reasons.values()), reasons=reasons)
    if not n:
        return metric
    return dataclasses.replace(
        metric,
        value=float(np.mean(values)),
        standard_error=float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None,
        interval=(interval_of or _range)(values),
    )


def _range(values: Sequence[float]) -> Interval | None:
    if len(values) < 2:
        return None
    return percentile_interval(values, "range of 95 % of the repetitions")
