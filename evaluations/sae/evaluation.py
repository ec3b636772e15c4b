"""The evaluation: find an autoencoder or train it, measure it, say how its training went."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer

from evaluations.autoencoder import open_sae, weights_hash
from evaluations.record import Metric, hash_of
from evaluations.runner import Evaluation, Result
from evaluations.sae.build import Trainer
from evaluations.sae.config import SaeConfig
from evaluations.sae.convergence import verdict
from evaluations.sae.measure import (
    ce_loss_score,
    density_histogram,
    measure,
    metrics,
    replicates,
)
from evaluations.sae.train import TRAINING, check_budget, train
from evaluations.text import Text, check_vocabulary
from sat_interp.data.corpus import TokenCorpus
from sat_interp.fast_hook import layer_of

PROBE_WINDOWS = 8
REPLICATES = 500
"""Bootstrap resamples whose figures a record keeps for fronts."""


@dataclass(frozen=True)
class SaeData:
    """The text to train on, the text to measure on, and where autoencoders lie.

    Attributes:
        corpus: training text, in the model's tokens.
        text: held-out text.
        directory: of this model's autoencoders.
        model: its name, and the hash of its weights and configuration (``runner.model_key``).
        together: those to train in one pass; they decide nothing about any one of them.
        given: somebody's SAELens directory, measured instead of training one.
        again: train what is there already, too.
    """

    corpus: TokenCorpus
    text: Text
    directory: Path
    model: dict[str, Any]
    together: Sequence[SaeConfig] = ()
    given: Path | None = None
    again: bool = False
    trained: set[Path] = field(default_factory=set)
    """Written by this command: ``again`` holds for each once."""

    @cached_property
    def content(self) -> str:
        """A hash of both texts."""
        key = self.corpus.directory.name.rpartition("-")[2]
        return hashlib.sha256(f"{key} {self.text.content}".encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What a record says: the held-out text, and how much there was to train on."""
        told = self.text.describe()
        return {**told, "content": self.content, "train_tokens": len(self.corpus.tokens)}

    def place(self, model: HookedTransformer, config: SaeConfig) -> Path:
        """Where the autoencoder of this configuration lies, or will."""
        trained = dataclasses.replace(config, resamples=0)  # measuring decides nothing about it
        known = {name: value for name, value in self.model.items() if name != "name"}
        key = hash_of({"sae": trained, "text": self.content, "model": known})
        return self.directory / f"{config.hook_in(model)}-{config.label.replace(' ', '-')}-{key}"


def sparse_autoencoder(model: HookedTransformer, data: SaeData, config: SaeConfig) -> Result:
    """Train an autoencoder where there is none, and measure it over the whole validation split.

    Raises:
        UserError: what training and measuring raise; text whose tokens the model does not know.
    """
    check_vocabulary(model, data.text)
    was_training = model.training
    model.eval()
    hook = config.hook_in(model)
    if data.given is not None:
        place = data.given
    else:
        place = data.place(model, config)
        _train_missing(model, data, config)
    sae = open_sae(place, str(model.W_E.device))
    found = measure(model, sae, hook, data.text)
    model.train(was_training)
    figures = metrics(found, config.seed, config.resamples)
    told = _training_told(place)
    explained = next(one.value for one in figures if one.name == "explained_variance")
    if told:
        figures += _training_metrics(told)
    tokens = int(found.tokens.sum())
    extra = {
        "sae": {
            "hook": hook,
            "label": config.label if data.given is None else place.name,
            "directory": place.name,
            "d_in": int(sae.cfg.d_in),
            "d_sae": int(sae.cfg.d_sae),
            "weights": weights_hash(place),
        },
        "convergence": verdict(told.get("loss_fall"), explained) if told else "not trained here",
        "training": {key: value for key, value in told.items() if key != "config"},
        "density": density_histogram(found.fired, tokens),
        "replicates": replicates(found, config.seed, min(config.resamples, REPLICATES)),
    }
    return Result(figures, extra)


def check(model: HookedTransformer, config: SaeConfig) -> None:
    """Refuse a model without the hook point, and a budget below one buffer of activations.

    Raises:
        UserError: either.
    """
    layer_of(model, config.hook_in(model))
    if config.given is None:
        check_budget(config, config.context_in(model))


EVALUATION = Evaluation("sae", SaeConfig, sparse_autoencoder, version=2, check=check)


def _train_missing(model: HookedTransformer, data: SaeData, config: SaeConfig) -> None:
    """Train this one, and in the same pass those wanted beside it that are not there yet."""
    group = list(dict.fromkeys([*data.together, config]))
    places = {data.place(model, one): one for one in group}
    if data.place(model, config) in data.trained:
        return
    targets = places if data.again else _missing(places)
    if data.place(model, config) not in targets:
        return
    state = data.directory / f".training-{hash_of(sorted(place.name for place in targets))}"
    windows = _probe_windows(model, data, config)

    def probe(hook: str, trainer: Trainer) -> float | None:
        scaler, sae = trainer.activation_scaler, trainer.sae
        return ce_loss_score(
            model, hook, windows, lambda x: scaler.unscale(sae(scaler(x.to(sae.dtype))))
        )

    train(model, data.corpus, targets, state, {"model_name": data.model["name"]}, probe)
    data.trained.update(targets)


def _missing(places: dict[Path, SaeConfig]) -> dict[Path, SaeConfig]:
    return {place: one for place, one in places.items() if not (place / TRAINING).is_file()}


def _probe_windows(model: HookedTransformer, data: SaeData, config: SaeConfig) -> torch.Tensor:
    """A little held-out text for the progress bar's CE score."""
    context = config.context_in(model)
    stream = data.text.corpus
    length = min(context + 1, len(stream.tokens))
    drawn = stream.windows(seed=config.seed, step=0, batch=PROBE_WINDOWS, length=length)
    drawn[:, 0] = stream.start
    return drawn.to(model.W_E.device)


def _training_told(directory: Path) -> dict[str, Any]:
    """How an autoencoder of ours was trained; nothing of any other."""
    file = directory / TRAINING
    if not file.is_file():
        return {}
    told = json.loads(file.read_text(encoding="utf-8"))
    return told if isinstance(told, dict) else {}


def _training_metrics(told: dict[str, Any]) -> list[Metric]:
    fall, tokens = told.get("loss_fall"), int(told["tokens"])
    return [
        Metric(
            "loss_fall", "Fall of the loss in the last tenth of training", fall, "%", "lower",
            n=tokens, n_failed=int(fall is None),
            reasons={} if fall is not None else {"fewer than ten steps": 1},
            description="total training loss, last tenth against the one before; n: tokens",
        ),
    ]  # fmt: skip
