"""The metrics of ``gates``, as records hold them, and the values of each layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import LEVEL, bootstrap, ratio
from evaluations.core.text import Text
from evaluations.suite.gates import usage as use
from evaluations.suite.gates.interventions import INTERVENTIONS, MaskLosses
from evaluations.suite.gates.leak import Leak

Z = 1.959963984540054  # quantile of the normal distribution for LEVEL
SITE_TITLES = {"attention": "attention units", "neuron": "neurons"}


def usage_metrics(usage: use.Usage, site: str) -> list[Metric]:
    """Return means over the layers of a site; the record's ``extra`` has the values by layer."""
    n = int(usage.tokens.sum())
    units = usage.n_layers * usage.n_units
    title = SITE_TITLES[site]
    entropy, maximum = use.entropy(usage), use.maximum_entropy(usage)
    means = "mean over layers; n: tokens; error clustered over stories"
    scale = maximum or math.nan  # with a single unit the normalised entropy is undefined
    share = use.LayerEstimate(entropy.value / scale, entropy.influence / scale)
    overlaps = (
        ("overlap", "Mask overlap of neighbouring tokens", use.neighbour_overlap, ""),
        ("overlap_chance", "Chance overlap of masks", use.chance_overlap, "any two tokens; "),
        ("overlap_excess", "Mask overlap of neighbours above chance", use.excess_overlap, ""),
    )
    return [
        _mean(
            Metric(
                f"{site}_dead",
                f"Dead {title}",
                None,
                "share",
                n=units,
                description="share of all layers' units that win at no token of the text; "
                "n: units; error by jackknife over stories",
            ),
            use.dead(usage),
        ),
        _mean(
            Metric(
                f"{site}_entropy",
                f"Mask entropy, {title}",
                None,
                "bits",
                n=n,
                description="entropy of the distribution of wins over units, at most "
                f"{maximum:.4g}; {means}",
            ),
            entropy,
        ),
        _mean(
            Metric(
                f"{site}_entropy_share",
                f"Normalised mask entropy, {title}",
                None,
                "share",
                n=n,
                description=f"entropy / log2 n; {means}",
            ),
            share,
            missing="one unit",
        ),
        *(
            _mean(
                Metric(
                    f"{site}_{name}",
                    f"{words}, {title}",
                    None,
                    "share of k",
                    n=n,
                    description=prefix + means,
                ),
                overlap(usage),
            )
            for name, words, overlap, prefix in overlaps
        ),
        _similarity(usage, site, n),
    ]


def cut_metric(text: Text, context: int) -> Metric:
    """Return the number of tokens beyond the context, where no masks are measured."""
    cut = text.lengths - text.scored(context)
    return Metric(
        "cut_tokens",
        "Tokens cut at the context's end",
        float(cut.sum()),
        "tokens",
        n=int((cut > 0).sum()),
        description="tokens not measured; n: stories cut",
    )


def usage_curves(usage: use.Usage) -> dict[str, Any]:
    """Return each metric by layer with its standard error, and the win frequency of every unit."""
    frequency, error = use.frequencies(usage)
    curves = {
        "entropy": use.entropy(usage),
        "dead": use.dead(usage),
        "overlap": use.neighbour_overlap(usage),
        "overlap_same_story": use.random_pair_overlap(usage),
        "overlap_chance": use.chance_overlap(usage),
        "overlap_excess": use.excess_overlap(usage),
        "similarity": use.layer_similarity(usage),
    }
    return {
        "k": usage.k,
        "units": usage.n_units,
        "tokens": int(usage.tokens.sum()),
        "maximum_entropy": use.maximum_entropy(usage),
        **{
            name: {"value": curve.value, "standard_error": curve.standard_error}
            for name, curve in curves.items()
        },
        # a text for each layer: the values of its units, joined by spaces
        "frequency": [" ".join(f"{value:.4g}" for value in layer) for layer in frequency],
        "frequency_standard_error": [
            " ".join(f"{value:.2g}" for value in layer) for layer in error
        ],
    }


LEAKS = {
    # metric: (title, probes whose bits are taken, probes whose bits are subtracted)
    "leak_mask": ("Next-token bits from masks", "mask", None),
    "leak_shuffled": ("Next-token bits from shuffled masks", "shuffled", None),
    "leak_above_shuffled": ("Next-token bits from masks above shuffled masks", "mask", "shuffled"),
    "leak_token": ("Next-token bits from the current token", "token", None),
    "leak_mask_adds": ("Bits added by masks to the current token", "token+mask", "token"),
    "leak_exchanged_adds": (
        "Bits added by masks of other occurrences of the token",
        "token+exchanged",
        "token",
    ),
    "leak_mask_excess": (
        "Bits in masks beyond the current token",
        "token+mask",
        "token+exchanged",
    ),
    "leak_residual": (
        "Next-token bits from the clean stream",
        "residual",
        None,
    ),
    "leak_final": ("Next-token bits from the final clean state", "final", None),
}


def leak_metrics(leak: Leak, resamples: int, seed: int) -> list[Metric]:
    """Return bits over the unigram baseline of masks, their controls and other features."""
    metrics = [
        _bits(leak, name, title, probes, subtracted, resamples, seed)
        for name, (title, probes, subtracted) in LEAKS.items()
    ]
    probes = [reading.probe for readings in leak.readings.values() for reading in readings]
    metrics.append(
        Metric(
            "leak_unconverged",
            "Probes that did not converge",
            float(sum(not probe.converged for probe in probes)),
            "probes",
            n=len(probes),
            description="number of probes that reached the maximum number of epochs",
        )
    )
    return metrics


def _bits(
    leak: Leak,
    name: str,
    title: str,
    probes: str,
    subtracted: str | None,
    resamples: int,
    seed: int,
) -> Metric:
    """Return the bits of probes, minus those of other probes, averaged over layers.

    There is no interval if all these probes are the unigram baseline: the value is then 0 for every
    story, which does not show its uncertainty.
    """
    used = list(leak.readings[probes])
    layers = leak.bits(probes)
    if subtracted is not None:
        used += leak.readings[subtracted]
        other = leak.bits(subtracted)
        layers = [bits - other[layer % len(other)] for layer, bits in enumerate(layers)]
    sums = np.mean(layers, axis=0)
    mean = ratio(sums, leak.tokens)
    metric = Metric(
        name,
        title,
        mean.value,
        "bits/token",
        standard_error=mean.standard_error,
        n=int(leak.tokens.sum()),
        description="bits gained over the unigram baseline by a linear probe on test stories, mean "
        "over layers if there are several; n: test tokens",
    )
    if all(reading.probe.is_baseline for reading in used):
        note = "; no interval: no probe is better than the unigram baseline"
        return dataclasses.replace(
            metric, standard_error=None, description=metric.description + note
        )
    interval = bootstrap(sums, leak.tokens, resamples=resamples, seed=seed)
    return dataclasses.replace(metric, interval=interval)


def intervention_metrics(losses: MaskLosses, resamples: int, seed: int) -> list[Metric]:
    """Return the ablated loss under each intervention, and its cost, paired by story."""
    own = losses.nats["own"]
    measured = [
        ("masks_clean_loss", "Cross-entropy of the clean stream", losses.nats["clean"]),
        ("masks_own_loss", "Ablated cross-entropy, own masks", own),
    ]
    for name in INTERVENTIONS:
        words = {"other_story": "masks of another story"}.get(name, f"{name} masks")
        changed = losses.nats[name]
        measured.append((f"masks_{name}_loss", f"Ablated cross-entropy, {words}", changed))
        measured.append((f"masks_{name}_cost", f"Cost of {words}", changed - own))
    return [_loss(*metric, losses, resamples, seed) for metric in measured]


def _loss(
    name: str,
    title: str,
    sums: Float[np.ndarray, " stories"],
    losses: MaskLosses,
    resamples: int,
    seed: int,
) -> Metric:
    known = np.isfinite(sums)
    failed = int((~known).sum())
    alone = int(losses.alone.sum()) if "other_story" in name else 0
    counted = {"no other story is as long": alone, "loss not finite": failed - alone}
    reasons = {reason: count for reason, count in counted.items() if count}
    paired = "paired by story; " if name.endswith("cost") else ""
    metric = Metric(
        name,
        title,
        None,
        "nats/token",
        "lower" if name.endswith("loss") else None,
        n=int(losses.tokens[known].sum()),
        n_failed=failed,
        reasons=reasons,
        description=f"mean over tokens of a sample of stories; {paired}n: tokens, failed: stories",
    )
    if not metric.n:
        return dataclasses.replace(metric, reasons=reasons or {"no token": 1})
    mean = ratio(sums[known], losses.tokens[known])
    interval = bootstrap(sums[known], losses.tokens[known], resamples=resamples, seed=seed)
    return dataclasses.replace(
        metric, value=mean.value, standard_error=mean.standard_error, interval=interval
    )


def _similarity(usage: use.Usage, site: str, n: int) -> Metric:
    """Return the mean correlation over pairs of layers."""
    name, title = f"{site}_similarity", f"Similarity of layers' masks, {SITE_TITLES[site]}"
    correlations = use.layer_similarity(usage)
    pairs = np.triu(np.isfinite(correlations.value), 1)
    failed = usage.n_layers * (usage.n_layers - 1) // 2 - int(pairs.sum())
    reasons = {"overlap of masks is constant": failed} if failed else {}
    if not pairs.any():
        reasons = reasons or {"one layer": 1}
        return Metric(name, title, None, n=n, n_failed=max(1, failed), reasons=reasons)
    metric = Metric(
        name,
        title,
        None,
        "correlation",
        n=n,
        n_failed=failed,
        reasons=reasons,
        description="correlation between two layers of the number of winners shared by two random "
        "tokens of a story, mean over pairs of layers; error clustered over stories; n: tokens, "
        "failed: pairs of layers",
    )
    return _with_estimate(metric, correlations.mean(pairs))


def _mean(
    metric: Metric, layers: use.LayerEstimate, missing: str = "no story has two tokens"
) -> Metric:
    """Return the metric with the mean over layers; ``missing`` is the reason if it is undefined."""
    mean = layers.mean()
    if not np.isfinite(mean.value):
        return dataclasses.replace(metric, n_failed=1, reasons={missing: 1})
    return _with_estimate(metric, mean)


def _with_estimate(metric: Metric, estimate: use.LayerEstimate) -> Metric:
    """Return the metric with value, standard error and normal interval of an estimate."""
    value, error = float(estimate.value), float(estimate.standard_error)
    interval = None
    if math.isfinite(error):
        n = len(estimate.influence)
        method = f"normal, standard error clustered over {n} stories"
        interval = Interval(value - Z * error, value + Z * error, LEVEL, method)
    return dataclasses.replace(metric, value=value, standard_error=error, interval=interval)
