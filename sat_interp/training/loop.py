"""One run from its configuration to its directory."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_interp._util.errors import UserError
from sat_interp._util.progress import bar
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.build import build_model, shape_of
from sat_interp.training.config import TrainConfig
from sat_interp.training.density import density_at
from sat_interp.training.directory import RunDirectory, read_log
from sat_interp.training.distributed import Processes
from sat_interp.training.facts import check_facts
from sat_interp.training.initial import copy_of
from sat_interp.training.inputs import (
    Inputs,
    current_identity,
    load_inputs,
    refuse_changed,
)
from sat_interp.training.plot import draw_losses
from sat_interp.training.report import (
    Cost,
    model_card_facts,
    open_tracker,
    summarise,
    title,
)
from sat_interp.training.report import (
    losses as losses_of,
)
from sat_interp.training.state import State, checkpoints, load_latest, save_state
from sat_interp.training.trainer import NonFiniteLossError, Trainer
from sat_interp.training.validate import validate

logger = logging.getLogger(__name__)

Watch = Callable[[SelfAblatingTransformer], Mapping[str, float]]
"""What a caller measures at every validation: the model, in evaluation mode, to figures by name."""

REPORTS = 20
"""Lines of progress over a run, where no terminal shows a bar."""


@dataclass
class TrainResult:
    """A finished run.

    Attributes:
        model: with the weights after the last step, in evaluation mode.
        out: the run's directory.
        summary: content of ``summary.json``: cost, final and best validation losses.
    """

    model: SelfAblatingTransformer
    out: Path
    summary: dict[str, Any]


@dataclass
class Progress:
    """State of a run besides its tensors; part of every checkpoint."""

    last: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def run(
    config: TrainConfig,
    ranks: Processes,
    inputs: Inputs | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train one run among ``ranks``; ``inputs`` saves loading them again."""
    shape_of(config)  # an impossible shape is refused before a directory is created
    directory = RunDirectory(config.out or "", writes=ranks.is_first)
    with directory.claim(config, ranks.world):
        ranks.wait()
        if done := finished_result(config, directory, inputs):
            return done
        inputs = inputs or load_inputs(config, directory, ranks)
        model = build_model(config, inputs.tokenizer, ranks.device)
        model.recomputes_blocks = config.gradient_checkpointing
        original = copy_of(model) if config.hold_weight else None
        trainer = Trainer(config, model, inputs.train, ranks, original)
        with _kept_up_to(directory, trainer):
            return _TrainingRun(config, directory, inputs, trainer, watch).finish()


def finished_result(
    config: TrainConfig, directory: RunDirectory, inputs: Inputs | None = None
) -> TrainResult | None:
    """Result of a finished run from its directory; None if the run is not finished.

    Raises:
        UserError: its data or tokenizer changed since, or cannot be read.
    """
    summary = directory.finished(whole=True)
    if not summary:
        return None
    now = inputs.identity() if inputs else current_identity(config, directory)
    if before := summary.get("inputs") or directory.checkpointed_inputs():
        refuse_changed(before, now, directory)
    else:
        logger.warning(
            "%s does not record its data: cannot check whether the data changed", directory.path
        )
    logger.info("%s has already finished", directory.path)
    return TrainResult(
        SelfAblatingTransformer.from_pretrained(directory.model), directory.path, summary
    )


class _TrainingRun:
    """The remaining steps of a run, and the files written between them."""

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        inputs: Inputs,
        trainer: Trainer,
        watch: Watch | None = None,
    ) -> None:
        self.config, self.directory, self.inputs, self.trainer = config, directory, inputs, trainer
        self.watch = watch
        self.progress = Progress()
        self._resume()
        self.started = time.perf_counter() - self.progress.seconds
        self.tick, self.tick_step = time.perf_counter(), trainer.step
        self.tracker = open_tracker(config, directory)

    def finish(self) -> TrainResult:
        """Do the remaining steps and write the results."""
        trainer, config = self.trainer, self.config
        if config.init is not None and trainer.step == 0:
            self.progress.initial = self._losses()
        with bar(total=config.steps, initial=trainer.step, desc="training", unit="step") as shown:
            while trainer.step < config.steps:
                trainer.advance()
                shown.update()
                if self._is_due(config.log_every):
                    shown.set_postfix(self._log(quiet=not shown.disable))
                if self._is_due(config.validate_every):
                    self._validate()
                if self._is_due(config.checkpoint_every):
                    self._checkpoint()
        return self._leave()

    def _is_due(self, every: int) -> bool:
        step = self.trainer.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _log(self, quiet: bool) -> dict[str, str]:
        """Write a line of the log; return the values for the progress bar."""
        trainer = self.trainer
        means = trainer.recent()  # waits for the device
        now = time.perf_counter()
        speed = (trainer.step - self.tick_step) * trainer.tokens_per_step / (now - self.tick)
        self.tick, self.tick_step = now, trainer.step
        self._write(
            {
                "step": trainer.step,
                "tokens": trainer.step * trainer.tokens_per_step,
                "learning_rate": self.config.learning_rate_at(trainer.step - 1),
                **self._gate_rate(),
                **self._weight(),
                **means,
                "tokens_per_second": round(speed, 1),
                "seconds": round(now - self.started, 3),
            }
        )
        shown: dict[str, str] = {
            name: f"{means[name]:.3f}" for name in ("clean", "ablated") if name in means
        }
        shown["tok/s"] = f"{speed:,.0f}"
        share = self.config.steps / REPORTS
        if not quiet and trainer.step // share > (trainer.step - self.config.log_every) // share:
            numbers = ", ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d of %d: %s", trainer.step, self.config.steps, numbers)
        return shown

    def _gate_rate(self) -> dict[str, float]:
        """Learning rate of the gates in the last step, where it is one of its own."""
        rate, config = self.config.gate_learning_rate, self.config
        if rate is None:
            return {}
        share = rate / config.learning_rate
        return {"gate_learning_rate": share * config.learning_rate_at(self.trainer.step - 1)}

    def _weight(self) -> dict[str, float]:
        """The ablated loss's weight in the last step, for the log of a run with gates."""
        if not self.config.is_gated:
            return {}
        return {"ablated_weight": self.config.ablated_weight_at(self.trainer.step - 1)}

    def _validate(self) -> None:
        trainer, progress = self.trainer, self.progress
        trainer.recent()  # raises if the model is no longer finite
        facts = progress.last = self._losses()
        # Before the end of a ramp the ablated stream is not yet trained at its full weight, and
        # while the density falls the weights are not yet as sparse as asked for.
        config, last = self.config, trainer.step - 1
        is_settled = config.ablated_schedule.is_settled(trainer.step / config.steps)
        density = density_at(config.weight_density, last, config.steps)
        counts = is_settled and density == config.weight_density
        # A frozen clean stream stays as it is: then the other one decides.
        measure = "validation_ablated" if self.config.freeze == "base" else "validation_clean"
        if counts and facts[measure] < progress.best.get(measure, math.inf):
            progress.best = facts
            self._save_model(self.directory.best, facts)
        self.tick, self.tick_step = time.perf_counter(), trainer.step

    def _losses(self) -> dict[str, Any]:
        """Validate, log and return the losses."""
        trainer = self.trainer
        losses = validate(
            trainer.model, self.inputs.validation, trainer.processes, self.config.seed
        )
        if not math.isfinite(losses.clean) or not math.isfinite(losses.ablated or 0.0):
            # The losses of training are from before the last update: this may be the first sign.
            raise NonFiniteLossError(trainer.step, "the validation loss is")
        facts: dict[str, Any] = {"step": trainer.step, "validation_clean": losses.clean}
        if losses.ablated is not None:
            facts["validation_ablated"] = losses.ablated
        self._write({**facts, **self._watched()})
        ablated = f", ablated {losses.ablated:.4f}" if losses.ablated is not None else ""
        logger.info("step %d: validation clean %.4f%s", trainer.step, losses.clean, ablated)
        return facts

    def _watched(self) -> Mapping[str, float]:
        """What the caller measures of the model as it is now; it changes nothing."""
        if self.watch is None:
            return {}
        model = self.trainer.model.eval()
        with torch.no_grad():
            return self.watch(model)

    def _checkpoint(self) -> None:
        trainer, progress = self.trainer, self.progress
        trainer.recent()  # a state that is no longer finite must not replace a valid one
        trainer.check_finite()
        if self.directory.writes:
            facts = {
                "last": progress.last,
                "best": progress.best,
                "seconds": time.perf_counter() - self.started,
                "log_bytes": self.directory.log_size(),
                **({"initial": progress.initial} if progress.initial else {}),
                "inputs": self.inputs.identity(),
                "config_hash": self.config.hash(),
            }
            save_state(self.directory.checkpoints, trainer.step, trainer.tensors(), facts)
        trainer.processes.wait()
        self.tick, self.tick_step = time.perf_counter(), trainer.step

    def _resume(self) -> None:
        """Load the newest valid checkpoint, or start from the beginning."""
        state = self._sound_state()
        if state is None:
            self.directory.cut_log(0)
            return
        tensors, facts = state
        refuse_changed(facts["inputs"], self.inputs.identity(), self.directory)
        self.trainer.load(facts["step"], tensors)
        initial = facts.get("initial", {})
        self.progress = Progress(facts["last"], facts["best"], initial, facts["seconds"])
        self.directory.cut_log(facts["log_bytes"])
        logger.info("continuing from step %d", self.trainer.step)

    def _sound_state(self) -> State | None:
        """The newest valid checkpoint, including its part of the log."""

        def check(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
            check_facts(facts)
            self.trainer.check(tensors)

        def check_all(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
            check(tensors, facts)
            self.directory.check_log(facts["log_bytes"])

        try:
            return load_latest(self.directory.checkpoints, check_all)
        except UserError:
            # A log that is damaged from its beginning must not cost the run.
            return load_latest(self.directory.checkpoints, check)

    def _leave(self) -> TrainResult:
        trainer, directory = self.trainer, self.directory
        model = trainer.model.eval()
        progress = self.progress
        summary = summarise(trainer, self.inputs, self._cost(), progress.last, progress.best)
        if progress.initial:
            summary["initial"] = losses_of(progress.initial)
        if directory.writes:
            self._save_model(directory.model, self.progress.last)
            draw_losses(read_log(directory.log), directory.figure, title(self.config))
            directory.write_summary(summary)
        trainer.processes.wait()
        if self.tracker is not None:
            self.tracker.finish()
        return TrainResult(model, directory.path, summary)

    def _save_model(self, path: Path, validation: dict[str, Any]) -> None:
        if not self.directory.writes:
            return
        card = model_card_facts(self.config, self.directory.path.name, self._cost(), validation)
        dtype = torch.float16 if self.config.stored_precision == "float16" else None
        self.trainer.model.save_pretrained(path, card=card, dtype=dtype)

    def _cost(self) -> Cost:
        trainer = self.trainer
        return Cost(
            steps=trainer.step,
            tokens=trainer.step * trainer.tokens_per_step,
            seconds=time.perf_counter() - self.started,
        )

    def _write(self, line: dict[str, Any]) -> None:
        self.directory.write_log(line)
        if self.tracker is not None:
            self.tracker.log(line, step=line["step"])


@contextmanager
def _kept_up_to(directory: RunDirectory, trainer: Trainer) -> Iterator[None]:
    """Add to every error which checkpoint is left."""
    try:
        yield
    except (NonFiniteLossError, OSError) as error:
        kept = checkpoints(directory.checkpoints)
        left = (
            f"the last checkpoint is {kept[-1]}" if kept else "no checkpoint has been written yet"
        )
        if isinstance(error, OSError):
            where = f" {error.filename}" if error.filename else ""
            raise UserError(
                f"cannot write{where}: {error.strerror or error}; {left}: "
                "free some space, then --resume"
            ) from error
        raise UserError(
            f"{error}: lower learning_rate ({trainer.config.learning_rate}) or clip_norm; {left}"
        ) from error
