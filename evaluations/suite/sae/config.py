"""Options of ``sae``, the configuration of one autoencoder, and presets.

Schedules are shares of the budget, so that they scale with it: the paper's 20,000 steps of decay
and 5,000 steps of L1 warm-up are 0.2 and 0.05 of its 100,000 steps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sat_interp._util.errors import UserError
from sat_interp._util.settings import check_at_least

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "gated")
WITH_K = ("topk", "batchtopk")
"""Architectures whose sparsity is a number of features, not a coefficient in the loss."""
MEASURING = ("given", "resamples", "target_l0")
"""Fields that do not affect the training of an autoencoder of known sparsity."""


@dataclass(frozen=True)
class SaeOptions:
    """Options of ``sae``: one autoencoder for each hook point and coefficient."""

    preset: Literal["paper", "modern", "demo"] = "demo"
    """Training settings: paper (Table 5, 409.6 M tokens), modern (defaults of current sae-lens),
    demo (the paper's, reduced to about half a minute)."""

    l1: tuple[float, ...] = ()
    """Comma-separated L1 coefficients (JumpReLU: L0 coefficients); default 5 (JumpReLU: 1)."""

    target_l0: tuple[float, ...] = ()
    """Comma-separated target numbers of active features per token, in place of --l1: short
    trainings search for the coefficient that reaches the target."""

    architecture: Literal["standard", "topk", "batchtopk", "jumprelu", "gated"] = "standard"
    """SAELens architecture; standard is ReLU with an L1 penalty."""

    k: tuple[float, ...] = ()
    """Comma-separated numbers of active features for topk and batchtopk; default 32."""

    hook: tuple[str, ...] = ()
    """Comma-separated hook points; by default the MLP output of the second-to-last block, with
    --sae the autoencoder's own."""

    tokens: int | None = None
    """Number of activations to train on; by default the preset's, limited to 20 passes over the
    training text. Schedules scale with it."""

    sae: Path | None = None
    """Directory of a SAELens autoencoder to measure instead of training one."""

    seed: int = 42
    """Seed of the initial weights, the text windows and the bootstrap."""

    resamples: int = 1000
    """Number of bootstrap resamples of the stories."""


@dataclass(frozen=True)
class SaeConfig:
    """Hook point, shape and training of one autoencoder. Defaults: Table 5 of the paper."""

    seed: int = 42
    """Seed of the initial weights, the text windows, their order and the bootstrap."""

    hook: str | None = None
    """Hook point; by default the MLP output of the second-to-last block (as in the paper)."""

    architecture: str = "standard"
    """SAELens architecture; ``standard`` is ReLU with an L1 penalty."""

    unit_norm: bool = True
    """Whether ``standard`` is trained as by sae-lens 5.1 (see ``paper.py``), not as by 6."""

    parallel_gradient: bool = False
    """With ``unit_norm``: whether the gradient keeps its component parallel to the decoder rows."""

    sparsity: float | None = 5.0
    """L1 coefficient, L0 coefficient (JumpReLU) or k (TopK, BatchTopK). If None, the coefficient
    that reaches ``target_l0`` is searched for."""

    target_l0: float | None = None
    """Target L0 in training, in place of a coefficient (see ``search.py``)."""

    expansion: int = 16
    """Number of features per dimension of the activation."""

    apply_b_dec_to_input: bool = False
    """Whether the decoder bias is subtracted from the input."""

    decoder_init_norm: float = 1.0
    """Initial norm of the decoder rows; the encoder is initialised as the transpose."""

    tokens: int = 409_600_000
    """Number of activations to train on."""

    batch_tokens: int = 4096
    """Activations per training step."""

    lr: float = 1e-5
    """Adam's learning rate."""

    adam_beta1: float = 0.0
    """Adam's beta1: 0 in sae-lens 5.1, 0.9 in 6. beta2 is 0.999 in both."""

    lr_decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate decays to 0."""

    warm_up: float = 0.05
    """Share of the steps over which the sparsity coefficient increases from 0."""

    context: int = 128
    """Tokens per window, at most the model's context. Table 5 does not give it; 128 is the default
    of sae-lens 5.1."""

    buffer_prompts: int = 1024
    """Windows per buffer; activations are shuffled within a buffer. The paper's
    ``n_batches_in_buffer`` of 64, times its 16 prompts per batch."""

    norm_batches: int = 1000
    """Number of batches used to scale the mean norm of the activations to sqrt(d)."""

    given: str | None = None
    """Hash of an existing autoencoder to measure (weights and configuration); the training settings
    above are then unused."""

    resamples: int = 1000
    """Number of bootstrap resamples of the stories."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"--architecture must be one of {', '.join(ARCHITECTURES)}")
        whole = ("expansion", "tokens", "batch_tokens", "buffer_prompts", "norm_batches")
        check_at_least(self, dict.fromkeys(whole, 1))
        if self.target_l0 is not None:
            self._check_target()
        elif self.sparsity is None or not 0 <= self.sparsity < math.inf:
            raise UserError(f"--l1 must be at least 0 and finite, not {self.sparsity}")
        elif self.architecture in WITH_K and (self.sparsity < 1 or self.sparsity % 1):
            raise UserError(f"--k must be a whole number of at least 1, not {self.sparsity:g}")

    def _check_target(self) -> None:
        assert self.target_l0 is not None
        if self.architecture in WITH_K:
            raise UserError(f"--target-l0 does not apply to {self.architecture}: its L0 is --k")
        if not 0 < self.target_l0 < math.inf:
            raise UserError(f"--target-l0 must be above 0 and finite, not {self.target_l0}")
        if self.sparsity is not None:
            raise UserError("give a coefficient or --target-l0, not both")

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.tokens // self.batch_tokens

    def hook_in(self, model: HookedTransformer) -> str:
        """Return the name of the hook point in this model."""
        return self.hook or f"blocks.{max(model.cfg.n_layers - 2, 0)}.hook_mlp_out"

    def context_in(self, model: HookedTransformer) -> int:
        """Return the number of tokens per window for this model."""
        return min(self.context, int(model.cfg.n_ctx))

    def training_in(self, model: HookedTransformer) -> dict[str, Any]:
        """Return the settings that determine the training on this model's activations.

        Defaults that depend on the model are filled in: ``hook=None`` equals the name of the
        default hook point.
        """
        kept = {name: value for name, value in vars(self).items() if name not in MEASURING}
        return {**kept, "hook": self.hook_in(model), "context": self.context_in(model)}

    @property
    def label(self) -> str:
        """Description that is unique at a hook point: ``L1 5``, ``topk k 32``."""
        if self.target_l0 is not None:
            kind = "" if self.architecture == "standard" else f"{self.architecture} "
            return f"{kind}target L0 {self.target_l0:g}"
        if self.architecture in WITH_K:
            return f"{self.architecture} k {self.sparsity:g}"
        name = "" if self.architecture == "standard" else f"{self.architecture} "
        return f"{name}{'L0' if self.architecture == 'jumprelu' else 'L1'} {self.sparsity:g}"


PRESETS: dict[str, SaeConfig] = {
    "paper": SaeConfig(),
    "modern": SaeConfig(
        unit_norm=False,
        apply_b_dec_to_input=True,
        decoder_init_norm=0.1,
        tokens=122_880_000,
        lr=3e-4,
        adam_beta1=0.9,
    ),
    # The paper's autoencoder in seconds of training, which takes a higher learning rate.
    "demo": SaeConfig(
        tokens=1_000_000,
        batch_tokens=1024,
        lr=1e-3,
        buffer_prompts=128,
        norm_batches=16,
    ),
}

# Default sparsity of architectures whose coefficient is not an L1 coefficient.
_SPARSITY: dict[str, float] = {"jumprelu": 1.0, "topk": 32, "batchtopk": 32}


def preset(name: str, architecture: str = "standard") -> SaeConfig:
    """Return the configuration of a preset for one architecture.

    Raises:
        UserError: unknown preset.
    """
    if name not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, not {name!r}")
    chosen = PRESETS[name]
    sparsity = _SPARSITY.get(architecture, chosen.sparsity)
    return dataclasses.replace(chosen, architecture=architecture, sparsity=sparsity)


def default_target(d_in: int) -> float:
    """Return the default target L0: a quarter of the activation's width, at most 32."""
    return float(min(32, max(1, d_in // 4)))
