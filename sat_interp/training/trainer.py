"""Optimiser steps, as every process of a run does them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sat_interp._util.devices import has_bfloat16
from sat_interp._util.errors import UserError, first_line
from sat_interp.data.corpus import TokenCorpus
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.config import TrainConfig
from sat_interp.training.density import density_at, keep_largest, sparse_parameters
from sat_interp.training.distributed import Processes
from sat_interp.training.initial import is_gate
from sat_interp.training.loss import Losses, LossWeights, training_loss

logger = logging.getLogger(__name__)

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Names of AdamW's state of a parameter."""
COLUMNS = ("clean", "ablated", "reconstruction", "grad_norm")
HELD = "held"
"""Column of the divergence from the initial model; there only where the run has a weight for it."""


class NonFiniteLossError(UserError):
    """The loss, its gradient or the weights are NaN or infinite from ``step`` on."""

    def __init__(self, step: int, what: str = "the loss or its gradient is") -> None:
        super().__init__(f"{what} not finite at step {step}")
        self.step = step


class Trainer:
    """Model, optimiser and the numbers of the steps since the last line of the log.

    Nothing here waits for the device: losses stay in ``history`` until :meth:`recent` reads them.
    Step s draws its windows and seeds its random gates from (seed, s) alone, so the state is the
    weights, the moments and ``history``.

    Args:
        original: the model that the clean stream is held to, where it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SelfAblatingTransformer,
        corpus: TokenCorpus,
        processes: Processes,
        original: SelfAblatingTransformer | None = None,
    ) -> None:
        self.config, self.model, self.corpus, self.processes = config, model, corpus, processes
        self.step = 0
        self.trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            _groups(config, self.trained),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._sparse = sparse_parameters(self.trained) if config.weight_density < 1 else []
        self.columns = (*COLUMNS, HELD) if config.hold_weight else COLUMNS
        self.history = torch.zeros(config.log_every, len(self.columns), device=processes.device)
        self._plain_loss: Callable[..., Losses] = training_loss
        if original is not None:
            self._plain_loss = partial(training_loss, original=original)
        self._loss = self._plain_loss
        self._is_untried = config.compile
        if config.precision == "bf16" and not has_bfloat16(processes.device):
            logger.warning("this CPU has no bf16 instructions: float32 would be many times faster")
        if config.compile:
            self._loss = torch.compile(self._plain_loss, dynamic=False)

    @property
    def tokens_per_step(self) -> int:
        """Targets in one optimiser step, over all processes."""
        config = self.config
        return config.batch_size * config.accumulate * config.n_ctx * self.processes.world

    def advance(self) -> None:
        """One optimiser step: the next windows, their gradient, AdamW, weight sparsity."""
        self.model.train()
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step) * group["share"]
        losses = self._gradients(self._windows())
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        self.processes.average([*gradients, losses])
        norm = torch.nn.utils.clip_grad_norm_(
            self.trained.values(), self.config.clip_norm or math.inf
        )
        self.optimizer.step()
        if self._sparse:
            density = density_at(self.config.weight_density, self.step, self.config.steps)
            keep_largest(self._sparse, density)
        row = self.history[self.step % self.config.log_every]
        row[:3] = losses[:3]
        row[3] = norm
        row[4:] = losses[3:]
        self.step += 1

    def recent(self) -> dict[str, float]:
        """Means of the columns over the steps since the last line of the log.

        Raises:
            NonFiniteLossError: one of these steps had a loss or gradient that is NaN or infinite.
        """
        filled = (self.step - 1) % self.config.log_every + 1
        rows = self.history[:filled].double().cpu()
        bad = (~rows.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            raise NonFiniteLossError(self.step - filled + 1 + int(bad[0]))
        means = dict(zip(self.columns, rows.mean(dim=0).tolist(), strict=True))
        if not self.model.ablation.is_gated:
            del means["ablated"]
        if not (self.model.ablation.is_gated and self.config.reconstruction_weight):
            del means["reconstruction"]
        return means

    def check_finite(self) -> None:
        """Check that weights and moments are finite after the last update.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        state = [*self.trained.values()]
        for parameter in self.trained.values():
            state += self.optimizer.state.get(parameter, {}).values()
        flags = torch.stack([tensor.isfinite().all().to(state[0].device) for tensor in state])
        if not flags.all():
            raise NonFiniteLossError(self.step, "the weights are")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that later steps depend on, by name."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        return {**state, "history": self.history}

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Do nothing if :meth:`load` accepts these tensors.

        Raises:
            ValueError: they are another model's, or lack moments, or have other shapes.
        """
        own = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        given = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        for name in sorted(own.keys() | given.keys()):
            shapes = [tuple(side[name].shape) if name in side else None for side in (given, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the checkpoint is another model's: {name.removeprefix('model.')} is "
                    f"{shapes[0]} there and {shapes[1]} here"
                )
        wanted = {**own, "history": self.history}
        for name, parameter in self.trained.items():
            names = [f"optimizer.{key}.{name}" for key in MOMENTS]
            if any(item in tensors for item in names):  # a parameter without a gradient has none
                scalar = parameter.new_empty(())
                wanted |= dict(zip(names, (scalar, parameter, parameter), strict=True))
        for name in sorted(wanted.keys() | tensors.keys()):
            if name not in tensors or name not in wanted:
                raise ValueError(f"{name} is {'missing' if name in wanted else 'unknown'}")
            if tensors[name].shape != wanted[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}")
            if tensors[name].dtype != wanted[name].dtype and name not in own:
                raise ValueError(f"{name} is of {tensors[name].dtype}")
            if tensors[name].is_floating_point() != wanted[name].is_floating_point():
                raise ValueError(f"{name} is of {tensors[name].dtype}")

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Load the state that :meth:`tensors` gave after ``step`` steps; see :meth:`check`."""
        weights = {
            name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
            if name.startswith("model.")
        }
        self.model.load_state_dict(weights)
        for name, parameter in self.trained.items():
            moments = {}
            for key in MOMENTS:
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    moments[key] = value.to(parameter.device)
            if moments:
                self.optimizer.state[parameter] = moments
        self.history.copy_(tensors["history"])
        self.step = step

    def _windows(self) -> Tensor:
        """This process' share of the step's windows, micro-batch by micro-batch."""
        config, processes = self.config, self.processes
        share = config.batch_size * config.accumulate
        windows = self.corpus.windows(
            seed=config.seed, step=self.step, batch=share * processes.world, length=config.n_ctx + 1
        )
        own = windows[processes.rank * share : (processes.rank + 1) * share]
        if self.corpus.start != self.corpus.end_of_text:
            own = with_starts(own, self.corpus.end_of_text, self.corpus.start)
        return own.to(processes.device, non_blocking=True)

    def _weights(self) -> LossWeights:
        """The loss weights of this step."""
        config = self.config
        ablated: float | Tensor = config.ablated_weight_at(self.step)
        if config.compile and not config.ablated_schedule.is_constant:
            # A tensor, because a compiled loss is compiled again for every new number.
            ablated = torch.tensor(ablated, device=self.processes.device)
        return LossWeights(
            config.clean_weight, ablated, config.reconstruction_weight, config.hold_weight
        )

    def _gradients(self, windows: Tensor) -> Tensor:
        """Leave the mean gradient in the parameters; return the mean clean, ablated, rec. loss."""
        if not self._is_untried:
            return self._accumulate(windows)
        # Compiling happens in the first call; a compiler that is missing shows itself there.
        self._is_untried = False
        try:
            return self._accumulate(windows)
        except Exception as error:  # compilers have no common base class for their failures
            logger.warning("torch.compile failed (%s): training without it", first_line(error))
            self._loss = self._plain_loss
            return self._accumulate(windows)

    def _accumulate(self, windows: Tensor) -> Tensor:
        config, device = self.config, self.processes.device
        self.optimizer.zero_grad(set_to_none=True)
        sums, weights = torch.zeros(len(self.columns) - 1, device=device), self._weights()
        for micro in windows.split(config.batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                losses = self._loss(self.model, micro, weights)
            (losses.total / config.accumulate).backward()
            for column, loss in enumerate(losses[1 : len(sums) + 1]):
                if loss is not None:
                    sums[column] += loss / config.accumulate
        return sums


def with_starts(
    windows: Int64[Tensor, "batch length"], end: int, start: int
) -> Int64[Tensor, "batch length"]:
    """The windows with ``start`` after each ``end``, cut to their length again.

    So each story of a model with a BOS token of its own follows that token, as in evaluations.
    """
    rows = []
    for row in windows.numpy():
        ends = np.flatnonzero(row == end) + 1
        rows.append(np.insert(row, ends, start)[: len(row)])
    return torch.from_numpy(np.stack(rows))


def _groups(config: TrainConfig, trained: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Parameters by learning rate; ``share`` is the factor on that of the step."""
    if config.gate_learning_rate is None:
        return [{"params": list(trained.values()), "share": 1.0}]
    gates = [parameter for name, parameter in trained.items() if is_gate(name)]
    base = [parameter for name, parameter in trained.items() if not is_gate(name)]
    shares = (1.0, config.gate_learning_rate / config.learning_rate)
    groups = zip((base, gates), shares, strict=True)
    return [{"params": params, "share": share} for params, share in groups if params]


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for torch that depends on all three and on nothing else."""
    words: Any = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return int(words[0])
