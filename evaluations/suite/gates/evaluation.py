"""gates: which units the masks choose, what the choice tells, and what it costs to change it.

What is measured is defined where it is computed: ``usage.py`` (win frequencies, dead units,
entropy, overlaps), ``leak.py`` (probes from masks to the next token), ``interventions.py`` (the
ablated loss under other masks), ``picture.py`` (the units each token of a story selects).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens import HookedTransformer

from evaluations.core.runner import Evaluation, Result
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.versions import VERSIONS
from evaluations.suite.gates.interventions import measure_interventions
from evaluations.suite.gates.leak import check_stories, collect, described, measure_leak
from evaluations.suite.gates.masks import SITES, check_finite, gated
from evaluations.suite.gates.metrics import (
    cut_metric,
    intervention_metrics,
    leak_metrics,
    usage_curves,
    usage_metrics,
)
from evaluations.suite.gates.picture import picture
from evaluations.suite.gates.usage import count
from sat_interp._util.errors import UserError
from sat_interp.model.transformer import SelfAblatingTransformer


@dataclass(frozen=True)
class GatesConfig:
    """What decides the figures of ``gates`` besides the model and the text."""

    seed: int = 0
    """Of samples of stories, shuffles, probes, the bootstrap, and gates that are random."""

    resamples: int = 2000
    """Bootstrap resamples of the stories."""

    probe_stories: int = 160
    """Stories (drawn without replacement) the probes are trained, tuned and tested on; 0 for
    none."""

    probe_classes: int = 512
    """Next tokens the probes tell apart, the last class being all the others."""

    intervention_stories: int = 40
    """Stories (drawn without replacement) on which masks are exchanged; 0 for none."""

    picture_story: int = 0
    """Which story of the text the picture of masks shows."""

    picture_tokens: int = 24
    """How many of its tokens."""

    def __post_init__(self) -> None:
        for name in ("resamples", "probe_stories", "intervention_stories", "picture_story"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative")
        if self.probe_classes < 2:
            raise UserError(f"probe_classes must be at least 2, not {self.probe_classes}")
        if self.picture_tokens < 1:
            raise UserError(f"picture_tokens must be at least 1, not {self.picture_tokens}")


def gates(model: HookedTransformer, text: Text, config: GatesConfig) -> Result:
    """Usage, leak and interventions of a model with gates.

    Raises:
        UserError: the model has no gates or states that are not finite, the text has tokens it does
            not know, no story of that number, or too few stories for the probes.
    """
    gated_model = gated(model)
    check_finite(gated_model)
    check_vocabulary(model, text)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # gates that are random draw from here
        result = _measure(gated_model, text, config)
    model.train(was_training)
    return result


def check(model: HookedTransformer, config: GatesConfig) -> None:
    """Refuse a model without gates.

    Raises:
        UserError: it has none.
    """
    gated(model)


EVALUATION = Evaluation("gates", GatesConfig, gates, check=check, version=VERSIONS["gates"])


def _measure(model: SelfAblatingTransformer, text: Text, config: GatesConfig) -> Result:
    if config.probe_stories:
        check_stories(min(config.probe_stories, len(text)))
    extra: dict[str, Any] = {
        "gates_read": gates_read(model),
        "picture": picture(model, text, config.picture_story, config.picture_tokens),
    }
    counted = count(model, text, config.seed)
    metrics = [metric for site in SITES for metric in usage_metrics(counted[site], site)]
    metrics.append(cut_metric(text, int(model.cfg.n_ctx)))
    extra["usage"] = {site: usage_curves(counted[site]) for site in SITES}
    if config.probe_stories:
        chosen = text.sample(config.probe_stories, config.seed)
        leak = measure_leak(collect(model, chosen, config.seed), config.probe_classes, config.seed)
        metrics += leak_metrics(leak, config.resamples, config.seed)
        extra["leak"] = described(leak, config.resamples, config.seed)
    if config.intervention_stories:
        chosen = text.sample(config.intervention_stories, config.seed)
        losses = measure_interventions(model, chosen, config.seed)
        metrics += intervention_metrics(losses, config.resamples, config.seed)
    return Result(metrics, extra)


def gates_read(model: SelfAblatingTransformer) -> str:
    """Which state the gates choose by."""
    if not model.ablation.has_gate_weights:
        return "nothing: the masks are random"
    if model.ablation.variant == "local":
        return "the clean residual stream at the block's input"
    return "the clean state after the final LN"
