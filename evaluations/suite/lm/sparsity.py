"""How few of a layer's units are active at once, on the clean stream of any HookedTransformer.

Three measures of one token's activations a over the n units of a layer (Hurley and Rickard 2009,
"Comparing measures of sparsity"), each averaged over tokens:

- L0 fraction: share of units with |a| above a stated share of the token's largest |a|. GELU is
  never exactly zero, so a threshold there must be; a relative one does not hang on the scale.
  1/n for one unit alone, 1 for all equal.
- Hoyer: (sqrt(n) - |a|_1 / |a|_2) / (sqrt(n) - 1). 0 for all equal, 1 for one unit alone.
- Gini: sum_i (2 i - n - 1) |a|_(i) / (n sum |a|), |a| ascending. 0 for all equal, 1 - 1/n for one
  unit alone.

A token whose activations are all zero has no direction: it is counted as failed, not as 0 or 1.
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
    """Share of units above ``threshold`` times the largest; nan for all zeros."""
    size = activations.abs()
    largest = size.amax(-1, keepdim=True)
    share = (size > threshold * largest).to(size.dtype).mean(-1)
    return torch.where(largest.squeeze(-1) > 0, share, torch.nan)


def hoyer(activations: Activations) -> PerToken:
    """(sqrt(n) - L1 / L2) / (sqrt(n) - 1); nan for all zeros and for a single unit."""
    root = activations.shape[-1] ** 0.5
    size = activations.abs()
    # scaled by the largest first: squares of tiny activations would underflow to zero
    size = size / size.amax(-1, keepdim=True)
    l1, l2 = size.sum(-1), size.square().sum(-1).sqrt()
    return (root - l1 / l2) / (root - 1) if root > 1 else torch.full_like(l1, torch.nan)


def gini(activations: Activations) -> PerToken:
    """Gini coefficient of |a|; nan for all zeros."""
    ordered = activations.abs().sort(-1).values
    n = ordered.shape[-1]
    ranks = 2 * torch.arange(1, n + 1, device=ordered.device, dtype=ordered.dtype) - n - 1
    return (ordered * ranks).sum(-1) / (n * ordered.sum(-1))


@dataclass
class ActivationSparsity:
    """Sums per site, measure, layer and story; they stay small however long the text is."""

    stories: int
    tokens: int
    threshold: float
    sums: dict[tuple[str, str], Float[np.ndarray, "layers stories"]] = field(default_factory=dict)
    counts: dict[tuple[str, str], Float[np.ndarray, "layers stories"]] = field(default_factory=dict)

    def metrics(self) -> list[Metric]:
        """One metric per site and measure, over all layers; None with a reason where no site is."""
        return [self._metric(site, measure) for site in SITES for measure in MEASURES]

    def per_layer(self) -> dict[str, Any]:
        """``{"z_l0": {"value": [...], "standard_error": [...]}, ...}`` by layer."""
        found: dict[str, Any] = {"stories": self.stories, "tokens": self.tokens}
        for (site, measure), sums in self.sums.items():
            counts = self.counts[site, measure]
            ratios = [ratio(*layer) for layer in zip(sums, counts, strict=True)]
            found[f"{site}_{measure}"] = {
                "value": [layer.value for layer in ratios],
                "standard_error": [layer.standard_error for layer in ratios],
            }
        return found

    def _metric(self, site: str, measure: str) -> Metric:
        title, direction = MEASURES[measure]
        value, failed, reasons = Ratio(float("nan"), None), 0, {}
        if (site, measure) in self.sums:
            sums, counts = self.sums[site, measure], self.counts[site, measure]
            value = ratio(sums.sum(0), counts.sum(0))
            failed = self.tokens * len(sums) - int(counts.sum())
            reasons = {"all activations zero, or not finite": failed} if failed else {}
        else:
            reasons = {"not asked for" if not self.stories else f"no {SITES[site]} in the model": 1}
        text = f"mean over tokens and layers of {self.stories} stories; n: tokens"
        if measure == "l0":
            text += f"; active: |a| > {self.threshold:g} of the token's largest"
        found = None if np.isnan(value.value) else value.value
        return Metric(
            f"{site}_{measure}", f"{title} of {SITE_TITLES[site]}", found, "", direction,
            value.standard_error, n=self.tokens, n_failed=max(failed, 1 if reasons else 0),
            reasons=reasons, description=text,
        )  # fmt: skip


@torch.inference_mode()
def measure(
    model: HookedTransformer, text: Text, n_stories: int, threshold: float, seed: int
) -> ActivationSparsity:
    """Stream a seeded sample of stories through the model and measure z and post-activations.

    Args:
        n_stories: stories drawn without replacement; all of them where there are fewer.
        threshold: share of the token's largest |a| above which a unit is active.
    """
    context, layers = int(model.cfg.n_ctx), int(model.cfg.n_layers)
    chosen = text.sample(n_stories, seed)
    tokens = int(chosen.scored(context).sum())
    found = ActivationSparsity(len(chosen), tokens, threshold)
    if not len(chosen):
        return found
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
            known = per_token.isfinite()
            shape = (layers, len(chosen))
            sums = found.sums.setdefault((site, name), np.zeros(shape))
            counts = found.counts.setdefault((site, name), np.zeros(shape))
            sums[layer, stories] = per_token.where(known, 0.0).sum(1).cpu().numpy()
            counts[layer, stories] = known.sum(1).cpu().numpy()

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
    return found
