"""Train autoencoders where they do not exist yet, and measure them.

The identity of a training (``SaeData.training_identity``) differs from that of a record: an
autoencoder can be measured on another text, or on fewer stories, without being trained again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens import HookedTransformer

from evaluations.core.autoencoder import hook_point, open_sae, weights_hash, write_l0
from evaluations.core.inputs import opened_sae
from evaluations.core.models import LoadedModel, evaluation_mode
from evaluations.core.options import Request
from evaluations.core.outcome import Measured
from evaluations.core.record import Metric, hash_of
from evaluations.core.runner import model_directory, model_key
from evaluations.core.spec import Measurement
from evaluations.core.text import HASH_CHUNK, Text, check_vocabulary
from evaluations.core.text_source import training_text_finder
from evaluations.suite.sae.budget import check_budget, enough_text, fitted
from evaluations.suite.sae.build import Trainer
from evaluations.suite.sae.config import WITH_K, SaeConfig, SaeOptions, default_target, preset
from evaluations.suite.sae.convergence import verdict
from evaluations.suite.sae.front import is_converged
from evaluations.suite.sae.health import health_warnings, is_mostly_dead
from evaluations.suite.sae.measure import ce_loss_score, measure
from evaluations.suite.sae.metrics import autoencoder_metrics, density_histogram, replicates
from evaluations.suite.sae.search import VERSION as SEARCH_VERSION
from evaluations.suite.sae.search import (
    SearchResult,
    find_coefficient,
    read_search,
    with_coefficient,
)
from evaluations.suite.sae.train import TRAINING, VERSION, train
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically
from sat_interp.data.corpus import TokenCorpus
from sat_interp.model.fast import layer_of

log = logging.getLogger(__name__)

PROBE_WINDOWS = 8
REPLICATES = 500
"""Bootstrap resamples stored in a record for the intervals of fronts."""


@dataclass(frozen=True)
class SaeData:
    """Training text, evaluation text, and the directory of autoencoders.

    Attributes:
        corpus: training text, in the model's tokens.
        text: held-out text.
        directory: directory of this model's autoencoders.
        model: name, and hash of weights and configuration (``runner.model_key``).
        together: configurations to train in one pass; results do not depend on it.
        given: SAELens directory of an autoencoder to measure instead of training one.
        force: whether existing autoencoders are trained again.
        limit_budget: whether budgets are limited to 20 passes over the training text.
        trained: directories written in this run, which ``force`` does not train again.
    """

    corpus: TokenCorpus
    text: Text
    directory: Path
    model: dict[str, Any]
    together: Sequence[SaeConfig] = ()
    given: Path | None = None
    force: bool = False
    limit_budget: bool = False
    trained: set[Path] = field(default_factory=set)

    @cached_property
    def content(self) -> str:
        """Hash of both texts."""
        return hash_of([self.train_content, self.text.content])

    @cached_property
    def train_content(self) -> str:
        """Hash of the training text: tokens, story boundaries and the token that begins them."""
        digest = hashlib.sha256(np.asarray(self.corpus.offsets, dtype="<i8").tobytes())
        digest.update(str(self.corpus.start).encode())
        for first in range(0, len(self.corpus.tokens), HASH_CHUNK):
            part = self.corpus.tokens[first : first + HASH_CHUNK]
            digest.update(np.asarray(part, dtype="<u4").tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Describe the held-out text and the size of the training text."""
        description = self.text.describe()
        return {**description, "content": self.content, "train_tokens": len(self.corpus.tokens)}

    def training_identity(self, model: HookedTransformer, config: SaeConfig) -> dict[str, Any]:
        """Return everything that determines the training, independent of the measurement."""
        return {
            "version": VERSION,
            "config": config.training_in(model),
            "text": self.train_content,
            "model": {name: value for name, value in self.model.items() if name != "name"},
        }

    def place(self, model: HookedTransformer, config: SaeConfig) -> Path:
        """Return the directory of the autoencoder of this configuration.

        An autoencoder that was trained under another name of the model is reused.
        """
        key = hash_of(self.training_identity(model, config))
        name = f"{config.hook_in(model)}-{config.label.replace(' ', '-')}-{key}"
        own = self.directory / name
        if not (own / TRAINING).is_file():
            home = self.directory.parent  # results/NAME-WEIGHTS
            same_weights = f"*-{home.name.rpartition('-')[2]}/sae/{name}/{TRAINING}"
            own = next((path.parent for path in sorted(home.parent.glob(same_weights))), own)
        return own


def configs(request: Request) -> list[SaeConfig]:
    """Return one configuration for each requested hook point and coefficient.

    Raises:
        UserError: options that do not apply to the architecture or to a given autoencoder, or an
            autoencoder that cannot be opened.
    """
    options: SaeOptions = request.options
    has_k = options.architecture in WITH_K
    if options.l1 if has_k else options.k:
        wrong, right = ("--l1", "--k") if has_k else ("--k", "--l1")
        raise UserError(f"{wrong} does not apply to {options.architecture}: use {right}")
    base = preset(options.preset, options.architecture)
    base = dataclasses.replace(base, seed=options.seed, resamples=options.resamples)
    if options.tokens is not None:
        base = dataclasses.replace(base, tokens=options.tokens)
    hooks: Sequence[str | None] = options.hook
    if options.sae is not None:
        if options.l1 or options.k or options.target_l0:
            raise UserError(
                "--l1, --target-l0 and --k do not apply to an existing autoencoder (--sae)"
            )
        base = dataclasses.replace(base, given=opened_sae(options.sae))
        hooks = hooks or [hook_point(options.sae, "give it with --hook")]
    sparsities: list[dict[str, float | None]] = []
    sparsities += [{"sparsity": value} for value in dict.fromkeys(options.k or options.l1)]
    for value in dict.fromkeys(options.target_l0):
        sparsities.append({"sparsity": None, "target_l0": value})
    return [
        dataclasses.replace(base, hook=hook, **changes)  # type: ignore[arg-type]
        for hook in hooks or [None]
        for changes in sparsities or [{}]
    ]


def prepare(request: Request, configs: Sequence[SaeConfig]) -> Callable[[LoadedModel], SaeData]:
    """Return a function that gives each model its texts; held-out stories are never trained on."""
    text, options = request.text, request.options
    texts = training_text_finder(request.models, text.data, text.validation, text.stories)
    trained: set[Path] = set()

    def find(loaded: LoadedModel) -> SaeData:
        read = texts(loaded)
        return SaeData(
            corpus=read.corpus(),
            text=read.held_out(),
            directory=model_directory(request.out, loaded) / "sae",
            model={"name": loaded.name, "key": model_key(loaded)},
            together=configs,
            given=options.sae,
            force=request.run.force,
            limit_budget=options.tokens is None,
            trained=trained,
        )

    return find


def follow_up(request: Request, measured: Sequence[Measured]) -> list[tuple[Any, SaeConfig]]:
    """Return models whose autoencoder is unreliable with the default coefficient.

    Each is measured again with a coefficient found by a search, unless one was requested.
    """
    options: SaeOptions = request.options
    if options.l1 or options.target_l0 or options.k or options.sae:
        return []
    repeated = []
    for result in measured:
        is_sound = is_converged(result.record) and not is_mostly_dead(result.record.metrics)
        if not is_sound and result.config.architecture not in WITH_K:
            target = default_target(int(result.record.extra["sae"]["d_in"]))
            config = dataclasses.replace(result.config, sparsity=None, target_l0=target)
            repeated.append((result.model, config))
    return repeated


def preview(subject: Any) -> str:
    """Describe the default training on a model."""
    model, config = subject.known.model, preset("demo")
    available = subject.train_tokens(enough_text(config))
    budget = fitted(config, config.context_in(model), available)
    passes = f" ({budget.tokens / available:.1f} passes over the text)" if budget != config else ""
    return f"{budget.tokens:,} tokens{passes} at {budget.hook_in(model)}"


def evaluate(model: HookedTransformer, data: SaeData, config: SaeConfig) -> Measurement:
    """Train the autoencoder if it does not exist, and measure it on the whole validation split.

    The budget is that of the configuration after ``fit``.

    Raises:
        UserError: the search, training or measurement failed, or the text has tokens that the
            model does not know.
    """
    config = fit(model, data, config)
    check(model, config)
    check_vocabulary(model, data.text)
    with evaluation_mode(model):
        return _evaluated(model, data, config)


def _evaluated(model: HookedTransformer, data: SaeData, config: SaeConfig) -> Measurement:
    hook, search, label = config.hook_in(model), None, config.label
    if config.given is None and config.target_l0 is not None:
        search = _search(model, data, config)
        config = with_coefficient(config, search.coefficient)
        label = f"{config.label} (found, {label})"
    if data.given is not None:
        place = data.given
    else:
        place = data.place(model, config)
        _train_missing(model, data, config)
    sae = open_sae(place, str(model.W_E.device))
    sums = measure(model, sae, hook, data.text)
    metrics = autoencoder_metrics(sums, config.seed, config.resamples)
    training = read_training(place)
    metrics += training_metrics(training, int(sae.cfg.d_sae))
    if data.given is None:
        _write_l0(place, metrics, data.text)
    explained = next(metric.value for metric in metrics if metric.name == "explained_variance")
    passes = config.tokens / len(data.corpus.tokens) if data.given is None else None
    extra: dict[str, Any] = {
        "sae": {
            "hook": hook,
            "label": label if data.given is None else place.name,
            "directory": place.name,
            "d_in": int(sae.cfg.d_in),
            "d_sae": int(sae.cfg.d_sae),
            "weights": weights_hash(place),
            "sparsity": config.sparsity if data.given is None else None,
        },
        "health": health_warnings(metrics, passes),
        "budget": None if passes is None else {"tokens": config.tokens, "passes": passes},
        "convergence": verdict(training.get("loss_fall"), explained)
        if training
        else "not trained here",
        "training": {key: training[key] for key in training if key not in ("config", "search")},
        "density": density_histogram(sums.fired, int(sums.tokens.sum())),
        "replicates": replicates(sums, config.seed, min(config.resamples, REPLICATES)),
    }
    if search is not None:
        extra["search"] = search.to_dict()
    return Measurement(metrics, extra)


def check(model: HookedTransformer, config: SaeConfig) -> None:
    """Check that the model has the hook point and the budget fills one buffer of activations.

    Raises:
        UserError: either does not hold.
    """
    hook = config.hook_in(model)
    layer_of(model, hook)
    if model.cfg.attn_only and "mlp" in hook:  # TransformerLens defines the hook point nevertheless
        raise UserError(
            f"the model has no MLP, so nothing passes the hook point {hook}: name another one, "
            f"such as {hook.split('mlp')[0].removesuffix('hook_')}hook_attn_out"
        )
    if config.given is None:
        check_budget(config, config.context_in(model))


def fit(model: HookedTransformer, data: SaeData, config: SaeConfig) -> SaeConfig:
    """Return the configuration with the budget used on this training text.

    Raises:
        UserError: the text is too small (see ``budget.fitted``).
    """
    if not data.limit_budget:
        return config
    return fitted(config, config.context_in(model), len(data.corpus.tokens))


def _train_missing(model: HookedTransformer, data: SaeData, config: SaeConfig) -> None:
    """Train this autoencoder and, in the same pass, missing autoencoders of ``data.together``."""
    others = [fit(model, data, other) for other in data.together if other.target_l0 is None]
    _train(model, data, list(dict.fromkeys([*others, config])), config)


def _train(
    model: HookedTransformer, data: SaeData, group: Sequence[SaeConfig], wanted: SaeConfig
) -> None:
    """Train the missing autoencoders of a group, unless the wanted one exists."""
    places = {data.place(model, config): config for config in group}
    if data.place(model, wanted) in data.trained:
        return
    targets = places if data.force else _missing(places)
    if data.place(model, wanted) not in targets:
        return
    state = data.directory / f".training-{hash_of(sorted(place.name for place in targets))}"
    windows = _probe_windows(model, data, wanted)

    def probe(hook: str, trainer: Trainer) -> float | None:
        scaler, sae = trainer.activation_scaler, trainer.sae
        return ce_loss_score(
            model, hook, windows, lambda x: scaler.unscale(sae(scaler(x.to(sae.dtype))))
        )

    train(model, data.corpus, targets, state, {"model_name": data.model["name"]}, probe)
    data.trained.update(targets)


def _search(model: HookedTransformer, data: SaeData, config: SaeConfig) -> SearchResult:
    """Return the coefficient that reaches the target L0, from a file if searched for before."""
    key = hash_of([SEARCH_VERSION, data.training_identity(model, config), config.target_l0])
    file = data.directory / f"search-{key}.json"
    if not data.force and (known := read_search(file)) is not None:
        return known
    scratch = dataclasses.replace(data, directory=data.directory / f".search-{key}", together=())

    def ends(configs: Sequence[SaeConfig], is_short: bool) -> list[float]:
        target = scratch if is_short else data
        for trained in configs:
            _train(model, target, configs, trained)
        places = [target.place(model, trained) for trained in configs]
        return [float(read_training(place)["last_l0"]) for place in places]

    result = find_coefficient(config, ends)
    write_atomically(file, json.dumps(result.to_dict(), indent=1))
    shutil.rmtree(scratch.directory, ignore_errors=True)
    return result


def _write_l0(place: Path, metrics: Sequence[Metric], text: Text) -> None:
    """Write the measured L0 to SAELens' metadata; failures are logged."""
    l0 = next(metric.value for metric in metrics if metric.name == "l0")
    if l0 is None:
        return
    description = text.describe()
    fields = ("spec", "split", "content", "n_stories", "n_tokens")
    try:
        write_l0(place, l0, {name: description[name] for name in fields})
    except OSError as error:
        log.warning("the measured L0 cannot be written into %s: %s", place.name, error.strerror)


def _missing(places: dict[Path, SaeConfig]) -> dict[Path, SaeConfig]:
    return {place: places[place] for place in places if not (place / TRAINING).is_file()}


def _probe_windows(model: HookedTransformer, data: SaeData, config: SaeConfig) -> torch.Tensor:
    """Return a small held-out text for the CE score during training."""
    context = config.context_in(model)
    stream = data.text.corpus
    length = min(context + 1, len(stream.tokens))
    drawn = stream.windows(seed=config.seed, step=0, batch=PROBE_WINDOWS, length=length)
    drawn[:, 0] = stream.start
    return drawn.to(model.W_E.device)


def read_training(directory: Path) -> dict[str, Any]:
    """Read the file about a training; empty if it is missing or damaged."""
    try:
        training = json.loads((directory / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return training if isinstance(training, dict) else {}


def training_metrics(training: Mapping[str, Any], d_sae: int) -> list[Metric]:
    """Return dead features and the loss decrease at the end of training; None where unknown.

    Args:
        training: result of ``read_training``.
        d_sae: number of features.
    """
    fall, dead = _number(training.get("loss_fall")), _number(training.get("dead_in_training"))
    window, tokens = _number(training.get("dead_over_tokens")), _number(training.get("tokens"))
    why = "not trained here" if not training else "not recorded"
    if dead is None or window is None:
        dead = window = None
    return [
        Metric(
            "dead_in_training",
            "Dead features in training",
            None if dead is None else dead / d_sae,
            "share",
            "lower",
            n=d_sae,
            n_failed=int(dead is None),
            reasons={} if dead is not None else {why: 1},
            description="active on none of the last "
            f"{0 if window is None else int(window):,} tokens of training; n: features",
        ),
        Metric(
            "loss_fall",
            "Loss decrease over the last 10 % of training",
            fall,
            "%",
            "lower",
            n=None if tokens is None else int(tokens),
            n_failed=int(fall is None),
            reasons={} if fall is not None else {"fewer than ten steps" if training else why: 1},
            description="mean training loss of the last tenth of steps against the tenth before; "
            "n: tokens",
        ),
    ]


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
