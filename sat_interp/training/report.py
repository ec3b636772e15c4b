"""Reports of a run: its summary, the facts of its model card, its figure's title, its tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_interp._util import escape
from sat_interp._util.errors import UserError, first_line
from sat_interp._util.provenance import provenance
from sat_interp.data.sources import file_names
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.inputs import Inputs
from sat_interp.training.trainer import Trainer


@dataclass(frozen=True)
class Cost:
    """Cost of a run so far, over all its processes and resumptions."""

    steps: int
    tokens: int
    seconds: float


def summarise(
    trainer: Trainer, inputs: Inputs, cost: Cost, last: dict[str, Any], best: dict[str, Any]
) -> dict[str, Any]:
    """Content of ``summary.json``: cost of the run, and its last and best validation losses."""
    config = trainer.config
    return {
        "steps": cost.steps,
        "tokens": cost.tokens,
        "seconds": round(cost.seconds, 2),
        "tokens_per_second": round(cost.tokens / cost.seconds, 1),
        "final": losses(last),
        "best": losses(best),
        "validation_stories": len(inputs.validation),
        "training_tokens_available": len(inputs.train.tokens),
        "inputs": inputs.identity(),
        "parameters": sum(parameter.numel() for parameter in trainer.trained.values()),
        "processes": trainer.processes.world,
        "device": str(trainer.processes.device),
        "config": config.to_dict(),
        "config_hash": config.hash(),
        **provenance(),
    }


def model_card_facts(
    config: TrainConfig, name: str, cost: Cost, validation: dict[str, Any]
) -> dict[str, Any]:
    """Facts for the model card, under the names ``sat_interp.io.card`` knows."""
    facts = provenance()
    return {
        "name": name,
        "preset": config.preset,
        "data": file_names(config.data),
        "tokenizer": "that of init" if config.tokenizer is None else file_names(config.tokenizer),
        "seed": config.seed,
        "steps": cost.steps,
        "tokens": cost.tokens,
        "seconds": round(cost.seconds, 1),
        **{name: value for name, value in losses(validation).items() if name != "step"},
        "precision": config.precision,
        **_begun(config),
        "windows_per_step": cost.tokens // cost.steps // config.n_ctx,
        "learning_rate": config.learning_rate,
        "initializer_range": config.initializer_range,
        "embedding_range": config.embedding_range or config.initializer_range,
        "loss_weights": (
            f"clean {config.clean_weight:g}, ablated {_plain(config.ablated_weight)}, "
            f"reconstruction {config.reconstruction_weight:g}"
            if config.is_gated
            else "clean 1"
        ),
        **({"weight_density": config.weight_density} if config.weight_density < 1 else {}),
        "config_hash": config.hash(),
        "hardware": facts["hardware"],
        "commit": facts["commit"],
    }


def _begun(config: TrainConfig) -> dict[str, Any]:
    """Facts of a run that began from a pretrained model."""
    if config.init is None:
        return {}
    return {
        "init": Path(config.init).name,
        "freeze": config.freeze,
        "hold_weight": config.hold_weight,
        "gate_learning_rate": config.gate_learning_rate or config.learning_rate,
    }


def _plain(weight: float | str) -> str:
    return weight if isinstance(weight, str) else f"{weight:g}"


def losses(validation: dict[str, Any]) -> dict[str, Any]:
    """A validation line of the log as losses (nats per token) and perplexities.

    Perplexities are capped at e^700: JSON has no infinity.
    """
    facts: dict[str, Any] = {"step": validation["step"]}
    for stream in ("clean", "ablated"):
        if (loss := validation.get(f"validation_{stream}")) is not None:
            facts[f"{stream}_loss"] = loss
            facts[f"{stream}_perplexity"] = math.exp(min(loss, 700.0))
    return facts


def describe(final: dict[str, Any]) -> str:
    """``clean 1.2 (perplexity 3.3), ablated 1.5 (perplexity 4.5)``."""
    return ", ".join(
        f"{stream} {final[f'{stream}_loss']:.4f} (perplexity {final[f'{stream}_perplexity']:.2f})"
        for stream in ("clean", "ablated")
        if f"{stream}_loss" in final
    )


def title(config: TrainConfig) -> str:
    """A figure's title: the data, the gates, the seed."""
    data = escape.figure(", ".join(Path(part).name for part in config.data.split(",")))
    if not config.ablation.is_gated:
        return f"{data}: no gates, seed {config.seed}"
    kind = config.variant if config.gates == "learned" else f"{config.variant} {config.gates}"
    k = f"k = {config.k_attention} attention units, {config.k_neurons} neurons"
    return f"{data}: {kind} gates, {k}, seed {config.seed}"


def open_tracker(config: TrainConfig, directory: RunDirectory) -> Any:
    """Start the Weights & Biases run if the configuration names a project; else None.

    Raises:
        UserError: wandb is not installed, or cannot start (no key, no network, ...).
    """
    if config.wandb is None or not directory.writes:
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "wandb is not installed: pip install 'sat-interp[wandb]', or leave --wandb out"
        ) from error
    place = directory.path.resolve()
    try:
        return wandb.init(
            project=config.wandb,
            name=place.name,
            dir=str(place),
            config=config.to_dict(),
            id=f"{place.name}-{config.hash()}",
            resume="allow",
        )
    except Exception as error:  # wandb's errors and its dependencies' have no common base class
        raise UserError(
            f"wandb cannot start ({first_line(error)}): run wandb login, set "
            "WANDB_MODE=offline, or leave --wandb out"
        ) from error
