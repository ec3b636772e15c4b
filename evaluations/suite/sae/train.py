"""Training several autoencoders in one pass over the text; killed, it goes on where it was.

SAELens' trainers take the steps (``SAETrainer.step``, as its own coordinator of several
autoencoders calls it). What is ours is where the activations come from, that all of a pass read
the same ones, and that the state is saved without pickling and gone on from bit for bit.
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
"""Between two saved states."""

VERSION = 1
"""Of the training: raised when the same configuration would train another autoencoder."""

TRAINING = "training.json"
"""What a saved directory tells of its training, beside SAELens' own files."""

# What all autoencoders of one pass must agree on.
_SHARED = ("seed", "tokens", "batch_tokens", "context", "buffer_prompts", "norm_batches")

Probe = Callable[[str, Trainer], float | None]


@dataclass
class _Pass:
    """One autoencoder on its way."""

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
    """Train an autoencoder for each target directory, and write them when all are trained.

    An autoencoder is the same, bit for bit, alone or beside others, in one go or resumed.

    Args:
        corpus: the text to train on, in the model's tokens.
        targets: where each goes, in SAELens' format, and what it is.
        state: directory of the saved state, which is removed at the end.
        metadata: for SAELens' file: the model's name.
        probe: (hook point, trainer) -> CE loss score so far on a little held-out text.

    Raises:
        UserError: an unknown hook point, a budget below one buffer, a text shorter than the
            context, activations or losses that are not finite.
    """
    first = next(iter(targets.values()))
    _check(list(targets.values()), first.context_in(model))
    dtype = torch.float64 if model.W_E.dtype == torch.float64 else torch.float32
    hooks = list(dict.fromkeys(config.hook_in(model) for config in targets.values()))
    stream = ActivationStream(model, corpus, hooks, first, dtype)
    factors = scaling_factors(stream, min(first.norm_batches, first.steps))
    widths = {name: value.shape[1] for name, value in stream.batch(0).items()}
    passes = []
    for config in targets.values():
        hook = config.hook_in(model)
        told = {
            **metadata, "hook_name": hook, "context_size": stream.context,
            "prepend_bos": True, "bos_token_id": corpus.start,
        }  # fmt: skip
        trainer = build_trainer(config, widths[hook], model.W_E.device, dtype, told)
        trainer.activation_scaler.scaling_factor = factors[hook]
        passes.append(_Pass(config, hook, trainer, Curve.empty(config.steps, model.W_E.device)))
    seconds = _resume(passes, state)
    clock = time.perf_counter()
    _loop(passes, stream, state, probe, lambda: seconds + time.perf_counter() - clock)
    for target, one in zip(targets, passes, strict=True):
        _write(target, one, seconds + time.perf_counter() - clock)
    shutil.rmtree(state, ignore_errors=True)


def _check(configs: Sequence[SaeConfig], context: int) -> None:
    first = configs[0]
    for config in configs[1:]:
        for name in _SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ValueError(f"autoencoders of one pass differ in {name}")
    check_budget(first, context)


def _loop(
    passes: Sequence[_Pass],
    stream: ActivationStream,
    state: Path,
    probe: Probe,
    elapsed: Callable[[], float],
) -> None:
    steps, batch_tokens = passes[0].config.steps, stream.batch_tokens
    done, saved = passes[0].trainer.n_training_steps, time.perf_counter()
    bar = progress.bar(
        total=steps * batch_tokens, desc="sae: training", unit="tok", initial=done * batch_tokens
    )
    with bar:
        for step in range(done, steps):
            batch = stream.batch(step)
            for one in passes:
                _step(one, batch[one.hook], step)
            if (step + 1) * POINTS // steps > step * POINTS // steps:
                for one in passes:
                    one.curve.probe(step, probe(one.hook, one.trainer))
                bar.set_postfix_str(passes[0].curve.told(step))
                _refuse_divergence(passes, step)
            if time.perf_counter() - saved >= STATE_SECONDS and step + 1 < steps:
                _save(passes, state, step + 1, elapsed())
                saved = time.perf_counter()
            bar.update(batch_tokens)


def _step(one: _Pass, batch: Float[Tensor, "batch d_in"], step: int) -> None:
    """One step of SAELens' trainer, and what it cost."""
    trainer = one.trainer
    trainer.maybe_reset_sparsity()
    before = trainer.act_freq_scores.sum(dtype=torch.float64)
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    active = (trainer.act_freq_scores.sum(dtype=torch.float64) - before) / len(batch)
    one.curve.add(step, output.loss.detach(), output.losses["mse_loss"].detach(), active)


def _refuse_divergence(passes: Sequence[_Pass], step: int) -> None:
    for one in passes:
        if not torch.isfinite(one.curve.losses[: step + 1]).all():
            raise UserError(
                f"the loss of {one.config.label} at {one.hook} became NaN within {step + 1} steps: "
                "train with a lower lr"
            )


def _write(target: Path, one: _Pass, seconds: float) -> None:
    """The autoencoder as SAELens saves one for use, its scale folded in; and how it was trained.

    SAELens' own L0 and dead features at the end of training are not written: that L0 is a mean over
    the last 2,000 steps (43.0 where the finished autoencoder's is 6.8), and no feature can be dead
    before 1,000 steps. Dead in training is a feature that was active on no token of the last tenth
    of the steps. The L0 is written when it is measured (``autoencoder.write_l0``).
    """
    trainer = one.trainer
    factor = trainer.activation_scaler.scaling_factor
    assert factor is not None
    trainer.sae.fold_activation_norm_scaling_factor(factor)
    window = max(1, one.config.steps // 10)
    dead = int((trainer.n_forward_passes_since_fired >= window).sum())
    trainer.sae.cfg.metadata.num_dead_features = dead
    told = {
        "config": vars(one.config),
        "scaling_factor": factor,
        "dead_in_training": dead,
        "dead_over_tokens": window * one.config.batch_tokens,
        "tokens": trainer.n_training_samples,
        "seconds": round(seconds, 3),
        **one.curve.to_dict(),
    }
    with atomic_directory(target) as temporary:
        trainer.sae.save_inference_model(temporary)
        (temporary / TRAINING).write_text(json.dumps(told, indent=1), encoding="utf-8")


# Saved state ---------------------------------------------------------------------------------


def _save(passes: Sequence[_Pass], state: Path, step: int, seconds: float) -> None:
    tensors: dict[str, Tensor] = {}
    facts = []
    for number, one in enumerate(passes):
        trainer = one.trainer
        adam = trainer.optimizer.state_dict()
        tensors |= {f"{number}.sae.{key}": value for key, value in trainer.sae.state_dict().items()}
        for parameter, moments in adam["state"].items():
            tensors |= {f"{number}.adam.{parameter}.{key}": v for key, v in moments.items()}
        tensors[f"{number}.act_freq_scores"] = trainer.act_freq_scores
        tensors[f"{number}.since_fired"] = trainer.n_forward_passes_since_fired
        tensors[f"{number}.losses"] = one.curve.losses
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
                "probes": one.curve.probes,
            }
        )
    save_state(state, step, tensors, {"passes": facts, "seconds": seconds})


def _resume(passes: Sequence[_Pass], state: Path) -> float:
    """Go on from the newest sound state, if there is one; returns the seconds spent until then."""
    found = load_latest(state)
    if found is None:
        return 0.0
    tensors, facts = found
    for number, (one, told) in enumerate(zip(passes, facts["passes"], strict=True)):
        trainer, device = one.trainer, one.trainer.sae.device
        mine = _part(tensors, f"{number}.")
        trainer.sae.load_state_dict(_part(mine, "sae."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(mine, "adam.").items():
            parameter, name = key.split(".")
            moments.setdefault(int(parameter), {})[name] = value
        trainer.optimizer.load_state_dict({"state": moments, "param_groups": told["adam"]})
        trainer.lr_scheduler.load_state_dict(told["lr_scheduler"])
        for name, scheduler in trainer.coefficient_schedulers.items():
            scheduler.load_state_dict(told["coefficients"][name])
        trainer.act_freq_scores = mine["act_freq_scores"].to(device)
        trainer.n_forward_passes_since_fired = mine["since_fired"].to(device)
        trainer.n_training_steps = facts["step"]
        trainer.n_training_samples = told["n_training_samples"]
        trainer.n_frac_active_samples = told["n_frac_active_samples"]
        one.curve = Curve(mine["losses"].to(device), told["probes"])
    log.info("training of the autoencoder goes on at step %s", facts["step"])
    return float(facts["seconds"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
