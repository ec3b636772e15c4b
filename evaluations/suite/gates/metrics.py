"""The figures of ``gates`` as metrics, and the curves behind them."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from evaluations.core.record import Interval, Metric
from evaluations.core.statistics import LEVEL, bootstrap, ratio
from evaluations.core.text import Text
from evaluations.suite.gates import usage as use
from evaluations.suite.gates.interventions import INTERVENTIONS, MaskLosses
from evaluations.suite.gates.leak import Leak

Z = 1.959963984540054  # the quantile of the normal distribution that belongs to LEVEL
SITE_TITLES = {"attention": "attention units", "neuron": "neurons"}


def usage_metrics(usage: use.Usage, site: str) -> list[Metric]:
    """Means over the layers; the layers themselves are in the record's ``extra``."""
    n = int(usage.tokens.sum())
    units = usage.n_layers * usage.n_units
    title = SITE_TITLES[site]
    entropy, most = use.entropy(usage), use.maximum_entropy(usage)
    means = "mean over layers; n: tokens; error clustered over stories"
    scale = most or math.nan  # one unit has no entropy to take a share of
    share = use.Estimate(entropy.value / scale, entropy.influence / scale)
    return [
        _mean(f"{site}_dead", f"Dead {title}", use.dead(usage), "share", units,
              "share of all layers' units that win at no token of the text; n: units; error by "
              "jackknife over stories"),
        _mean(f"{site}_entropy", f"Mask entropy, {title}", entropy, "bits", n,
              f"entropy of the distribution of wins over units, at most {most:.4g}; {means}"),
        _mean(f"{site}_entropy_share", f"Mask entropy over its maximum, {title}", share, "share", n,
              f"entropy / log2 n; {means}", missing="one unit"),
        _mean(f"{site}_overlap", f"Overlap of neighbours' masks, {title}",
              use.neighbour_overlap(usage), "share of k", n, means),
        _mean(f"{site}_overlap_chance", f"Overlap of any two tokens' masks, {title}",
              use.chance_overlap(usage), "share of k", n, f"any two tokens of the text; {means}"),
        _mean(f"{site}_overlap_excess", f"Overlap of neighbours above chance, {title}",
              use.excess_overlap(usage), "share of k", n, means),
        _similarity(usage, site, n),
    ]  # fmt: skip


def cut_metric(text: Text, context: int) -> Metric:
    """What of the text no mask was looked at for."""
    cut = text.lengths - text.scored(context)
    return Metric(
        "cut_tokens", "Tokens cut at the context's end", float(cut.sum()), "tokens",
        n=int((cut > 0).sum()), description="not looked at; n: stories cut",
    )  # fmt: skip


def usage_curves(usage: use.Usage) -> dict[str, Any]:
    """Layer by layer, each figure with its standard error; and every unit's win frequency."""
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
        **{name: {"value": curve.value, "standard_error": curve.standard_error}
           for name, curve in curves.items()},
        # each layer's units in their own order, joined by spaces: one line a layer
        "frequency": [" ".join(f"{one:.4g}" for one in layer) for layer in frequency],
        "frequency_standard_error": [" ".join(f"{one:.2g}" for one in layer) for layer in error],
    }  # fmt: skip


LEAKS = {
    # metric: (title, probes whose bits are taken, probes whose bits are subtracted)
    "leak_mask": ("Next token read from a layer's masks", "mask", None),
    "leak_shuffled": ("... from shuffled masks", "shuffled", None),
    "leak_above_shuffled": ("... from masks above shuffled ones", "mask", "shuffled"),
    "leak_token": ("... from the current token", "token", None),
    "leak_mask_adds": ("... that masks add to a probe of the token", "token+mask", "token"),
    "leak_exchanged_adds": (
        "... that masks of other occurrences of the token add", "token+exchanged", "token"
    ),
    "leak_mask_excess": (
        "... that masks tell beyond the current token", "token+mask", "token+exchanged"
    ),
    "leak_residual": ("... from the clean stream at the block's input", "residual", None),
    "leak_final": ("... from the clean state after the final LN", "final", None),
}  # fmt: skip


def leak_metrics(leak: Leak, resamples: int, seed: int) -> list[Metric]:
    """Bits over the unigram baseline: masks, their controls, and what they tell beyond the token.

    A figure whose probes all are the unigram baseline itself is 0 in every story, which says
    nothing of its uncertainty: it has no interval.
    """
    n = int(leak.tokens.sum())
    metrics = []
    for name, (title, read, subtracted) in LEAKS.items():
        probes = [one.probe for one in leak.readings[read]]
        layers = leak.bits(read)
        if subtracted is not None:
            probes += [one.probe for one in leak.readings[subtracted]]
            other = leak.bits(subtracted)
            layers = [bits - other[layer % len(other)] for layer, bits in enumerate(layers)]
        sums = np.mean(layers, axis=0)
        found = ratio(sums, leak.tokens)
        description = (
            "bits gained over the unigram baseline by a linear probe on test stories, mean over "
            "layers where there are several; n: test tokens"
        )
        if all(probe.is_baseline for probe in probes):
            metrics.append(Metric(
                name, title, found.value, "bits/token", n=n, description=
                f"{description}; no interval: no probe read more than the unigram baseline",
            ))  # fmt: skip
            continue
        interval = bootstrap(sums, leak.tokens, resamples=resamples, seed=seed)
        metrics.append(Metric(
            name, title, found.value, "bits/token", None, found.standard_error, interval, n,
            description=description,
        ))  # fmt: skip
    every = [one for readings in leak.readings.values() for one in readings]
    unfinished = sum(not one.probe.converged for one in every)
    metrics.append(Metric(
        "leak_unconverged", "Probes that did not converge", float(unfinished), "probes", None,
        n=len(every), description="reached the last epoch before the rule of fitting stopped them",
    ))  # fmt: skip
    return metrics


def intervention_metrics(losses: MaskLosses, resamples: int, seed: int) -> list[Metric]:
    """The ablated loss under each intervention, and what it costs, paired by story."""
    metrics = [
        _loss("masks_clean_loss", "Cross-entropy of the clean stream", losses.nats["clean"],
              losses, resamples, seed),
        _loss("masks_own_loss", "Ablated cross-entropy, own masks", losses.nats["own"],
              losses, resamples, seed),
    ]  # fmt: skip
    for name in INTERVENTIONS:
        words = {"other_story": "masks of another story"}.get(name, f"{name} masks")
        changed = losses.nats[name]
        metrics.append(_loss(f"masks_{name}_loss", f"Ablated cross-entropy, {words}", changed,
                             losses, resamples, seed))  # fmt: skip
        metrics.append(_loss(f"masks_{name}_cost", f"What {words} cost", changed
                             - losses.nats["own"], losses, resamples, seed))  # fmt: skip
    return metrics


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
    description = f"mean over tokens of a sample of stories; {paired}n: tokens, failed: stories"
    direction: Literal["lower"] | None = "lower" if name.endswith("loss") else None
    n = int(losses.tokens[known].sum())
    if n == 0:
        return Metric(
            name, title, None, "nats/token", direction, n=0, n_failed=failed,
            reasons=reasons or {"no token": 1}, description=description,
        )  # fmt: skip
    found = ratio(sums[known], losses.tokens[known])
    interval = bootstrap(sums[known], losses.tokens[known], resamples=resamples, seed=seed)
    return Metric(
        name, title, found.value, "nats/token", direction, found.standard_error, interval, n,
        failed, reasons, description,
    )  # fmt: skip


def _similarity(usage: use.Usage, site: str, n: int) -> Metric:
    """The mean correlation over pairs of layers."""
    name, title = f"{site}_similarity", f"Similarity of layers' masks, {SITE_TITLES[site]}"
    found = use.layer_similarity(usage)
    pairs = np.triu(np.isfinite(found.value), 1)
    failed = usage.n_layers * (usage.n_layers - 1) // 2 - int(pairs.sum())
    reasons = {"overlap of masks never varies": failed} if failed else {}
    if not pairs.any():
        reasons = reasons or {"one layer": 1}
        return Metric(name, title, None, n=n, n_failed=max(1, failed), reasons=reasons)
    mean = found.mean(pairs)
    error = float(mean.standard_error)
    return Metric(
        name, title, float(mean.value), "correlation", None, error, _normal(mean), n, failed,
        reasons, "mean over pairs of layers of the correlation, over random pairs of tokens of a "
        "story, of how many winners the two share; error clustered over stories; n: tokens, "
        "failed: pairs of layers",
    )  # fmt: skip


def _mean(
    name: str, title: str, layers: use.Estimate, unit: str, n: int, description: str,
    missing: str = "no story has two tokens",
) -> Metric:  # fmt: skip
    """The mean over layers; where there is none, ``missing`` says why."""
    mean = layers.mean()
    if not np.isfinite(mean.value):
        return Metric(name, title, None, unit, n=n, n_failed=1, reasons={missing: 1},
                      description=description)  # fmt: skip
    return Metric(
        name, title, float(mean.value), unit, None, float(mean.standard_error), _normal(mean), n,
        description=description,
    )  # fmt: skip


def _normal(found: use.Estimate) -> Interval | None:
    value, error = float(found.value), float(found.standard_error)
    if not math.isfinite(error):
        return None
    n = len(found.influence)
    method = f"normal, standard error clustered over {n} stories"
    return Interval(value - Z * error, value + Z * error, LEVEL, method)
