"""The paper's autoencoder: what sae-lens 5.1 did and 6 does otherwise, as a training class of it.

Table 5 of Self-Ablating Transformers (arXiv 2505.00509) names the options of SAELens 5.1. Read off
the code of 5.1.0, these differ today:

- The decoder's rows have norm 1: 5.1 set it at the beginning of every step, 6 never does. Here too,
  and once more when training ends, so that the saved rows have it.
- The L1 term is the plain sum of the features' activations; 6 weights each by its row's norm, and
  so has a gradient on that norm.
- The encoder starts as the transpose of the decoder as it was drawn (norms about sqrt(2)), before
  its rows are set to norm 1; 6 takes the transpose afterwards.
- The part of the decoder's gradient along its rows is removed. 5.1.0 means to, but calls it after
  Adam has stepped and just before the gradients are dropped, where it changes nothing:
  ``parallel_gradient=True`` is what 5.1.0 computed, the default what it says.
- ``n_batches_in_buffer`` counted batches of ``store_batch_size_prompts`` prompts; today it counts
  prompts. See ``SaeConfig.buffer_prompts``.
- Adam's first moment was 0 by default, and is 0.9 now.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor

from evaluations.suite.sae.fused import relu_training_pass

ARCHITECTURE = "standard_5.1"


@dataclass
class PaperTrainingSAEConfig(StandardTrainingSAEConfig):
    """SAELens' configuration of a ReLU autoencoder, trained as 5.1 did; saved as ``standard``."""

    parallel_gradient: bool = False

    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


class PaperTrainingSAE(StandardTrainingSAE):
    """SAELens' ReLU autoencoder with the decoder on the unit sphere and a plain L1.

    It does what it does under SAELens' own trainer and runner as well as under ours.
    """

    cfg: PaperTrainingSAEConfig

    def initialize_weights(self) -> None:
        """5.1's: the encoder is the transpose of the decoder before its rows get norm 1."""
        norm, self.cfg.decoder_init_norm = self.cfg.decoder_init_norm, None
        super().initialize_weights()
        self.cfg.decoder_init_norm = norm
        self.set_unit_norm()
        if not self.cfg.parallel_gradient:
            self.W_dec.register_hook(self._without_parallel_part)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """SAELens' training pass, behind the step's normalisation."""
        self.set_unit_norm()
        return relu_training_pass(self, step_input, weighted=False)

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Training ends here: the last step's normalisation, then SAELens' folding."""
        self.set_unit_norm()
        super().fold_activation_norm_scaling_factor(scaling_factor)

    @torch.no_grad()
    def set_unit_norm(self) -> None:
        self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def _without_parallel_part(
        self, gradient: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "d_sae d_in"]:
        rows = self.W_dec.data
        return gradient - (gradient * rows).sum(1, keepdim=True) * rows


class ModernTrainingSAE(StandardTrainingSAE):
    """SAELens' ReLU autoencoder as it is, by the fused pass."""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        return relu_training_pass(self, step_input, weighted=True)


def register() -> None:
    """Make the paper's class known to SAELens, once."""
    if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(ARCHITECTURE, PaperTrainingSAE, PaperTrainingSAEConfig)
