"""What decides a sparse autoencoder besides the model and the text; the paper's, today's, a demo's.

A schedule is given in shares of the budget, so that another budget keeps its form: the paper's
20,000 steps of decay and 5,000 of L1 warm-up are 0.2 and 0.05 of its 100,000 steps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from transformer_lens import HookedTransformer

from sat_interp._util.errors import UserError

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "gated")
WITH_K = ("topk", "batchtopk")
"""Architectures whose sparsity is a number of features, not a coefficient of the loss."""
MEASURING = ("given", "resamples", "target_l0")
"""Fields that decide nothing about the autoencoder of a configuration that names a sparsity."""


@dataclass(frozen=True)
class SaeConfig:
    """One sparse autoencoder: its site, its shape, its training. Defaults: the paper's Table 5."""

    seed: int = 42
    """Of the initial weights, the windows of text, their order, and the bootstrap."""

    hook: str | None = None
    """The hook point; the last block but one's MLP output where None (the paper's, at 8 layers)."""

    architecture: str = "standard"
    """SAELens' names; ``standard`` is ReLU with an L1 penalty."""

    unit_norm: bool = True
    """For ``standard``: as sae-lens 5.1 trained it (see ``paper.py``), not as 6."""

    parallel_gradient: bool = False
    """For ``unit_norm``: whether the decoder's gradient keeps its part along the decoder."""

    sparsity: float | None = 5.0
    """The L1 coefficient; JumpReLU's L0 coefficient; k, for TopK and BatchTopK. None: the
    coefficient is searched for that gives ``target_l0``."""

    target_l0: float | None = None
    """The L0 wanted in training, in place of a coefficient (see ``search.py``)."""

    expansion: int = 16
    """Features for each dimension of the activation."""

    apply_b_dec_to_input: bool = False
    """Whether the decoder's bias is taken off the input."""

    decoder_init_norm: float = 1.0
    """Norm of the decoder's rows at the start; the encoder starts as its transpose."""

    tokens: int = 409_600_000
    """The budget: activations trained on."""

    batch_tokens: int = 4096
    """Activations in a step."""

    lr: float = 1e-5
    """Adam's learning rate."""

    adam_beta1: float = 0.0
    """Adam's first moment: 0 in 5.1, 0.9 today. The second is 0.999 in both."""

    lr_decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls to 0."""

    warm_up: float = 0.05
    """Share of the steps over which the sparsity coefficient rises from 0."""

    context: int = 128
    """Tokens of a window (the model's context, where that is shorter). Table 5 does not name it;
    128 is 5.1's default."""

    buffer_prompts: int = 1024
    """Windows in a buffer, within which activations are shuffled. ``n_batches_in_buffer`` of 5.1
    counted batches of prompts: the paper's 64 times its 16. Today's counts prompts."""

    norm_batches: int = 1000
    """Batches over which the mean norm of the activations is found, which is scaled to sqrt(d)."""

    given: str | None = None
    """The hash of an autoencoder that was given, weights and configuration; the training options
    above are then unused."""

    resamples: int = 1000
    """Bootstrap resamples of the stories."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"--architecture is one of {', '.join(ARCHITECTURES)}")
        for name in ("expansion", "tokens", "batch_tokens", "buffer_prompts", "norm_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.target_l0 is not None:
            self._check_target()
        elif self.sparsity is None or not 0 <= self.sparsity < math.inf:
            raise UserError(f"--l1 takes numbers from 0 on, not {self.sparsity}")
        elif self.architecture in WITH_K and (self.sparsity < 1 or self.sparsity % 1):
            raise UserError(f"--k takes whole numbers from 1 on, not {self.sparsity:g}")

    def _check_target(self) -> None:
        assert self.target_l0 is not None
        if self.architecture in WITH_K:
            raise UserError(f"--target-l0 means nothing to {self.architecture}: its L0 is --k")
        if not 0 < self.target_l0 < math.inf:
            raise UserError(f"--target-l0 takes numbers above 0, not {self.target_l0}")
        if self.sparsity is not None:
            raise UserError("name a coefficient or --target-l0, not both")

    @property
    def steps(self) -> int:
        """Training steps within the budget."""
        return self.tokens // self.batch_tokens

    def hook_in(self, model: HookedTransformer) -> str:
        """The hook point in this model."""
        return self.hook or f"blocks.{max(model.cfg.n_layers - 2, 0)}.hook_mlp_out"

    def context_in(self, model: HookedTransformer) -> int:
        """Tokens of a window for this model."""
        return min(self.context, int(model.cfg.n_ctx))

    def training_in(self, model: HookedTransformer) -> dict[str, Any]:
        """What decides the training on this model's activations, and nothing else.

        The defaults that depend on the model are filled in, so that ``hook=None`` and the name of
        the same hook point are one.
        """
        kept = {name: value for name, value in vars(self).items() if name not in MEASURING}
        return {**kept, "hook": self.hook_in(model), "context": self.context_in(model)}

    @property
    def label(self) -> str:
        """What tells it from others at the same hook point: ``L1 5``, ``topk k 32``."""
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
        unit_norm=False, apply_b_dec_to_input=True, decoder_init_norm=0.1, tokens=122_880_000,
        lr=3e-4, adam_beta1=0.9,
    ),
    # The paper's autoencoder on a budget of seconds. At its lr of 1e-5 so few steps would leave
    # little but the initialisation.
    "demo": SaeConfig(
        tokens=1_000_000, batch_tokens=1024, lr=1e-3, buffer_prompts=128, norm_batches=16,
    ),
}  # fmt: skip

# What the sparsity is where none is asked for. JumpReLU's coefficient is of another loss.
_SPARSITY: dict[str, float] = {"jumprelu": 1.0, "topk": 32, "batchtopk": 32}


def preset(name: str, architecture: str = "standard") -> SaeConfig:
    """A preset's configuration for one architecture.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--preset is one of {', '.join(PRESETS)}, not {name!r}")
    chosen = PRESETS[name]
    sparsity = _SPARSITY.get(architecture, chosen.sparsity)
    return dataclasses.replace(chosen, architecture=architecture, sparsity=sparsity)


def default_target(d_in: int) -> float:
    """The L0 that is searched for where none is named: a quarter of the width, 32 at most."""
    return float(min(32, max(1, d_in // 4)))
