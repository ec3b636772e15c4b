"""Joint training of several autoencoders on the same activations, resumable bit for bit.

SAELens' trainers take the steps (``SAETrainer.step``). This module supplies the activations, shares
them between autoencoders, and saves and restores the state without pickling.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.sae.activations import ActivationStream, scaling_factors
from evaluations.suite.sae.budget import check_budget
from evaluations.suite.sae.build import Trainer, build_trainer
from evaluations.suite.sae.config import SaeConfig
from evaluations.suite.sae.convergence import POINTS, Curve
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_directory
from sat_interp.data.corpus import TokenCorpus
from sat_interp.training.state import load_latest, save_state

log = logging.getLogger(__name__)

STATE_SECONDS = 60.0
"""Seconds between two saved states."""

VERSION = 1
"""Version of the training, raised whenever a change alters the autoencoder it trains."""

TRAINING = "training.json"
"""File about the training in an autoencoder's directory, beside SAELens' files."""

# Settings that autoencoders trained together must share.
_SHARED = ("seed", "tokens", "batch_tokens", "context", "buffer_prompts", "norm_batches")

Probe = Callable[[str, Trainer], float | None]


@dataclass
class _Training:
    """An autoencoder in training."""

    config: SaeConfig
    hook: str
    trainer: Trainer
    curve: Curve


def train(
    model: HookedTransformer,
    corpus: TokenCorpus,
    targets: dict[Path, SaeConfig],
    state: Path,
    metadata: dict[str, Any],
    probe: Probe,
) -> None:
    """Train autoencoders together and write them in SAELens' format.

    The result is the same, bit for bit, whether autoencoders are trained alone or together, in one
    run or resumed.

    Args:
        corpus: the training text, in the model's tokens.
        targets: the configuration of the autoencoder to write to each directory.
        state: directory of the saved state, removed at the end.
        metadata: SAELens metadata: the model's name.
        probe: (hook point, trainer) -> current CE loss score on a small held-out text.

    Raises:
        UserError: unknown hook point, budget below one buffer, text shorter than the context,
            activations or losses that are not finite.
    """
    first = next(iter(targets.values()))
    _check(list(targets.values()), first.context_in(model))
    dtype = torch.float64 if model.W_E.dtype == torch.float64 else torch.float32
    hooks = list(dict.fromkeys(config.hook_in(model) for config in targets.values()))
    stream = ActivationStream(model, corpus, hooks, first, dtype)
    factors = scaling_factors(stream, min(first.norm_batches, first.steps))
    widths = {name: value.shape[1] for name, value in stream.batch(0).items()}
    trainings = []
    for config in targets.values():
        hook = config.hook_in(model)
        details = {
            **metadata,
            "hook_name": hook,
            "context_size": stream.context,
            "prepend_bos": True,
            "bos_token_id": corpus.start,
        }
        trainer = build_trainer(config, widths[hook], model.W_E.device, dtype, details)
        trainer.activation_scaler.scaling_factor = factors[hook]
        curve = Curve.empty(config.steps, model.W_E.device)
        trainings.append(_Training(config, hook, trainer, curve))
    seconds = _resume(trainings, state)
    started = time.perf_counter()
    _loop(trainings, stream, state, probe, lambda: seconds + time.perf_counter() - started)
    for target, training in zip(targets, trainings, strict=True):
        _write(target, training, seconds + time.perf_counter() - started)
    shutil.rmtree(state, ignore_errors=True)


def _check(configs: Sequence[SaeConfig], context: int) -> None:
    first = configs[0]
    for config in configs[1:]:
        for name in _SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ValueError(f"autoencoders trained together differ in {name}")
    check_budget(first, context)


def _loop(
    trainings: Sequence[_Training],
    stream: ActivationStream,
    state: Path,
    probe: Probe,
    elapsed: Callable[[], float],
) -> None:
    steps, batch_tokens = trainings[0].config.steps, stream.batch_tokens
    done, saved = trainings[0].trainer.n_training_steps, time.perf_counter()
    bar = progress.bar(
        total=steps * batch_tokens, desc="sae: training", unit="tok", initial=done * batch_tokens
    )
    with bar:
        for step in range(done, steps):
            batch = stream.batch(step)
            for training in trainings:
                _step(training, batch[training.hook], step)
            if (step + 1) * POINTS // steps > step * POINTS // steps:
                for training in trainings:
                    training.curve.probe(step, probe(training.hook, training.trainer))
                bar.set_postfix_str(trainings[0].curve.summary(step))
                _check_losses(trainings, step)
            if time.perf_counter() - saved >= STATE_SECONDS and step + 1 < steps:
                _save(trainings, state, step + 1, elapsed())
                saved = time.perf_counter()
            bar.update(batch_tokens)


def _step(training: _Training, batch: Float[Tensor, "batch d_in"], step: int) -> None:
    """Take one step of SAELens' trainer and record its losses and L0."""
    trainer = training.trainer
    trainer.maybe_reset_sparsity()
    before = trainer.act_freq_scores.sum(dtype=torch.float64)
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    active = (trainer.act_freq_scores.sum(dtype=torch.float64) - before) / len(batch)
    training.curve.add(step, output.loss.detach(), output.losses["mse_loss"].detach(), active)


def _check_losses(trainings: Sequence[_Training], step: int) -> None:
    for training in trainings:
        if not torch.isfinite(training.curve.losses[: step + 1]).all():
            raise UserError(
                f"the loss of {training.config.label} at {training.hook} became NaN within "
                f"{step + 1} steps: train with a lower lr"
            )


def _write(target: Path, training: _Training, seconds: float) -> None:
    """Write the autoencoder for inference, its scale folded in, and a file about its training.

    A feature is dead in training if it is active on no token of the last tenth of the steps.
    SAELens' own L0 and dead features at the end of training are not written: its L0 is a mean over
    the last 2,000 steps (43.0 for an autoencoder that ends at 6.8), and it counts no feature as
    dead before 1,000 steps. The L0 is written when it is measured (``autoencoder.write_l0``).
    """
    trainer = training.trainer
    factor = trainer.activation_scaler.scaling_factor
    assert factor is not None
    trainer.sae.fold_activation_norm_scaling_factor(factor)
    window = max(1, training.config.steps // 10)
    dead = int((trainer.n_forward_passes_since_fired >= window).sum())
    trainer.sae.cfg.metadata.num_dead_features = dead
    details = {
        "config": vars(training.config),
        "scaling_factor": factor,
        "dead_in_training": dead,
        "dead_over_tokens": window * training.config.batch_tokens,
        "tokens": trainer.n_training_samples,
        "seconds": round(seconds, 3),
        **training.curve.to_dict(),
    }
    with atomic_directory(target) as temporary:
        trainer.sae.save_inference_model(temporary)
        (temporary / TRAINING).write_text(json.dumps(details, indent=1), encoding="utf-8")


# Saved state ---------------------------------------------------------------------------------


def _save(trainings: Sequence[_Training], state: Path, step: int, seconds: float) -> None:
    """Save the state of all trainings."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for number, training in enumerate(trainings):
        trainer = training.trainer
        adam = trainer.optimizer.state_dict()
        tensors |= {f"{number}.sae.{key}": value for key, value in trainer.sae.state_dict().items()}
        for parameter, moments in adam["state"].items():
            tensors |= {f"{number}.adam.{parameter}.{key}": v for key, v in moments.items()}
        tensors[f"{number}.act_freq_scores"] = trainer.act_freq_scores
        tensors[f"{number}.since_fired"] = trainer.n_forward_passes_since_fired
        tensors[f"{number}.losses"] = training.curve.losses
        facts.append(
            {
                "adam": adam["param_groups"],
                "lr_scheduler": trainer.lr_scheduler.state_dict(),
                "coefficients": {
                    name: scheduler.state_dict()
                    for name, scheduler in trainer.coefficient_schedulers.items()
                },
                "n_training_samples": trainer.n_training_samples,
                "n_frac_active_samples": trainer.n_frac_active_samples,
                "probes": training.curve.probes,
            }
        )
    save_state(state, step, tensors, {"passes": facts, "seconds": seconds})


def _resume(trainings: Sequence[_Training], state: Path) -> float:
    """Restore the newest intact state, if any; return the seconds of training before it."""
    latest = load_latest(state)
    if latest is None:
        return 0.0
    tensors, facts = latest
    for number, (training, saved) in enumerate(zip(trainings, facts["passes"], strict=True)):
        trainer, device = training.trainer, training.trainer.sae.device
        own = _part(tensors, f"{number}.")
        trainer.sae.load_state_dict(_part(own, "sae."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(own, "adam.").items():
            parameter, name = key.split(".")
            moments.setdefault(int(parameter), {})[name] = value
        trainer.optimizer.load_state_dict({"state": moments, "param_groups": saved["adam"]})
        trainer.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        for name, scheduler in trainer.coefficient_schedulers.items():
            scheduler.load_state_dict(saved["coefficients"][name])
        trainer.act_freq_scores = own["act_freq_scores"].to(device)
        trainer.n_forward_passes_since_fired = own["since_fired"].to(device)
        trainer.n_training_steps = facts["step"]
        trainer.n_training_samples = saved["n_training_samples"]
        trainer.n_frac_active_samples = saved["n_frac_active_samples"]
        training.curve = Curve(own["losses"].to(device), saved["probes"])
    log.info("training of the autoencoder resumes at step %s", facts["step"])
    return float(facts["seconds"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
