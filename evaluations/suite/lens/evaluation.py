"""Lenses on a model (``lens``): fitted, measured on other stories, tested by edits, and shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformer_lens import HookedTransformer

from evaluations.core.blocks import check_sequential
from evaluations.core.inputs import text_data
from evaluations.core.models import LoadedModel, at_least_float32, evaluation_mode
from evaluations.core.options import Request
from evaluations.core.record import hash_of
from evaluations.core.runner import model_directory, model_key
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.windows import Windows, split_windows
from evaluations.suite.lens import causal, metrics
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.fit import Fitting, fit_lenses
from evaluations.suite.lens.lenses import Lenses
from evaluations.suite.lens.measure import (
    floor_kl,
    mean_prediction,
    measure_curves,
)
from evaluations.suite.lens.positions import Positions, read_positions
from evaluations.suite.lens.prompt import SHOWN, prompt_tokens, read_prompt
from evaluations.suite.lens.store import Owner, Stories, load_lenses, save_lenses
from sat_interp._util.errors import UserError

BANK = 256
"""Positions whose attention outputs the resample lens keeps."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LensData:
    """A model's text, and where its lenses go.

    Attributes:
        directory: where the file of all lenses is written; None for nowhere.
    """

    text: Text
    owner: Owner
    directory: Path | None = None

    @property
    def content(self) -> str:
        """Hash of the text."""
        return self.text.content

    def describe(self) -> dict[str, Any]:
        """Describe the text for a record."""
        return self.text.describe()


def prepare(request: Request, configs: Sequence[LensConfig]) -> Callable[[LoadedModel], LensData]:
    """Return what gives each model its text."""
    text_of = text_data(request, configs)

    def find(loaded: LoadedModel) -> LensData:
        owner = Owner(loaded.name, loaded.weights_hash, model_key(loaded))
        return LensData(text_of(loaded), owner, model_directory(request.out, loaded))

    return find


def check(model: HookedTransformer, config: LensConfig) -> None:
    """Refuse models of parallel blocks, and windows longer than the context.

    Raises:
        UserError: as above.
    """
    check_sequential(model, "lens")
    n_ctx = int(model.cfg.n_ctx)
    if config.first >= n_ctx:
        raise UserError(f"first must be below the model's context of {n_ctx}, not {config.first}")


def preview(subject: Any) -> str:
    """Return what the defaults measure of a model."""
    n_layers, config = int(subject.known.model.cfg.n_layers), LensConfig()
    return f"{len(config.lenses)} lenses at {n_layers} layers"


def evaluate(model: HookedTransformer, data: LensData, config: LensConfig) -> Measurement:
    """Fit lenses, or load them, and measure them on held-out stories.

    Raises:
        UserError: parallel blocks, too few stories, activations that are not finite, a prompt that
            cannot be read, or lenses of another model or fitted on other stories.
    """
    check(model, config)
    check_vocabulary(model, data.text)
    with evaluation_mode(model):
        return _measure(at_least_float32(model), data, config)


def _measure(model: HookedTransformer, data: LensData, config: LensConfig) -> Measurement:
    ending = Ending(model)
    given = None if config.prompt is None else prompt_tokens(ending, data.text, config.prompt)
    window = min(config.window, int(model.cfg.n_ctx))
    fit, held = split_windows(
        data.text, config.fit_windows, config.held_windows, window, f"lens/{config.seed}"
    )

    stories = Stories(data.content, config.fit_windows, config.held_windows, window, config.seed)
    memory = config.memory * 2**20

    @cache
    def fitted() -> Positions:
        return read_positions(model, fit.tokens, config.first, BANK, config.seed, memory)

    lenses = _lenses(ending, data, stories, config, fitted)
    file = _saved(lenses, data, stories, config)
    positions = read_positions(model, held.tokens, config.first, 1, config.seed, memory)
    curves = measure_curves(ending, lenses, lenses.kinds, positions, config.seed)
    prediction = mean_prediction(ending, [fitted().streams[-1]])
    floor = floor_kl(ending, positions, prediction)
    found = metrics.curve_metrics(curves, floor, config) + metrics.spent_metrics(lenses)
    effects = {} if config.no_edits else _edits(ending, lenses, config, held, fitted())
    found += metrics.edit_metrics(effects, config)
    tokens = held.tokens[0, : SHOWN + 1] if given is None else given
    extra = {
        "layers": metrics.layer_rows(curves, lenses, config),
        "floor": float(floor.mean()),
        "spent": {kind: asdict(spent) for kind, spent in lenses.spent.items()},
        "fits": lenses.fits,
        "edits": metrics.edit_rows(effects, config),
        "prompt": read_prompt(ending, lenses, data.text, tokens, config.seed),
        "file": file,
        "windows": {
            "fit": len(fit),
            "held": len(held),
            "tokens": window,
            "first": config.first,
            "left_out": fit.left_out,
        },
    }
    return Measurement(found, extra)


def _lenses(
    ending: Ending,
    data: LensData,
    stories: Stories,
    config: LensConfig,
    fitted: Callable[[], Positions],
) -> Lenses:
    if config.load is not None:
        return load_lenses(config.load, data.owner, stories, ending.model)

    def fitting() -> Fitting:
        positions = fitted()
        return Fitting(ending, positions, ending.targets(positions.streams[-1]), config)

    return fit_lenses(ending.model, fitting, config, data.owner, stories)


def _saved(lenses: Lenses, data: LensData, stories: Stories, config: LensConfig) -> str | None:
    """Write the lenses beside the records; returns the file's name."""
    if data.directory is None or config.load is not None:
        return None
    key = hash_of([config.recorded(), data.content, data.owner.key])
    name = f"lenses-{key}.safetensors"
    path = save_lenses(lenses, data.owner, stories, data.directory / name)
    log.info("lenses of %s: %s", data.owner.name, path)
    return name


def _edits(
    ending: Ending, lenses: Lenses, config: LensConfig, held: Windows, fitted: Positions
) -> dict[metrics.Key, causal.Effects]:
    kinds = [kind for kind in causal.KINDS if kind in lenses.kinds]
    tokens = held.tokens[: config.edit_prompts, : causal.LENGTH]
    prompts = causal.Prompts(ending, tokens)
    n = min(config.directions, int(ending.model.cfg.d_model))
    return causal.measure_edits(ending, lenses, kinds, fitted, prompts, n, config.seed)
