"""gates: usage of units by the masks, information in the masks, and interventions on them.

The metrics are defined in ``usage.py`` (win frequencies, dead units, entropy, overlaps),
``leak.py`` (probes from masks to the next token) and ``interventions.py`` (the ablated loss under
other masks); ``picture.py`` lists the units that each token of a story selects.
"""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens import HookedTransformer

from evaluations.core.inputs import text_data
from evaluations.core.models import evaluation_mode
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, check_vocabulary
from evaluations.suite.gates.config import GatesConfig
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
from sat_interp.model.transformer import SelfAblatingTransformer

prepare = text_data


def evaluate(model: HookedTransformer, text: Text, config: GatesConfig) -> Measurement:
    """Measure usage, information and interventions of a model's masks.

    Raises:
        UserError: the model has no gates or its states are not finite; the text has tokens outside
            its vocabulary, no story of the number given, or too few stories for the probes.
    """
    gated_model = gated(model)
    check_finite(gated_model)
    check_vocabulary(model, text)
    with evaluation_mode(model), torch.random.fork_rng():
        torch.manual_seed(config.seed)  # used by random gates
        return _measure(gated_model, text, config)


def check(model: HookedTransformer, config: GatesConfig) -> None:
    """Check that the model has gates.

    Raises:
        UserError: it has none.
    """
    gated(model)


def preview(subject: Any) -> str:
    """Describe the number of stories under default settings."""
    return f"{len(subject.text):,} stories; {GatesConfig().probe_stories} stories probed"


def _measure(model: SelfAblatingTransformer, text: Text, config: GatesConfig) -> Measurement:
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
    return Measurement(metrics, extra)


def gates_read(model: SelfAblatingTransformer) -> str:
    """Describe the state that the gates read."""
    if not model.ablation.has_gate_weights:
        return "nothing: the masks are random"
    if model.ablation.variant == "local":
        return "the clean residual stream at the block's input"
    return "the clean state after the final LN"
