"""The figures of a model's lenses, with intervals over held-out stories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import bootstrap, percentile_interval
from evaluations.suite.lens.causal import EDITS, SMALLEST, Effects
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.lenses import Lenses
from evaluations.suite.lens.measure import Curve

ENOUGH_POINTS = 10
DIVERGED = "prediction not finite"
PAIRS = (("oca", "tuned"), ("oca", "mean"), ("oca", "shared"), ("tuned", "mean"))


def interval_of_mean(values: np.ndarray, config: LensConfig) -> Interval | None:
    """Return the bootstrap interval of the mean over stories."""
    return bootstrap(values, np.ones_like(values), resamples=config.resamples, seed=config.seed)


def curve_metrics(
    curves: Mapping[str, Curve], floor: Float[np.ndarray, " windows"], config: LensConfig
) -> list[Metric]:
    """Return the area under each lens's curve, differences of areas, agreement, and the floor."""
    found = [
        Metric(
            "floor_kl",
            "Floor",
            float(floor.mean()),
            "nats",
            interval=interval_of_mean(floor, config),
            n=len(floor),
            description="KL of the mean prediction: the cost of knowing nothing of the text",
        )
    ]
    for kind, curve in curves.items():
        found.append(_area(f"area_{kind}", f"Area, {kind}", curve.kl.mean(0), config))
        found.append(_share_of_floor(kind, curve.kl.mean(0), floor, config))
        found.append(_agreement(kind, curve.agreement.mean(0), config))
    for first, second in PAIRS:
        if first in curves and second in curves:
            difference = curves[first].kl.mean(0) - curves[second].kl.mean(0)
            name, title = f"area_{first}_minus_{second}", f"Area, {first} - {second}"
            found.append(_area(name, title, difference, config))
    return found


def _area(name: str, title: str, values: np.ndarray, config: LensConfig) -> Metric:
    is_known = bool(np.isfinite(values).all())
    return Metric(
        name,
        title,
        float(values.mean()) if is_known else None,
        "nats",
        "lower",
        interval=interval_of_mean(values, config) if is_known else None,
        n=len(values),
        n_failed=int((~np.isfinite(values)).sum()),
        reasons={} if is_known else {DIVERGED: int((~np.isfinite(values)).sum())},
        description="mean over layers of KL(model || lens), held-out stories",
    )


def _share_of_floor(kind: str, values: np.ndarray, floor: np.ndarray, config: LensConfig) -> Metric:
    """The area as a share of the floor, so that a model's own entropy does not decide."""
    is_known = bool(np.isfinite(values).all()) and floor.sum() > 0
    return Metric(
        f"share_{kind}",
        f"Area / floor, {kind}",
        float(values.sum() / floor.sum()) if is_known else None,
        direction="lower",
        interval=bootstrap(values, floor, resamples=config.resamples, seed=config.seed)
        if is_known
        else None,
        n=len(values),
        reasons={} if is_known else {DIVERGED: 1},
        description="area under the curve divided by the floor",
    )


def _agreement(kind: str, values: np.ndarray, config: LensConfig) -> Metric:
    is_known = bool(np.isfinite(values).all())
    return Metric(
        f"agreement_{kind}",
        f"Top-1 agreement, {kind}",
        float(values.mean()) if is_known else None,
        direction="higher",
        interval=interval_of_mean(values, config) if is_known else None,
        n=len(values),
        reasons={} if is_known else {DIVERGED: int((~np.isfinite(values)).sum())},
        description="share of positions with the model's top token, mean over layers",
    )


def spent_metrics(lenses: Lenses) -> list[Metric]:
    """Return what each lens took: numbers estimated, positions read."""
    found = []
    for kind, spent in lenses.spent.items():
        found += [
            Metric(f"parameters_{kind}", f"Parameters, {kind}", spent.parameters),
            Metric(f"read_{kind}", f"Positions read, {kind}", spent.read),
        ]
    open_fits = [
        one
        for kind in ("oca", "shared")
        for one in lenses.fits.get(kind, ())
        if not one["converged"]
    ]
    n = sum(len(lenses.fits.get(kind, ())) for kind in ("oca", "shared"))
    if n:
        found.append(
            Metric(
                "not_converged",
                "Fits not converged",
                len(open_fits),
                direction="lower",
                n=n,
                description="fits of constants whose gap or decrement is too large",
            )
        )
    return found


def layer_rows(
    curves: Mapping[str, Curve], lenses: Lenses, config: LensConfig
) -> list[dict[str, Any]]:
    """Return a row for each lens and layer: KL and agreement with intervals, and the fit."""
    found = []
    for kind, curve in curves.items():
        fits = lenses.fits.get(kind, [])
        for layer in range(len(curve.kl)):
            row: dict[str, Any] = {"lens": kind, "layer": layer}
            for name, values in (("kl", curve.kl[layer]), ("agreement", curve.agreement[layer])):
                interval = interval_of_mean(values, config)
                row |= {
                    name: float(values.mean()),
                    f"{name}_low": interval and interval.low,
                    f"{name}_high": interval and interval.high,
                }
            row["n"] = curve.kl.shape[1]
            row["fit"] = fits[layer] if len(fits) == len(curve.kl) else None
            found.append(row)
    return found


# Edits -------------------------------------------------------------------------------------------

Key = tuple[str, int, str, str]
"""Basis, layer, edit and lens."""


def edit_rows(effects: Mapping[Key, Effects], config: LensConfig) -> list[dict[str, Any]]:
    """Return a row for each basis, layer, edit and lens: magnitude and direction."""
    found = []
    for (basis, layer, edit, kind), one in effects.items():
        magnitude = correlate([one], config)
        direction = mean_cosine([one], config)
        found.append(
            {
                "basis": basis,
                "layer": layer,
                "edit": edit,
                "lens": kind,
                "model_kl": float(one.model.mean()),
                **_columns("magnitude", magnitude),
                **_columns("direction", direction),
                "points": magnitude.n,
                "left_out": magnitude.n_failed,
            }
        )
    return found


def _columns(name: str, metric: Metric) -> dict[str, Any]:
    interval = metric.interval
    return {
        name: metric.value,
        f"{name}_low": interval and interval.low,
        f"{name}_high": interval and interval.high,
    }


def edit_metrics(effects: Mapping[Key, Effects], config: LensConfig) -> list[Metric]:
    """Return magnitude and direction of each basis, edit and lens: means over the layers."""
    found = []
    for basis in dict.fromkeys(key[0] for key in effects):
        for edit in EDITS:
            for kind in dict.fromkeys(key[3] for key in effects):
                layers = [
                    one for key, one in effects.items() if (key[0], *key[2:]) == (basis, edit, kind)
                ]
                if layers:
                    ending = f"_{edit}_{basis}_{kind}"
                    found.append(correlate(layers, config, f"magnitude{ending}"))
                    found.append(mean_cosine(layers, config, f"direction{ending}"))
    return found


def correlate(layers: Sequence[Effects], config: LensConfig, name: str = "magnitude") -> Metric:
    """Pearson correlation of ln KL(p || p') and ln KL(lens || lens'), mean over layers.

    Over all edits and prompts; the interval is a bootstrap over prompts. Points at which either KL
    is below ``SMALLEST`` are left out, and counted.
    """
    sums, n_failed, n = [], 0, 0
    for one in layers:
        kept = (one.model > SMALLEST) & (one.lens > SMALLEST)
        n_failed, n = n_failed + int((~kept).sum()), n + int(kept.sum())
        x, y = (np.log(np.where(kept, values, 1.0)) for values in (one.model, one.lens))
        parts = (kept, x, y, x * x, y * y, x * y)
        sums.append(np.stack([(kept * part).sum(0) for part in parts]))
    table = np.stack(sums)  # layer, sum, prompt
    value = _pearson(table, np.ones((1, table.shape[-1])))[0] if n >= ENOUGH_POINTS else np.nan
    draws = np.random.default_rng(config.seed).multinomial(
        table.shape[-1], np.full(table.shape[-1], 1 / table.shape[-1]), config.resamples
    )
    drawn = _pearson(table, draws) if np.isfinite(value) else np.full(1, np.nan)
    return Metric(
        name,
        name.replace("_", ", ").capitalize(),
        float(value) if np.isfinite(value) else None,
        direction="higher",
        interval=_percentile(drawn, table.shape[-1], config),
        n=n,
        n_failed=n_failed,
        reasons={
            **({f"KL below {SMALLEST:g} nats": n_failed} if n_failed else {}),
            **({} if np.isfinite(value) else {"too few edits that move both": 1}),
        },
        description="correlation of ln KL of the model's and the lens's change, mean over layers",
    )


def _pearson(
    table: Float[np.ndarray, "layers sums prompts"], counts: Any
) -> Float[np.ndarray, " resamples"]:
    n, x, y, xx, yy, xy = np.moveaxis(table @ np.asarray(counts, dtype=float).T, 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = xy - x * y / n
        found = covariance / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    mean: np.ndarray = found.mean(0)
    return mean


def _percentile(drawn: np.ndarray, n: int, config: LensConfig) -> Interval | None:
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return None
    method = f"percentile bootstrap over {n} prompts, {config.resamples} resamples"
    return percentile_interval(known, method)


def mean_cosine(layers: Sequence[Effects], config: LensConfig, name: str = "direction") -> Metric:
    """Mean over edits and prompts of the weighted correlation of the changes, mean over layers."""
    cosines = np.stack([one.cosine for one in layers])  # layer, edit, prompt
    kept = np.isfinite(cosines)
    sums, counts = np.where(kept, cosines, 0).sum(1), kept.sum(1)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0).mean(0)
    n_failed = int((~kept).sum())
    is_known = bool((counts > 0).all())
    return Metric(
        name,
        name.replace("_", ", ").capitalize(),
        float((sums.sum(1) / counts.sum(1)).mean()) if is_known else None,
        direction="higher",
        interval=interval_of_mean(means, config) if is_known else None,
        n=int(kept.sum()),
        n_failed=n_failed,
        reasons={"no change of a prediction": n_failed} if n_failed else {},
        description="correlation of the changes of log-probabilities, weighted by p",
    )
