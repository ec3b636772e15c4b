"""The gates of a self-ablating transformer, as a configuration. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from sat_interp._util.errors import UserError
from sat_interp._util.settings import check_at_least, check_settings

Variant = Literal["none", "local", "global"]
Soft = Literal["softmax", "sigmoid"]
ForwardMask = Literal["hard", "soft"]
Unit = Literal["coordinate", "head"]
GateKind = Literal["learned", "random", "frozen", "detached", "dropout"]
NearTies = Literal["no_gradient", "detached_floor"]


@dataclass
class SelfAblationConfig:
    """The gates of a model (Self-Ablating Transformers, arXiv 2505.00509, section 3.1).

    Raises:
        UserError: a value of another type, an unknown choice, k below 1, or a temperature that is
            not positive.
    """

    variant: Variant = "none"
    """none: an ordinary transformer. local: each block's gates read the block's own input.
    global: the gates of all blocks read the final state of the clean stream."""

    k_attention: int = 4
    """Attention units kept per token and layer."""

    k_neurons: int = 4
    """Neurons kept per token and layer."""

    soft: Soft = "softmax"
    """Soft weights whose gradient trains the gates: softmax (paper, equation 3; they sum to 1)
    or sigmoid (released code; they are rescaled to sum to k)."""

    forward_mask: ForwardMask = "hard"
    """hard: exactly k ones, straight-through gradient. soft: the soft weights themselves."""

    temperature: float = 1.0
    """Factor on the dynamic temperature T = temperature * (x_k - x_{k+1})."""

    near_ties: NearTies = "no_gradient"
    """Gradient of the scores where T lies below its floor (1e-4 of the scores' spread).
    no_gradient: none, which is the limit of equations 1 to 3 at k = 1. detached_floor: that of a
    constant T, up to 1 / floor large; all models before this setting existed were trained so."""

    unit: Unit = "coordinate"
    """An attention unit is one coordinate of z (d_head * n_heads of them), or one head."""

    gates: GateKind = "learned"
    """learned, or a control. random: a random k-subset at every step. frozen: scores from weights
    that stay at their initialisation. detached: learned gates whose gradient does not reach the
    residual stream they read. dropout: no gates, but dropout of rate 1 - k/n in their place."""

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self))
        check_at_least(self, {"k_attention": 1, "k_neurons": 1})
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature must be positive and finite, not {self.temperature}")

    @property
    def is_gated(self) -> bool:
        """Whether the model has gates."""
        return self.variant != "none"

    @property
    def has_gate_weights(self) -> bool:
        """Whether scores are computed at all; random masks and dropout need none."""
        return self.is_gated and self.gates in ("learned", "frozen", "detached")

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, without ``near_ties`` where it is detached_floor.

        So the settings of models that were trained before ``near_ties`` existed stay the same as
        when those models were saved and measured; :meth:`from_dict` reads a missing one back.
        """
        settings = asdict(self)
        if self.near_ties == "detached_floor":
            del settings["near_ties"]
        return settings

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SelfAblationConfig:
        """The configuration that :meth:`to_dict` gave.

        Raises:
            UserError: an unknown setting, or a value it cannot have.
        """
        check_settings(cls, settings)
        return cls(**{"near_ties": "detached_floor", **settings})
