"""Training as notebooks and the shell call it: one run, or the run that matches a perplexity."""

from __future__ import annotations

import dataclasses

import torch

from sat_interp._util.errors import UserError
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import absolute_inputs
from sat_interp.training.distributed import processes
from sat_interp.training.initial import adopted
from sat_interp.training.loop import TrainResult, Watch, run
from sat_interp.training.match import train_matched


def train(config: TrainConfig, watch: Watch | None = None) -> TrainResult:
    """Train a model and leave everything about it in ``config.out``.

    Paths of data and tokenizer are made absolute: the run can be resumed from any directory.

    The caller's random state is left as it was.

    Args:
        watch: called with the model at every validation; the figures that it returns are written to
            the validation's line of ``log.jsonl``. It must not change the model.

    Raises:
        UserError: settings, data or directory do not allow it, or the loss became NaN; ``watch``
            with ``match_perplexity``, which is several runs.
        OSError: the directory cannot be written.
    """
    if config.out is None:
        raise UserError("a run needs a directory: pass --out DIR")
    if watch is not None and config.match_perplexity is not None:
        raise UserError("watch follows one run: leave out watch or match_perplexity")
    config = dataclasses.replace(config, **absolute_inputs(vars(config)))
    if config.init is not None:
        config = adopted(config)
    with torch.random.fork_rng(devices=[]), processes(config.device) as ranks:
        if config.match_perplexity is not None:
            return train_matched(config, ranks)
        return run(config, ranks, watch=watch)
