"""The figures of a model: its components together, and the bridge to self-ablation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap
from evaluations.suite.ablate.compare import (
    SMALL,
    Comparison,
    Statistic,
    compare,
    costs,
    draw_counts,
    log_pearson,
    mean_share,
    median_share,
    percentile,
    resampled,
    spearman,
    total_share,
)
from evaluations.suite.ablate.config import COMPARED, UNITS, AblateConfig
from evaluations.suite.ablate.measure import Measured
from evaluations.suite.ablate.switched_off import AblatedStream, SwitchedOff
from evaluations.tasks.pairs import Competence

LEAST_ZERO = 1e-3
"""Costs of zero below which a component has no spoof share, in nats."""
SKILLED = 0.9
NO_PARTNER, NOT_FINITE = "no other prompt of this length", "cost not finite"
"""Why the cost of an ablation is not known on a prompt."""
TITLES = {"own": "own gates", "top": "outside the top k", "random": "all but k random"}


def units(measured: Sequence[Measured]) -> list[Measured]:
    """Return heads and MLPs."""
    return [one for one in measured if one.kind in UNITS]


def mark(skill: Competence) -> str | None:
    """Return why figures on a task say little of this model; None where it does the task."""
    if skill.accuracy >= SKILLED:
        return None
    share = f"{skill.accuracy:.2f} [{skill.low:.2f}, {skill.high:.2f}]"
    return f"does the task poorly: accuracy {share} below {SKILLED}"


def task_metrics(skill: Competence) -> list[Metric]:
    """Return how well the model does the task."""
    interval = Interval(skill.low, skill.high, 0.95, f"Wilson, {skill.n:,} prompts")
    return [
        Metric(
            "task_accuracy",
            "Task accuracy",
            skill.accuracy,
            "",
            "higher",
            interval=interval,
            n=skill.n,
            n_failed=skill.n_failed,
            description="share of prompts whose right answer has the higher logit",
        )
    ]


def component_metrics(
    measured: Sequence[Measured],
    prior: float,
    config: AblateConfig,
    alone: Bool[np.ndarray, " prompt"],
) -> list[Metric]:
    """Return counts, the ceiling I, sums of costs, correlations and shares over heads and MLPs.

    Args:
        measured: the components.
        prior: the ceiling I, in nats.
        config: the settings.
        alone: which held-out prompts have no other of their length.
    """
    chosen = units(measured)
    fitted = [one for one in measured if "oa" in one.certificates]
    n_open = sum(not one.is_converged("oa") for one in fitted)
    n_overfit = sum(one.is_overfit("oa") for one in fitted)
    found = [
        Metric("components", "Components", len(measured), n=len(measured)),
        Metric(
            "not_converged",
            "Fits not converged",
            n_open,
            direction="lower",
            n=len(fitted),
            description="components whose gradient or gap is too large",
        ),
        Metric(
            "overfit",
            "Overfitted components",
            n_overfit,
            direction="lower",
            n=len(fitted),
            description="held-out cost above the fitted one by more than a fifth; in no comparison",
        ),
        Metric(
            "prior_kl",
            "Ceiling I",
            prior,
            "nats",
            description="KL of the predictions from their mean: the cost of knowing nothing",
        ),
    ]
    if chosen:
        for method in chosen[0].kl:
            found.append(_sum_metric(chosen, method, config, alone))
    for other in COMPARED:
        if chosen and {"oa", other} <= set(chosen[0].kl):
            found += _pair_metrics(chosen, ("oa", other), config)
    return found


def _sum_metric(
    chosen: Sequence[Measured],
    method: str,
    config: AblateConfig,
    alone: Bool[np.ndarray, " prompt"],
) -> Metric:
    """The sum over heads and MLPs of a method's held-out costs."""
    kl = costs(chosen, method)
    kept = np.isfinite(kl).all(0)
    sums = kl[:, kept].sum(0)
    n_failed = int((~kept).sum())
    n_alone = int((~kept & alone).sum()) if method == "resample" else 0
    reasons = {NO_PARTNER: n_alone, NOT_FINITE: n_failed - n_alone}
    return _mean_metric(
        f"delta_{method}",
        f"Sum of Delta, {method}",
        sums,
        config,
        n_failed=n_failed,
        reasons={reason: n for reason, n in reasons.items() if n},
        description=f"over heads and MLPs, held-out {config.things}",
    )


def _mean_metric(
    name: str, title: str, nats: np.ndarray, config: AblateConfig, **fields: Any
) -> Metric:
    """The mean over prompts of what each costs, in nats."""
    return Metric(
        name,
        title,
        float(nats.mean()) if len(nats) else None,
        "nats",
        interval=_over_prompts(nats, np.ones_like(nats), config),
        **{"n": len(nats), **fields},
    )


def _over_prompts(sums: np.ndarray, counts: np.ndarray, config: AblateConfig) -> Interval | None:
    return bootstrap(
        sums, counts, resamples=config.resamples, seed=config.seed, things=config.things
    )


def comparable(measured: Sequence[Measured], methods: Sequence[str]) -> list[Measured]:
    """Return the components none of whose fits by these methods is overfitted."""
    return [one for one in measured if not any(one.is_overfit(method) for method in methods)]


def _pair_metrics(
    chosen: Sequence[Measured], pair: tuple[str, str], config: AblateConfig
) -> list[Metric]:
    kept = comparable(chosen, pair)
    statistics: tuple[tuple[str, str, Statistic], ...] = (
        ("spearman", "Rank correlation", spearman),
        ("log_pearson", "Correlation of logs", log_pearson),
        ("mean_share", "Mean share", mean_share),
        ("median_share", "Median share", median_share),
    )
    return [
        _comparison_metric(
            f"{name}_{pair[0]}_{pair[1]}",
            f"{title}, {pair[0]} and {pair[1]}",
            compare(kept, pair, statistic, config),
            len(chosen) - len(kept),
        )
        for name, title, statistic in statistics
    ]


def _comparison_metric(name: str, title: str, found: Comparison, n_overfit: int) -> Metric:
    reasons = {"overfitted": n_overfit} if n_overfit else {}
    if found.value is None:
        reasons["too few components"] = 1
    return Metric(
        name,
        title,
        found.value,
        interval=found.interval,
        n=found.n,
        n_failed=n_overfit,
        reasons=reasons,
        description="over heads and MLPs, held-out",
    )


# The bridge --------------------------------------------------------------------------------------


def bridge_metrics(
    measured: Sequence[Measured],
    switched_off: Sequence[SwitchedOff],
    stream: AblatedStream | None,
    config: AblateConfig,
) -> list[Metric]:
    """Return spoofing (B1, B2), switched-off units (B3), concentration (B5) and redundancy (B6)."""
    chosen = units(measured)
    found: list[Metric] = []
    if chosen and {"oa", "zero"} <= set(chosen[0].kl):
        found += _spoofing(chosen, config)
        found += _concentration(chosen, config)
    found += _redundancy(measured, config)
    for one in switched_off:
        found += _switched_off_metrics(one, config)
    return found + (_stream_metrics(stream, config) if stream else [])


def _spoofing(chosen: Sequence[Measured], config: AblateConfig) -> list[Metric]:
    found = []
    kinds = (
        ("", "heads and MLPs", UNITS),
        ("_heads", "heads", ("head",)),
        ("_mlps", "MLPs", ("mlp",)),
    )
    for method, word in (
        ("zero", "Spoof share R"),
        ("mean", "Share of mean beyond oa"),
        ("mean_all", "Share of mean_all beyond oa"),
    ):
        if method not in chosen[0].kl:
            continue
        for suffix, title, of in kinds:
            some = [one for one in chosen if one.kind in of]
            if some:
                found.append(_share_metric(some, method, f"{word}, {title}", suffix, config))
    sizes = [one.size for one in chosen if one.size is not None]
    cosines = [one.cosine for one in chosen if one.cosine is not None]
    for name, title, values in (
        ("constant_size", "Median |a*| / rms |A|", sizes),
        ("constant_cosine", "Median cosine of a* and mean", cosines),
    ):
        found.append(
            Metric(name, title, float(np.median(values)) if values else None, n=len(values))
        )
    return found


def _share_metric(
    some: Sequence[Measured], method: str, title: str, suffix: str, config: AblateConfig
) -> Metric:
    """(sum of Delta by the method - sum of Delta_oa) / sum of Delta by the method."""
    other, best = costs(some, method), costs(some, "oa")
    kept = np.isfinite(other).all(0)
    sums, counts = (other - best)[:, kept].sum(0), other[:, kept].sum(0)
    total = float(counts.sum())
    n_overfit = sum(one.is_overfit("oa") for one in some)
    name = "spoof_share" if method == "zero" else f"beyond_oa_{method}"
    return Metric(
        f"{name}{suffix}",
        title,
        float(sums.sum()) / total if total > 0 else None,
        direction="lower" if method == "zero" else None,
        interval=_over_prompts(sums, counts, config),
        n=int(kept.sum()),
        reasons={"overfitted components": n_overfit} if n_overfit else {},
        description=f"(sum of Delta - sum of Delta_oa) / sum of Delta, held-out {config.things}",
    )


def _concentration(chosen: Sequence[Measured], config: AblateConfig) -> list[Metric]:
    """N_eff = exp(entropy of Delta_oa / sum) and the share of the top tenth of the components."""
    kl = costs(chosen, "oa")
    counts = draw_counts(kl.shape[1], config.resamples, config.seed)
    top = max(1, round(0.1 * len(chosen)))

    def effective(means: np.ndarray) -> np.ndarray:
        p = means / means.sum(1, keepdims=True)
        number: np.ndarray = np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum(1))
        return number

    def share(means: np.ndarray) -> np.ndarray:
        part: np.ndarray = np.sort(means, 1)[:, -top:].sum(1) / means.sum(1)
        return part

    found = []
    for name, title, statistic in (
        ("effective_components", "Effective number of components", effective),
        ("top_share", f"Share of the top {top} components", share),
    ):
        value = float(statistic(resampled(kl, np.ones((1, kl.shape[1]))))[0])
        interval = percentile(statistic(resampled(kl, counts)), kl.shape[1], config)
        found.append(Metric(name, title, value, interval=interval, n=len(chosen)))
    return found


def _redundancy(measured: Sequence[Measured], config: AblateConfig) -> list[Metric]:
    """Delta_oa of all heads of a layer minus the sum over its heads; the mean over layers."""
    sets = {one.layer: one for one in measured if one.kind == "heads" and "oa" in one.kl}
    gains = []
    for layer, together in sets.items():
        heads = [one for one in measured if one.kind == "head" and one.layer == layer]
        if sum(one.numbers for one in heads) == together.numbers:  # every head is measured
            gains.append(costs([together], "oa")[0] - costs(heads, "oa").sum(0))
    if not gains:
        return []
    mean = np.mean(gains, axis=0)
    return [
        _mean_metric(
            "redundancy",
            "Redundancy of heads",
            mean,
            config,
            n=len(gains),
            description="Delta_oa of all heads of a layer minus the sum over its heads, mean over "
            "layers; above 0 where heads stand in for each other",
        )
    ]


def _switched_off_metrics(switched_off: SwitchedOff, config: AblateConfig) -> list[Metric]:
    zero, best = switched_off.zero.numpy(), switched_off.constants.numpy()
    total, title, name = (
        float(zero.sum()),
        TITLES[switched_off.choice],
        f"losers_{switched_off.choice}",
    )
    return [
        _mean_metric(
            f"{name}_zero",
            f"Delta_zero, {title}",
            zero,
            config,
            description="units of all layers replaced by 0 in the clean stream",
        ),
        _mean_metric(
            f"{name}_oa",
            f"Delta_oa, {title}",
            best,
            config,
            description="the same units replaced by a constant each, fitted together",
        ),
        Metric(
            f"{name}_share",
            f"Spoof share, {title}",
            float((zero - best).sum()) / total if total > 0 else None,
            direction="lower",
            interval=_over_prompts(zero - best, zero, config),
            n=len(zero),
            reasons={} if switched_off.converged else {"fit stopped early: a lower bound": 1},
        ),
    ]


def _stream_metrics(stream: AblatedStream, config: AblateConfig) -> list[Metric]:
    zero, best = stream.zero.numpy(), stream.constants.numpy()
    return [
        _mean_metric(name, title, values, config)
        for name, title, values in (
            ("ablated_ce_zero", "Ablated stream's CE, zeros", zero),
            ("ablated_ce_constants", "Ablated stream's CE, constants", best),
            ("ablated_ce_gain", "Ablated stream's CE, zeros - constants", zero - best),
        )
    ]


# What a record holds besides ---------------------------------------------------------------------


def row(one: Measured, config: AblateConfig) -> dict[str, Any]:
    """Return a component as a record holds it: without the costs of single prompts."""
    held = {}
    for method in one.kl:
        values = np.array([value for value in one.kl[method] if value is not None])
        interval = _over_prompts(values, np.ones_like(values), config)
        held[method] = {
            "delta": one.held(method),
            "low": interval and interval.low,
            "high": interval and interval.high,
            "n": len(values),
            "n_failed": len(one.kl[method]) - len(values),
            "overfit": one.is_overfit(method),
        }
    zero, best = one.held("zero"), one.held("oa")
    share = None
    if zero is not None and best is not None and zero >= LEAST_ZERO:
        share = (zero - best) / zero
    return {
        "name": one.name,
        "kind": one.kind,
        "layer": one.layer,
        "index": one.index,
        "numbers": one.numbers,
        "fit": one.fit,
        "held": held,
        "certificates": one.certificates,
        "size": one.size,
        "cosine": one.cosine,
        "spoof_share": share,
        "refits": one.refits,
        "refit_sd": float(np.std(one.refits, ddof=1)) if len(one.refits) > 1 else None,
        "course": one.course,
    }


def correlations(measured: Sequence[Measured], config: AblateConfig) -> list[dict[str, Any]]:
    """Return rank and log correlations between all pairs of methods, over heads and MLPs.

    ``without_small`` leaves out components that cost less than ``SMALL`` by either method.
    """
    chosen = units(measured)
    found = []
    for pair in combinations(chosen[0].kl if chosen else (), 2):
        kept = comparable(chosen, pair)
        large = [one for one in kept if all((one.held(m) or 0) >= SMALL for m in pair)]
        row: dict[str, Any] = {"methods": pair, "overfit": len(chosen) - len(kept)}
        for name, statistic, some in (
            ("spearman", spearman, kept),
            ("log_pearson", log_pearson, kept),
            ("spearman_without_small", spearman, large),
        ):
            row[name] = compare(some, pair, statistic, config)
        found.append(row)
    return found


def shares(measured: Sequence[Measured], config: AblateConfig) -> list[dict[str, Any]]:
    """Return Delta_oa as a share of Delta by every other method, over heads and MLPs."""
    chosen, found = units(measured), []
    for method in chosen[0].kl if chosen and "oa" in chosen[0].kl else ():
        if method != "oa":
            kept = comparable(chosen, ("oa", method))
            one: dict[str, Any] = {"method": method}
            for name, statistic in (
                ("mean", mean_share),
                ("median", median_share),
                ("total", total_share),
            ):
                one[name] = compare(kept, ("oa", method), statistic, config)
            found.append(one)
    return found


def checks(measured: Sequence[Measured], prior: float) -> dict[str, Any]:
    """Return the inequalities that hold on fitted prompts, and the components that break them.

    C1: oa is at most zero and mean_all. C2: oa_pos is at most oa, zero, mean, mean_all and cf_mean.
    C3: no cost is negative. C4: a constant embedding costs at least I. C5: an attention layer's oa
    is at most that of all its heads. Only fits that converged are checked; the others are counted.
    """
    found: dict[str, Any] = {}

    def check(name: str, one: Measured, low: float, high: float, method: str) -> None:
        known = found.setdefault(name, {"n": 0, "not_converged": 0, "broken": []})
        if not one.is_converged(method):
            known["not_converged"] += 1
            return
        known["n"] += 1
        gap = one.certificates.get(method, {}).get("gap", 0.0)
        if low > high + 1e-6 + gap:
            known["broken"].append(one.name)

    joint = {one.layer: one for one in measured if one.kind == "heads" and "oa" in one.fit}
    for one in measured:
        for method in ("zero", "mean_all"):
            if {"oa", method} <= set(one.fit):
                check("C1", one, one.fit["oa"], one.fit[method], "oa")
        for method in set(one.fit_positions) - {"oa_pos"}:
            check("C2", one, one.fit_positions["oa_pos"], one.fit_positions[method], "oa_pos")
        check("C3", one, -min(one.fit.values()), 0.0, "none")
        if one.kind == "embedding" and "oa" in one.fit:
            check("C4", one, prior, one.fit["oa"], "oa")
        if one.kind == "attention" and "oa" in one.fit and one.layer in joint:
            check("C5", one, one.fit["oa"], joint[one.layer].fit["oa"], "oa")
    return found
