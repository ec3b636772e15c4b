"""All lenses of a model fitted on the same positions, each kept in the cache when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.record import hash_of
from evaluations.suite.lens import fit_maps
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.ending import Ending, Target
from evaluations.suite.lens.fit_constants import Fit, FitConfig, Problem, fit_constants
from evaluations.suite.lens.fit_maps import Maps, Recipe
from evaluations.suite.lens.lenses import Lenses, Spent, parameters
from evaluations.suite.lens.positions import Positions
from evaluations.suite.lens.store import Owner, Stories, load_lenses, save_lenses
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import default_cache

FORMAT = 3
PAPER_BATCH = 64
SETTINGS = {
    "tuned": ("tuned_steps", "tuned_batch"),
    "tuned-paper": ("paper_steps",),
    "oca": ("starts", "sample", "evaluations"),
    "shared": ("starts", "sample", "evaluations"),
}
"""What decides a lens, besides the model, the stories and the first position."""


@dataclass(frozen=True)
class Fitting:
    """The positions that all lenses are fitted on."""

    ending: Ending
    positions: Positions
    target: Target
    config: LensConfig

    @property
    def streams(self) -> list[Tensor]:
        """The stream before each block."""
        return self.positions.streams[:-1]

    @property
    def means(self) -> Float[Tensor, "layers d_model"]:
        """The mean attention output of each block."""
        return self.positions.attention_mean

    def settings(self) -> FitConfig:
        """Return how constants are fitted."""
        config = self.config
        return FitConfig(
            starts=config.starts,
            sample=config.sample,
            evaluations=config.evaluations,
            seed=config.seed,
        )


def fit_lenses(
    model: HookedTransformer,
    fitting: Callable[[], Fitting],
    config: LensConfig,
    owner: Owner,
    stories: Stories,
    cache: Path | None = None,
) -> Lenses:
    """Fit the lenses that are asked for; those in the cache are read.

    Args:
        fitting: gives the positions, where a lens is not in the cache.
        stories: what decides which stories ``fitting`` has.
    """
    directory = (cache or default_cache() / "lenses") / owner.key
    found, known = Lenses(), None
    for kind in progress.bar(config.lenses, desc="lenses", unit="lens"):
        path = directory / f"{kind}-{_key(kind, stories, config)}.safetensors"
        lens = _cached(path, owner, stories, model)
        if lens is None:
            known = known or fitting()
            lens = _fit(kind, known)
            save_lenses(lens, owner, stories, path)
        found.tensors |= lens.tensors
        found.spent |= lens.spent
        found.fits |= lens.fits
    return found


def _key(kind: str, stories: Stories, config: LensConfig) -> str:
    names = ("first", *SETTINGS.get(kind, ()))
    return hash_of([FORMAT, asdict(stories), {name: getattr(config, name) for name in names}])


def _cached(path: Path, owner: Owner, stories: Stories, model: HookedTransformer) -> Lenses | None:
    if not path.exists():
        return None
    try:
        return load_lenses(path, owner, stories, model)
    except UserError:
        return None  # damaged: it is fitted again


def _fit(kind: str, fitting: Fitting) -> Lenses:
    """Fit one lens."""
    begin = time.process_time()
    tensors, read, fits = _FITS[kind](fitting)
    seconds = time.process_time() - begin
    ending, n = fitting.ending, len(fitting.positions)
    n_numbers = parameters(kind, ending.n_layers, int(ending.model.cfg.d_model))
    spent = Spent(n_numbers, 0 if kind == "logit" else n, read, round(seconds, 2))
    own = {f"{kind}/{name}": tensor for name, tensor in tensors.items()}
    return Lenses(own, {kind: spent}, {kind: fits} if fits else {})


Fitted = tuple[dict[str, Tensor], int, list[dict[str, Any]]]


def _logit(fitting: Fitting) -> Fitted:
    return {}, 0, []


def _mean(fitting: Fitting) -> Fitted:
    means = fitting.means.to(fitting.target.direction)
    return {"c": means}, len(fitting.positions), []


def _resample(fitting: Fitting) -> Fitted:
    return {"bank": fitting.positions.attention}, len(fitting.positions.attention[0]), []


def fit_oca(fitting: Fitting) -> Fitted:
    """Fit the OCA lens from the last layer on; each layer's constants begin the next fit."""
    ending, means = fitting.ending, fitting.means
    n_layers = ending.n_layers
    constants = torch.zeros(n_layers, *means.shape, dtype=torch.float64)
    fits: list[Fit] = []
    for layer in progress.bar(list(reversed(range(n_layers))), desc="oca", unit="layer"):
        problem = Problem(ending, fitting.target, [fitting.streams[layer]], [layer])
        starts = [means[layer:]]
        if fits:
            starts.append(torch.cat([means[layer : layer + 1], fits[-1].constants]))
        fits.append(fit_constants(problem, starts, fitting.settings()))
        constants[layer, layer:] = fits[-1].constants
    certificates = [fit.certificate() for fit in reversed(fits)]
    tensors = {"c": constants.to(fitting.target.direction)}
    return tensors, sum(fit.read for fit in fits), certificates


def _shared(fitting: Fitting) -> Fitted:
    ending = fitting.ending
    problem = Problem(ending, fitting.target, fitting.streams, range(ending.n_layers))
    fit = fit_constants(problem, [fitting.means], fitting.settings())
    return {"c": fit.constants.to(fitting.target.direction)}, fit.read, [fit.certificate()]


def _tuned(fitting: Fitting) -> Fitted:
    config = fitting.config
    recipe = Recipe(config.tuned_steps, config.tuned_batch, config.seed)
    return _maps(fit_maps.fit_official(fitting.ending, fitting.target, fitting.streams, recipe))


def _tuned_paper(fitting: Fitting) -> Fitted:
    recipe = Recipe(fitting.config.paper_steps, PAPER_BATCH, fitting.config.seed)
    return _maps(fit_maps.fit_paper(fitting.ending, fitting.target, fitting.streams, recipe))


def _maps(maps: Maps) -> Fitted:
    return {"W": maps.matrices, "b": maps.biases}, maps.read, []


_FITS: dict[str, Callable[[Fitting], Fitted]] = {
    "logit": _logit,
    "tuned": _tuned,
    "tuned-paper": _tuned_paper,
    "oca": fit_oca,
    "shared": _shared,
    "mean": _mean,
    "resample": _resample,
}
