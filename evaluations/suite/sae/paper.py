"""The paper's autoencoder: the ReLU autoencoder of sae-lens 5.1 as a training class of sae-lens 6.

Table 5 of Self-Ablating Transformers (arXiv 2505.00509) gives options of SAELens 5.1, whose code
(5.1.0) differs from version 6 as follows:

- Decoder rows have norm 1: 5.1 normalises them at the start of every step, 6 never does. Here they
  are also normalised at the end of training, so that the saved rows have norm 1.
- The L1 term is the plain sum of feature activations; 6 weights each by the norm of its decoder
  row, through which gradients flow.
- The encoder is initialised as the transpose of the decoder before its rows are normalised (norms
  about sqrt(2)); 6 transposes afterwards.
- The component of the decoder's gradient parallel to its rows is removed. 5.1.0 intends this but
  does it after Adam's step, where it has no effect: ``parallel_gradient=True`` reproduces what
  5.1.0 computes, the default what it intends.
- ``n_batches_in_buffer`` counts batches of ``store_batch_size_prompts`` prompts; in 6 it counts
  prompts. See ``SaeConfig.buffer_prompts``.
- Adam's beta1 is 0 by default; in 6 it is 0.9.
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
    """Configuration of a ReLU autoencoder trained as by sae-lens 5.1; saved as ``standard``."""

    parallel_gradient: bool = False

    @classmethod
    def architecture(cls) -> str:
        """Return the name under which SAELens registers the class."""
        return ARCHITECTURE

    def get_inference_config_class(self) -> type[SAEConfig]:
        """Return the configuration class of the saved autoencoder."""
        config: type[SAEConfig] = StandardSAEConfig
        return config


class PaperTrainingSAE(StandardTrainingSAE):
    """ReLU autoencoder with decoder rows of norm 1 and an unweighted L1 term.

    It also works with SAELens' own trainer and runner.
    """

    cfg: PaperTrainingSAEConfig

    def initialize_weights(self) -> None:
        """Initialise the encoder as the transpose of the decoder before its normalisation."""
        norm, self.cfg.decoder_init_norm = self.cfg.decoder_init_norm, None
        super().initialize_weights()
        self.cfg.decoder_init_norm = norm
        self.set_unit_norm()
        if not self.cfg.parallel_gradient:
            self.W_dec.register_hook(self._without_parallel_part)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Normalise the decoder and run the training pass."""
        self.set_unit_norm()
        return relu_training_pass(self, step_input, weighted=False)

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Normalise the decoder after the last step and fold in the scale of the activations."""
        self.set_unit_norm()
        super().fold_activation_norm_scaling_factor(scaling_factor)

    @torch.no_grad()
    def set_unit_norm(self) -> None:
        """Scale the decoder rows to norm 1."""
        self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def _without_parallel_part(
        self, gradient: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "d_sae d_in"]:
        rows = self.W_dec.data
        parallel: Float[Tensor, "d_sae d_in"] = (gradient * rows).sum(1, keepdim=True) * rows
        return gradient - parallel


class ModernTrainingSAE(StandardTrainingSAE):
    """ReLU autoencoder of SAELens with the fused training pass."""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Run the training pass."""
        return relu_training_pass(self, step_input, weighted=True)


def register() -> None:
    """Register the paper's autoencoder with SAELens, once."""
    if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(ARCHITECTURE, PaperTrainingSAE, PaperTrainingSAEConfig)
