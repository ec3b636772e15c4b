"""Construction of SAELens autoencoders and trainers from a configuration."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from evaluations.suite.sae.config import SaeConfig
from evaluations.suite.sae.paper import (
    ModernTrainingSAE,
    PaperTrainingSAE,
    PaperTrainingSAEConfig,
    register,
)
from sat_interp._util.errors import UserError

Trainer: TypeAlias = SAETrainer[Any, Any]


def build_trainer(
    config: SaeConfig, d_in: int, device: torch.device, dtype: torch.dtype, metadata: dict[str, Any]
) -> Trainer:
    """Build a SAELens trainer with a newly initialised autoencoder; the caller supplies batches.

    Args:
        d_in: width of the activation.
        metadata: SAELens metadata, such as the model's name and the hook point.

    Raises:
        UserError: k above the number of features.
    """
    others = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=others, device_type=device.type):
        torch.manual_seed(config.seed)
        sae = _build_sae(config, d_in, device, dtype, metadata)
    return SAETrainer(trainer_config(config, device), sae, iter(()))


def trainer_config(config: SaeConfig, device: torch.device) -> SAETrainerConfig:
    """Return the settings of the schedule and the optimiser; others have SAELens' defaults."""
    return SAETrainerConfig(
        total_training_samples=config.steps * config.batch_tokens,
        train_batch_size_samples=config.batch_tokens,
        lr=config.lr,
        lr_end=config.lr / 10,  # required by SAELens, unused by its constant schedule
        lr_decay_steps=round(config.lr_decay * config.steps),
        adam_beta1=config.adam_beta1,
        device=str(device),
        n_batches_for_norm_estimate=config.norm_batches,
    )


def _build_sae(
    config: SaeConfig, d_in: int, device: torch.device, dtype: torch.dtype, metadata: dict[str, Any]
) -> TrainingSAE[Any]:
    assert config.sparsity is not None, "the coefficient must be searched for first"
    d_sae = config.expansion * d_in
    shape: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "expected_average_only_in",
        "decoder_init_norm": config.decoder_init_norm,
        "metadata": SAEMetadata(**metadata),
    }
    warm_up = round(config.warm_up * config.steps)
    l1 = {"l1_coefficient": config.sparsity, "l1_warm_up_steps": warm_up}
    if config.architecture == "standard":
        if config.unit_norm:
            register()
            paper = PaperTrainingSAEConfig(
                **shape, **l1, parallel_gradient=config.parallel_gradient
            )
            return PaperTrainingSAE(paper)
        return ModernTrainingSAE(StandardTrainingSAEConfig(**shape, **l1))
    if config.architecture == "gated":
        return GatedTrainingSAE(GatedTrainingSAEConfig(**shape, **l1))
    if config.architecture == "jumprelu":
        l0 = {"l0_coefficient": config.sparsity, "l0_warm_up_steps": warm_up}
        return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**shape, **l0))
    if config.sparsity > d_sae:
        raise UserError(
            f"--k {config.sparsity:g} is more than the {d_sae} features of the autoencoder"
        )
    if config.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**shape, k=int(config.sparsity)))
    return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape, k=config.sparsity))
