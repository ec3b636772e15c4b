"""Sparsity of activations on the clean stream of a HookedTransformer.

Three measures of a token's activations a over the n units of a layer (Hurley and Rickard 2009,
"Comparing Measures of Sparsity"), each averaged over tokens:

- L0 fraction: share of units with |a| above a given share of the token's largest |a|. GELU is
  never exactly zero, so a threshold is needed; a relative threshold does not depend on the scale
  of the activations. 1/n if one unit is active, 1 if all are equal.
- Hoyer: (sqrt(n) - |a|_1 / |a|_2) / (sqrt(n) - 1). 0 if all are equal, 1 if one unit is active.
- Gini: sum_i (2 i - n - 1) |a|_(i) / (n sum |a|), |a| ascending. 0 if all are equal, 1 - 1/n if
  one unit is active.

The measures are undefined where all activations are zero: such tokens are counted as failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.record import Direction, Metric
from evaluations.core.statistics import Ratio, ratio
from evaluations.core.text import Text
from sat_interp._util import progress
from sat_interp.data.batches import story_batches

BATCH_TOKENS = 2048
SITES = {"z": "attn.hook_z", "post": "mlp.hook_post"}
SITE_TITLES = {"z": "attention z", "post": "MLP post-activations"}
MEASURES: dict[str, tuple[str, Direction]] = {
    "l0": ("L0 fraction", "lower"),
    "hoyer": ("Hoyer", "higher"),
    "gini": ("Gini", "higher"),
}

Activations = Float[Tensor, "*tokens units"]
PerToken = Float[Tensor, "*tokens"]


def l0_fraction(activations: Activations, threshold: float) -> PerToken:
    """Return the share of units above ``threshold`` times the largest; nan if all are zero."""
    size = activations.abs()
    largest = size.amax(-1, keepdim=True)
    share = (size > threshold * largest).to(size.dtype).mean(-1)
    return torch.where(largest.squeeze(-1) > 0, share, torch.nan)


def hoyer(activations: Activations) -> PerToken:
    """Return (sqrt(n) - L1 / L2) / (sqrt(n) - 1); nan if all are zero, and for a single unit."""
    root = activations.shape[-1] ** 0.5
    size = activations.abs()
    # scaled by the largest first: squares of tiny activations would underflow to zero
    size = size / size.amax(-1, keepdim=True)
    l1, l2 = size.sum(-1), size.square().sum(-1).sqrt()
    return (root - l1 / l2) / (root - 1) if root > 1 else torch.full_like(l1, torch.nan)


def gini(activations: Activations) -> PerToken:
    """Return the Gini coefficient of |a|; nan if all are zero."""
    ordered = activations.abs().sort(-1).values
    n = ordered.shape[-1]
    ranks = 2 * torch.arange(1, n + 1, device=ordered.device, dtype=ordered.dtype) - n - 1
    return (ordered * ranks).sum(-1) / (n * ordered.sum(-1))


@dataclass
class ActivationSparsity:
    """Sums of the measures by site, measure, layer and story."""

    stories: int
    tokens: int
    threshold: float
    sums: dict[tuple[str, str], Float[np.ndarray, "layers stories"]] = field(default_factory=dict)
    counts: dict[tuple[str, str], Float[np.ndarray, "layers stories"]] = field(default_factory=dict)

    def metrics(self) -> list[Metric]:
        """Return a metric for each site and measure, averaged over layers."""
        return [self._metric(site, measure) for site in SITES for measure in MEASURES]

    def per_layer(self) -> dict[str, Any]:
        """Return ``{"z_l0": {"value": [...], "standard_error": [...]}, ...}``, by layer."""
        layers: dict[str, Any] = {"stories": self.stories, "tokens": self.tokens}
        for (site, measure), sums in self.sums.items():
            counts = self.counts[site, measure]
            ratios = [ratio(*layer) for layer in zip(sums, counts, strict=True)]
            layers[f"{site}_{measure}"] = {
                "value": [layer.value for layer in ratios],
                "standard_error": [layer.standard_error for layer in ratios],
            }
        return layers

    def _metric(self, site: str, measure: str) -> Metric:
        title, direction = MEASURES[measure]
        mean, failed, reasons = Ratio(float("nan"), None), 0, {}
        if (site, measure) in self.sums:
            sums, counts = self.sums[site, measure], self.counts[site, measure]
            mean = ratio(sums.sum(0), counts.sum(0))
            failed = self.tokens * len(sums) - int(counts.sum())
            reasons = {"all activations zero, or not finite": failed} if failed else {}
        else:
            reasons = {"not asked for" if not self.stories else f"no {SITES[site]} in the model": 1}
        text = f"mean over tokens and layers of {self.stories} stories; n: tokens"
        if measure == "l0":
            text += f"; active: |a| > {self.threshold:g} of the token's largest"
        value = None if np.isnan(mean.value) else mean.value
        return Metric(
            f"{site}_{measure}",
            f"{title} of {SITE_TITLES[site]}",
            value,
            "",
            direction,
            mean.standard_error,
            n=self.tokens,
            n_failed=max(failed, 1 if reasons else 0),
            reasons=reasons,
            description=text,
        )


@torch.inference_mode()
def measure(
    model: HookedTransformer, text: Text, n_stories: int, threshold: float, seed: int
) -> ActivationSparsity:
    """Measure the sparsity of z and MLP post-activations on a random sample of stories.

    Args:
        n_stories: number of stories, drawn without replacement; all if there are fewer.
        threshold: a unit is active if its |a| exceeds this share of the token's largest.
    """
    context, layers = int(model.cfg.n_ctx), int(model.cfg.n_layers)
    chosen = text.sample(n_stories, seed)
    tokens = int(chosen.scored(context).sum())
    sparsity = ActivationSparsity(len(chosen), tokens, threshold)
    if not len(chosen):
        return sparsity
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "l0": partial(l0_fraction, threshold=threshold),
        "hoyer": hoyer,
        "gini": gini,
    }

    def add(values: Tensor, hook: Any, *, site: str, layer: int, stories: np.ndarray) -> None:
        del hook
        units = values.flatten(2)
        if units.dtype not in (torch.float32, torch.float64):
            units = units.float()
        for name, function in measures.items():
            per_token = function(units).double()
            is_finite = per_token.isfinite()
            shape = (layers, len(chosen))
            sums = sparsity.sums.setdefault((site, name), np.zeros(shape))
            counts = sparsity.counts.setdefault((site, name), np.zeros(shape))
            sums[layer, stories] = per_token.where(is_finite, 0.0).sum(1).cpu().numpy()
            counts[layer, stories] = is_finite.sum(1).cpu().numpy()

    with progress.bar(total=tokens, desc="lm: activations", unit="tok") as bar:
        for batch in story_batches(chosen.corpus, context, BATCH_TOKENS):
            inputs = batch.tokens[:, :-1].to(model.W_E.device)
            hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
                (name, partial(add, site=site, layer=layer, stories=batch.index.numpy()))
                for site, point in SITES.items()
                for layer in range(layers)
                if (name := f"blocks.{layer}.{point}") in model.hook_dict
            ]
            model.run_with_hooks(inputs, return_type=None, fwd_hooks=hooks, stop_at_layer=layers)
            bar.update(inputs.numel())
    return sparsity
