"""The metrics of ``trace``, and where its curves are put."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from evaluations.core.record import Direction, Metric
from evaluations.core.statistics import share_interval
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.curves import (
    DECIMALS,
    SMALLEST,
    effective_layers,
    peak_over_mean,
    rank_correlation,
)
from evaluations.suite.trace.drawn import extra
from evaluations.suite.trace.figures import NO_PARTNER, Figures
from evaluations.suite.trace.fit import Constants
from evaluations.suite.trace.measure import TRUTH, Losses, Traced
from evaluations.suite.trace.words import KIND, NAMES, WHERE


def all_metrics(traced: Traced, config: TraceConfig) -> tuple[list[Metric], dict[str, Any]]:
    """Return the metrics of a model, and the curves behind them."""
    figures = Figures(traced, config)
    metrics = [
        *_damage(figures),
        *_convergence(traced.constants),
        *_peaks(figures),
        *_precision(figures),
        *_agreement(figures),
        *_controls(figures),
        *planted_truth(figures),
    ]
    return metrics, extra(figures)


def knowledge(n_known: int, n: int, n_traced: int, reasons: Mapping[str, int]) -> list[Metric]:
    """Return how many of the facts are known, and how many are traced.

    Args:
        n_known: facts whose attribute's first token is the model's first choice.
        n: facts in the model's tokens.
        n_traced: those that are known, or all of them where the model's own answers are traced.
        reasons: how many facts are left out, those that have no tokens included.
    """
    return [
        Metric(
            "known",
            "Share of facts known",
            n_known / n,
            "share",
            "higher",
            interval=share_interval(n_known, n, "facts"),
            n=n,
            description="Facts whose attribute's first token is the model's first choice",
        ),
        Metric(
            "facts_traced",
            "Facts traced",
            float(n_traced),
            "facts",
            n=n_traced + sum(reasons.values()),
            n_failed=sum(reasons.values()),
            reasons=dict(reasons),
            description="Facts whose answer is traced; the others are left out, with the reason",
        ),
    ]


def undefined(config: TraceConfig, n: int, reason: str) -> list[Metric]:
    """Return the main metrics of a model with too few facts, null with the reason."""
    names = [
        (f"{name}_{method}", f"{title}, {NAMES[method]}")
        for method in config.methods
        for name, title in (
            ("damage", "Probability lost"),
            ("layers", "Effective layers"),
            ("peak", "Peak over mean"),
            ("agreement", "Agreement with knock-out"),
        )
    ]
    return [
        Metric(name, title, None, n=n, n_failed=n, reasons={reason: max(1, n)})
        for name, title in names
    ]


def _damage(figures: Figures) -> list[Metric]:
    """What the corruption costs: the denominator of all effects."""
    return [
        figures.metric(
            f"damage_{method}",
            f"Probability lost, {NAMES[method]}",
            figures.resamples.means(losses.corrupted[None].numpy())[0],
            "Mean of (p_clean - p_corrupted)_+ over held-out facts, nothing restored",
            method=method,
        )
        for method, losses in figures.traced.held.items()
    ]


def _convergence(fitted: Constants | None) -> list[Metric]:
    """How many constants may not be at a minimum: their effects are at least what is reported."""
    if fitted is None:
        return []
    n = len(fitted.vectors)
    return [
        Metric(
            "not_converged",
            "Fits not converged",
            float(n - int(fitted.converged.sum())),
            "fits",
            "lower",
            n=n,
            description="Constants whose gradient or gap is above the certificate's limits",
        ),
        Metric(
            "largest_gap",
            "Largest gap of a fit",
            float(fitted.gap.max()),
            "",
            "lower",
            n=n,
            description="By how much the least settled fit's loss, a probability, fell in the "
            "second half of its evaluations",
        ),
    ]


def _peaks(figures: Figures) -> list[Metric]:
    """Each curve at the layer where it is highest on the facts fitted on."""
    metrics = []
    for method in figures.effects:
        for kind, tokens, window in figures.curves:
            curve = (kind, tokens, window)
            fitted = figures.fitted(method, curve)
            at = int(np.nanargmax(fitted)) if np.isfinite(fitted).any() else 0
            metrics.append(
                figures.metric(
                    f"aie_{method}_{kind}_{tokens}_w{window}",
                    f"AIE, {NAMES[method]}, {KIND[kind]} at {WHERE[tokens]}, window {window}",
                    figures.of(method, curve)[at],
                    f"Average indirect effect at layer {at}, where it is largest on the facts "
                    "that constants are fitted on; measured on held-out facts",
                    method=method,
                    tokens=tokens,
                )
            )
    return metrics


def _precision(figures: Figures) -> list[Metric]:
    """How few layers have the effect: mean over curves, each by the size of its effects."""
    window = min(figures.config.windows)
    curves = [c for c in figures.curves if c[2] == window and c[1] not in TRUTH]
    measures: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray], Direction], ...] = (
        ("layers", "Effective layers", effective_layers, "lower"),
        ("peak", "Peak over mean", peak_over_mean, "higher"),
    )
    metrics = []
    for method in figures.effects:
        effects = np.stack([figures.of(method, curve) for curve in curves])
        weights = effects.clip(min=0).sum(1)
        for name, title, of, direction in measures:
            found = np.stack([of(one) for one in effects])
            with np.errstate(invalid="ignore"):
                mean = (np.where(weights > 0, found, 0) * weights).sum(0) / weights.sum(0)
            metrics.append(
                figures.metric(
                    f"{name}_{method}",
                    f"{title}, {NAMES[method]}",
                    mean,
                    f"{title} of the AIE, effects below 0 taken as 0: mean over outputs and tokens "
                    f"in proportion to the sum of their effects, window {window}",
                    direction,
                    "no effect above 0",
                    method=method,
                )
            )
    return metrics


def _agreement(figures: Figures) -> list[Metric]:
    """Rank correlation over points of the effect with the loss of a knock-out."""
    traced, window = figures.traced, min(figures.config.windows)
    assert traced.knocked is not None
    knocked = figures.resamples.means(traced.knocked.p.numpy())
    curves = [c for c in figures.curves if c[2] == window and c[1] not in TRUTH]
    rows = [row for curve in curves for row in figures.rows(traced.plan, curve)]
    return [
        figures.metric(
            f"agreement_{method}",
            f"Agreement with knock-out, {NAMES[method]}",
            rank_correlation(effects[rows], knocked[rows]),
            "Spearman's correlation, over layers, outputs and tokens, of the AIE and the "
            "probability lost where the same outputs are 0 in the clean run, both to "
            f"{DECIMALS} decimals; window {window}",
            "higher",
            "effects or knock-outs do not vary",
            method=method,
        )
        for method, effects in figures.effects.items()
    ]


def _controls(figures: Figures) -> list[Metric]:
    """Better constants, better places, neighbouring layers, and a span beside the subject."""
    traced = figures.traced
    metrics = []
    plain = [c for c in figures.curves if c[1] not in TRUTH]
    for name, other, what in (
        ("gain_oat_gnt", "gnt", "optimal constants less Gaussian noise"),
        ("gain_oat_shared", "oat_shared", "optimal constants less one shared constant"),
    ):
        if {"oat", other} <= figures.effects.keys():
            difference = [figures.of("oat", c) - figures.of(other, c) for c in plain]
            metrics.append(
                figures.metric(
                    name,
                    f"AIE, {what}",
                    np.concatenate(difference).mean(0),
                    "Mean over layers, outputs, tokens and windows of the difference, same facts",
                )
            )
    for window, by_method in traced.random.items():
        for method, losses in by_method.items():
            metrics.append(_against_random(figures, window, method, losses))
    for method, loss in traced.span.items():
        own = figures.resamples.means(loss[None].numpy())[0]
        subject = torch.where(loss.isnan(), torch.nan, traced.held[method].corrupted)
        below = figures.resamples.means(subject[None].numpy())[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(below >= SMALLEST, own / below, np.nan)
        metrics.append(
            figures.metric(
                f"span_{method}",
                f"Loss from another span, {NAMES[method]}",
                ratio,
                "Probability lost with as many tokens beside the subject corrupted, over that with "
                "the subject corrupted",
                "lower",
            )
        )
    return metrics


def _against_random(figures: Figures, window: int, method: str, losses: Losses) -> Metric:
    """Neighbouring layers less random sets of as many."""
    traced = figures.traced
    size = len(traced.random_plans[window][1].layers)
    effects = figures.effects_of(losses)
    plan = traced.plan
    rows = [
        at
        for (_, tokens, width, _), at in plan.at.items()
        if width == window and tokens not in TRUTH and len(plan.problems[at].layers) == size
    ]
    return figures.metric(
        f"neighbours_{method}_w{window}",
        f"AIE, neighbouring less random layers, {NAMES[method]}, window {window}",
        figures.effects[method][rows].mean(0) - effects[1:].mean(0),
        f"Mean AIE of {size} neighbouring layers less that of {size} layers drawn at random",
    )


def planted_truth(figures: Figures) -> list[Metric]:
    """Return whether each method finds the token that decides, where that is planted."""
    traced, n = figures.traced, int(figures.known.sum())
    if not n:
        return []
    metrics = []
    for where, kept in traced.kept.items():
        hits, of = int(kept.sum()), len(kept)
        metrics.append(
            Metric(
                f"kept_{where}",
                f"Answer kept, {WHERE[where]} swapped",
                hits / of if of else None,
                "share",
                interval=share_interval(hits, of, "facts") if of else None,
                n=of,
                n_failed=traced.n_without_partner,
                reasons={NO_PARTNER: traced.n_without_partner} if traced.n_without_partner else {},
                description="Held-out facts whose answer stays the first choice with this token "
                "of the subject taken from an unrelated one: the planted truth, checked",
            )
        )
    windows = sorted({window for _, tokens, window in figures.curves if tokens in TRUTH})
    for method in traced.held:
        for window in windows:
            metrics += _found(figures, method, window)
    return metrics


def _found(figures: Figures, method: str, window: int) -> list[Metric]:
    losses, plan = figures.traced.held[method], figures.traced.plan
    kinds = sorted({kind for kind, tokens, _ in figures.curves if tokens in TRUTH})
    rows = {
        where: [row for kind in kinds for row in figures.rows(plan, (kind, where, window))]
        for where in TRUTH
    }
    changed = figures.known & ~losses.corrupted.isnan()
    restored = {where: -losses.p[some].sum(0)[changed] for where, some in rows.items()}
    hits = int((restored["deciding"] > restored["other"]).sum())
    of, n_failed = figures.n_facts(method, "deciding")
    n = of - n_failed
    margin = [
        figures.of(method, (kind, "deciding", window)) - figures.of(method, (kind, "other", window))
        for kind in kinds
    ]
    ending = "" if window == 1 else f"_w{window}"
    what = NAMES[method] if window == 1 else f"{NAMES[method]}, window {window}"
    return [
        Metric(
            f"found_{method}{ending}",
            f"Deciding token found, {what}",
            hits / n if n else None,
            "share",
            "higher",
            interval=share_interval(hits, n, "facts") if n else None,
            n=n,
            n_failed=n_failed,
            reasons={NO_PARTNER: n_failed} if n_failed else {},
            description="Held-out facts whose answer is brought back further by restoring outputs "
            "at the subject token that decides than at the other, summed over layers and outputs; "
            "chance is 0.5",
        ),
        figures.metric(
            f"margin_{method}{ending}",
            f"AIE, deciding less other token, {what}",
            np.concatenate(margin).mean(0),
            "Mean over layers and outputs of the AIE at the subject token that decides less that "
            "at the other",
            "higher",
            method=method,
            tokens="deciding",
        ),
    ]
