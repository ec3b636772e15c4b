"""The evaluation: find an autoencoder or train it, measure it, say how its training went.

What decides a training (``SaeData.training_identity``) and what decides a record are two
identities: an autoencoder is measured on another text, or on fewer stories, without being trained
again.
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
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request
from evaluations.core.outcome import Measured
from evaluations.core.record import Metric, hash_of
from evaluations.core.runner import model_directory, model_key
from evaluations.core.spec import Measurement
from evaluations.core.text import HASH_CHUNK, Text, check_vocabulary
from evaluations.core.text_source import training_text_finder
from evaluations.suite.sae.budget import check_budget, enough_text, fitted
from evaluations.suite.sae.build import Trainer
from evaluations.suite.sae.config import WITH_K, SaeConfig, default_target, preset
from evaluations.suite.sae.convergence import verdict
from evaluations.suite.sae.front import is_converged
from evaluations.suite.sae.health import is_mostly_dead, phrases
from evaluations.suite.sae.measure import (
    ce_loss_score,
    density_histogram,
    measure,
    metrics,
    replicates,
)
from evaluations.suite.sae.options import SaeOptions
from evaluations.suite.sae.search import VERSION as SEARCH_VERSION
from evaluations.suite.sae.search import Found, find_coefficient, read_found, with_coefficient
from evaluations.suite.sae.train import TRAINING, VERSION, train
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically
from sat_interp.data.corpus import TokenCorpus
from sat_interp.model.fast import layer_of

log = logging.getLogger(__name__)

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
        is_fitted: whether budgets are limited to 20 passes over the training text.
    """

    corpus: TokenCorpus
    text: Text
    directory: Path
    model: dict[str, Any]
    together: Sequence[SaeConfig] = ()
    given: Path | None = None
    again: bool = False
    is_fitted: bool = False
    trained: set[Path] = field(default_factory=set)
    """Written by this command: ``again`` holds for each once."""

    @cached_property
    def content(self) -> str:
        """A hash of both texts."""
        return hash_of([self.train_content, self.text.content])

    @cached_property
    def train_content(self) -> str:
        """A hash of the training text: its tokens, where its stories end, what begins them."""
        digest = hashlib.sha256(np.asarray(self.corpus.offsets, dtype="<i8").tobytes())
        digest.update(str(self.corpus.start).encode())
        for first in range(0, len(self.corpus.tokens), HASH_CHUNK):
            part = self.corpus.tokens[first : first + HASH_CHUNK]
            digest.update(np.asarray(part, dtype="<u4").tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What a record says: the held-out text, and how much there was to train on."""
        told = self.text.describe()
        return {**told, "content": self.content, "train_tokens": len(self.corpus.tokens)}

    def training_identity(self, model: HookedTransformer, config: SaeConfig) -> dict[str, Any]:
        """What decides the training: nothing of what is measured, or on which text."""
        return {
            "version": VERSION,
            "config": config.training_in(model),
            "text": self.train_content,
            "model": {name: value for name, value in self.model.items() if name != "name"},
        }

    def place(self, model: HookedTransformer, config: SaeConfig) -> Path:
        """Where the autoencoder of this configuration lies, or will.

        One that was trained when the model was called otherwise is found beside it.
        """
        key = hash_of(self.training_identity(model, config))
        name = f"{config.hook_in(model)}-{config.label.replace(' ', '-')}-{key}"
        own = self.directory / name
        if not (own / TRAINING).is_file():
            home = self.directory.parent  # results/NAME-WEIGHTS
            same = home.parent.glob(f"*-{home.name.rpartition('-')[2]}/sae/{name}/{TRAINING}")
            own = next((path.parent for path in sorted(same)), own)
        return own


def configs(request: Request) -> list[SaeConfig]:
    """Return one configuration for each hook point and coefficient that is asked for.

    Raises:
        UserError: options that mean nothing to the architecture or to a given autoencoder, or one
            that cannot be opened.
    """
    options: SaeOptions = request.options
    has_k = options.architecture in WITH_K
    if options.l1 if has_k else options.k:
        wrong, right = ("--l1", "--k") if has_k else ("--k", "--l1")
        raise UserError(f"{wrong} means nothing to {options.architecture}: it takes {right}")
    base = preset(options.preset, options.architecture)
    base = dataclasses.replace(base, seed=options.seed, resamples=options.resamples)
    if options.tokens is not None:
        base = dataclasses.replace(base, tokens=options.tokens)
    hooks: Sequence[str | None] = options.hook
    if options.sae is not None:
        if options.l1 or options.k or options.target_l0:
            raise UserError(
                "--sae is measured as it is: --l1, --target-l0 and --k mean nothing to it"
            )
        base = dataclasses.replace(base, given=opened_sae(options.sae))
        hooks = hooks or [hook_point(options.sae, "name it with --hook")]
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
    """Return the texts of each model: the same held-out stories for all, never trained on here."""
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
            again=request.run.force,
            is_fitted=options.tokens is None,
            trained=trained,
        )

    return find


def follow_up(request: Request, measured: Sequence[Measured]) -> list[tuple[Any, SaeConfig]]:
    """Return the models whose autoencoder of the default coefficient is not to be relied on.

    Each is measured again with a coefficient that is searched for, unless the user named one.
    """
    options: SaeOptions = request.options
    if options.l1 or options.target_l0 or options.k or options.sae:
        return []
    wanted = []
    for one in measured:
        is_sound = is_converged(one.record) and not is_mostly_dead(one.record.metrics)
        if not is_sound and one.config.architecture not in WITH_K:
            target = default_target(int(one.record.extra["sae"]["d_in"]))
            config = dataclasses.replace(one.config, sparsity=None, target_l0=target)
            wanted.append((one.model, config))
    return wanted


def preview(subject: Any) -> str:
    """Return what the defaults read of a model."""
    model, config = subject.known.model, preset("demo")
    held = subject.train_tokens(enough_text(config))
    budget = fitted(config, config.context_in(model), held)
    passes = f" ({budget.tokens / held:.1f} passes over the text)" if budget != config else ""
    return f"{budget.tokens:,} tokens{passes} at {budget.hook_in(model)}"


def evaluate(model: HookedTransformer, data: SaeData, config: SaeConfig) -> Measurement:
    """Train an autoencoder where there is none, and measure it over the whole validation split.

    The budget is that of the configuration after ``fit``.

    Raises:
        UserError: what searching, training and measuring raise; text whose tokens the model does
            not know.
    """
    config = fit(model, data, config)
    check(model, config)
    check_vocabulary(model, data.text)
    was_training = model.training
    model.eval()
    try:
        return _evaluated(model, data, config)
    finally:
        model.train(was_training)


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
    found = measure(model, sae, hook, data.text)
    figures = metrics(found, config.seed, config.resamples)
    told = read_training(place)
    figures += training_metrics(told, int(sae.cfg.d_sae))
    if data.given is None:
        _write_l0(place, figures, data.text)
    by_name = {one.name: one for one in figures}
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
        "health": phrases(figures, passes),
        "budget": None if passes is None else {"tokens": config.tokens, "passes": passes},
        "convergence": verdict(told.get("loss_fall"), by_name["explained_variance"].value)
        if told
        else "not trained here",
        "training": {key: value for key, value in told.items() if key not in ("config", "search")},
        "density": density_histogram(found.fired, int(found.tokens.sum())),
        "replicates": replicates(found, config.seed, min(config.resamples, REPLICATES)),
    }
    if search is not None:
        extra["search"] = search.to_dict()
    return Measurement(figures, extra)


def check(model: HookedTransformer, config: SaeConfig) -> None:
    """Refuse a model without the hook point, and a budget below one buffer of activations.

    Raises:
        UserError: either.
    """
    hook = config.hook_in(model)
    layer_of(model, hook)
    if model.cfg.attn_only and "mlp" in hook:  # TransformerLens has the hook point all the same
        raise UserError(
            f"the model has no MLP, so nothing passes the hook point {hook}: name another one, "
            f"such as {hook.split('mlp')[0].removesuffix('hook_')}hook_attn_out"
        )
    if config.given is None:
        check_budget(config, config.context_in(model))


def fit(model: HookedTransformer, data: SaeData, config: SaeConfig) -> SaeConfig:
    """Return the configuration with the budget that is used on this training text.

    Raises:
        UserError: the text is too small for any (see ``budget.fitted``).
    """
    if not data.is_fitted:
        return config
    return fitted(config, config.context_in(model), len(data.corpus.tokens))


def _train_missing(model: HookedTransformer, data: SaeData, config: SaeConfig) -> None:
    """Train this one, and in the same pass those wanted beside it that are not there yet."""
    beside = [fit(model, data, one) for one in data.together if one.target_l0 is None]
    _train(model, data, list(dict.fromkeys([*beside, config])), config)


def _train(
    model: HookedTransformer, data: SaeData, group: Sequence[SaeConfig], wanted: SaeConfig
) -> None:
    """Train what is not there of a group, unless the one that is wanted is there."""
    places = {data.place(model, one): one for one in group}
    if data.place(model, wanted) in data.trained:
        return
    targets = places if data.again else _missing(places)
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


def _search(model: HookedTransformer, data: SaeData, config: SaeConfig) -> Found:
    """The coefficient that gives the wanted L0; searched for once, then read from a file."""
    key = hash_of([SEARCH_VERSION, data.training_identity(model, config), config.target_l0])
    file = data.directory / f"search-{key}.json"
    if not data.again and (found := read_found(file)) is not None:
        return found
    aside = dataclasses.replace(data, directory=data.directory / f".search-{key}", together=())

    def ends(configs: Sequence[SaeConfig], is_short: bool) -> list[float]:
        where = aside if is_short else data
        for one in configs:
            _train(model, where, configs, one)
        return [float(read_training(where.place(model, one))["last_l0"]) for one in configs]

    found = find_coefficient(config, ends)
    write_atomically(file, json.dumps(found.to_dict(), indent=1))
    shutil.rmtree(aside.directory, ignore_errors=True)
    return found


def _write_l0(place: Path, figures: Sequence[Metric], text: Text) -> None:
    """Into the metadata that SAELens reads; one that cannot be written keeps what it has."""
    l0 = next(one.value for one in figures if one.name == "l0")
    if l0 is None:
        return
    told = text.describe()
    kept = {name: told[name] for name in ("spec", "split", "content", "n_stories", "n_tokens")}
    try:
        write_l0(place, l0, kept)
    except OSError as error:
        log.warning("the measured L0 cannot be written into %s: %s", place.name, error.strerror)


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


def read_training(directory: Path) -> dict[str, Any]:
    """How an autoencoder of ours was trained; nothing of any other, or of a damaged file."""
    try:
        told = json.loads((directory / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def training_metrics(told: Mapping[str, Any], d_sae: int) -> list[Metric]:
    """How the training ended. Without a value where this is not known.

    Args:
        told: of ``read_training``.
        d_sae: features.
    """
    fall, dead = _number(told.get("loss_fall")), _number(told.get("dead_in_training"))
    window, tokens = _number(told.get("dead_over_tokens")), _number(told.get("tokens"))
    why = "not trained here" if not told else "not recorded"
    if dead is None or window is None:
        dead = window = None
    return [
        Metric(
            "dead_in_training", "Dead features in training",
            None if dead is None else dead / d_sae, "share", "lower", n=d_sae,
            n_failed=int(dead is None), reasons={} if dead is not None else {why: 1},
            description="active on none of the last "
            f"{0 if window is None else int(window):,} tokens of training; n: features",
        ),
        Metric(
            "loss_fall", "Fall of the loss in the last tenth of training", fall, "%", "lower",
            n=None if tokens is None else int(tokens), n_failed=int(fall is None),
            reasons={} if fall is not None else {"fewer than ten steps" if told else why: 1},
            description="total training loss, last tenth against the one before; n: tokens",
        ),
    ]  # fmt: skip


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
