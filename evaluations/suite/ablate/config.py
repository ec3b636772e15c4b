"""The configuration of ``sat-eval ablate``; imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from evaluations.core.options import Object
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded
from sat_interp._util.settings import check_at_least

TASK_METHODS = (
    "zero",
    "mean",
    "mean_all",
    "resample",
    "cf",
    "cf_mean",
    "noise",
    "oa",
    "oa_stopped",
    "oa_pos",
)
TEXT_METHODS = ("zero", "mean_all", "resample", "noise", "oa", "oa_stopped")
"""Methods that text has: no counterfactuals, and constants shared by all positions."""
METHODS = (*TASK_METHODS, "resample_all")
COMPARED = ("zero", "mean", "mean_all", "resample", "cf")
"""Methods that optimal ablation is compared with over all heads and MLPs."""
UNITS = ("head", "mlp")
"""Kinds of components that figures of a whole model, such as R, are made of."""


@dataclass(frozen=True)
class AblateConfig:
    """Which components are ablated, by what, and how constants are fitted."""

    task: Object = None
    """Task, as for acdc: ioi, ioi-tinystories, greater-than, greater-than-digit, gender, quotes,
    agreement, induction, object, reply, or a .json file in auto-circuit's format. By default ioi
    for models trained on the built-in corpus, ioi-tinystories for all others."""

    text: bool = False
    """Measure on windows of held-out stories in place of a task: works for models that cannot do
    any task."""

    no_bos: bool = False
    """Leave out the token that begins a task's prompts (BOS, or end-of-text). The first position
    is then ablated, too."""

    seed: int = 0
    """Seed of the prompts, the starts, the resampling and the bootstrap."""

    components: tuple[str, ...] = ("heads", "mlps", "attention", "embedding")
    """What is ablated: heads, mlps, attention, embedding, head-sets (all heads of a layer),
    neurons, coordinates (of z), features (of an autoencoder), single ones such as a2.h3, attn2,
    m2, m2.n17, a2.z5, embed, and sets such as a0.h1+m2."""

    methods: tuple[str, ...] = TASK_METHODS
    """What replaces an activation. Of these, text has zero, mean_all, resample, noise, oa and
    oa_stopped. resample_all (all cyclic shifts) grows with the square of the prompts."""

    fit_prompts: int = 400
    """Prompts that constants are fitted on."""

    fit_prompts_large: int = 1000
    """Prompts for constants of many numbers: oa_pos, attention layers, sets of heads."""

    held_prompts: int = 300
    """Further prompts that the figures are measured on."""

    fit_windows: int = 100
    """Windows of text that constants are fitted on."""

    held_windows: int = 100
    """Windows of other stories that the figures are measured on."""

    window: int = 64
    """Tokens of a window, the one before the story included."""

    sae: str | None = None
    """Directory of a SAELens autoencoder whose features are components."""

    starts: int = 4
    """Starts of a fit on a small sample of the prompts, at least two."""

    sample: int = 50
    """Prompts of that sample."""

    sample_windows: int = 12
    """Windows of that sample, on text: each holds as many predictions as it has tokens."""

    evaluations: int = 200
    """At most so many evaluations of value and gradient in a stage of a fit."""

    refits: int = 0
    """Fit the one vector again on so many bootstrap samples of the prompts, to report by how much
    its cost differs (standard deviation)."""

    convergence: bool = False
    """Keep the course of every fit in the record, and draw it."""

    no_bridge: bool = False
    """Leave out the units that the model's own gates switch off, and a layer's heads together."""

    losers_k: int | None = None
    """Winners of each layer: so many coordinates of its heads' outputs and so many neurons stay on.
    All others, the losers, are switched off together, by zeros and by constants. By default the k
    of the model's own gates, or 4 for models without gates."""

    resamples: int = 2000
    """Bootstrap resamples of the held-out prompts."""

    memory: int = 64
    """Limit in MiB of the activations that one forward pass holds. The figures do not
    depend on it."""

    def recorded(self) -> dict[str, Any]:
        """Return what decides the figures, besides the model and the prompts."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("task", "no_bos", "memory"):
            del settings[name]
        for name in ("refits", "convergence"):  # what they add leaves all other figures alone
            if not settings[name]:
                del settings[name]
        if self.sae is not None:
            from evaluations.core.autoencoder import content_hash

            settings["sae"] = content_hash(expanded(self.sae))
        return settings

    @property
    def reads_text(self) -> bool:
        """Whether a text is needed."""
        return self.text

    @property
    def things(self) -> str:
        """What costs are measured on."""
        return "windows" if self.text else "prompts"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: an unknown method, a number that is too small, or a task and text.
        """
        if self.text and (self.task is not None or self.no_bos):
            raise UserError("--text takes no task: leave out --task and --no-bos, or --text")
        for method in self.methods:
            if method not in METHODS:
                raise UserError(suggest("method", method, METHODS))
        if not self.methods or not self.components:
            raise UserError("name at least one component and one method")
        if self.text and not set(self.methods) & set(TEXT_METHODS):
            raise UserError(
                f"--text has no {', '.join(self.methods)}: name a method of text, "
                f"{', '.join(TEXT_METHODS)}"
            )
        least = {
            "fit_prompts": 8,
            "fit_prompts_large": 8,
            "held_prompts": 8,
            "fit_windows": 8,
            "held_windows": 8,
            "window": 3,
            "starts": 2,
            "sample": 4,
            "sample_windows": 4,
            "evaluations": 4,
            "refits": 0,
            "losers_k": 1,
            "resamples": 1,
            "memory": 1,
        }
        check_at_least(self, least)
