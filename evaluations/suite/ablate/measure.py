"""What every component costs by every method, on fitted and held-out prompts.

Components of one place and size are fitted and measured in one batch. What is done is kept in the
cache, component by component, so that an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core import ablation_values as values
from evaluations.core.ablation import ComponentSet, Group, group, name_of, signature
from evaluations.core.ablation_fit import Fit, FitConfig, fit, refit
from evaluations.core.ablation_run import CleanRun, Scored
from evaluations.core.ablation_values import CONSTANT, Constants, Method, Slots
from evaluations.core.record import hash_of
from evaluations.core.weights import tensor_bytes, weights_hash
from evaluations.suite.ablate.config import TEXT_METHODS, AblateConfig
from evaluations.suite.ablate.data import Split
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import default_cache, write_atomically

log = logging.getLogger(__name__)

FORMAT = 3
"""Part of the key of the cache; raised where what is kept there changes."""
LARGE = ("attention", "heads", "set")
"""Kinds whose constants have many numbers, and are fitted on more prompts."""
OVERFIT = 0.2


@dataclass
class Measured:
    """One component's costs and the certificate of its optimal constants.

    Attributes:
        kind: of the component; ``set`` for several ablated together.
        layer, index: of its first member; a head's number, None where there is none.
        numbers: free numbers of one vector of constants, all members together.
        fit: mean cost on the prompts fitted on, by method, in nats.
        kl: cost on each held-out prompt, by method; None where it could not be measured.
        fit_positions: mean costs on the prompts that ``oa_pos`` is fitted on.
        certificates: of ``oa`` and ``oa_pos``: gradient, gap, converged, capped, spread of the
            starts, evaluations, n_fit.
        size: |a| / rms |A| of the optimal constant: its norm over the root of the mean of |A|^2.
        cosine: of the optimal constant and the mean activation.
        refits: held-out costs of constants fitted again, on bootstrap samples of the prompts.
        course: the fitted cost of ``oa`` after each evaluation; empty where not asked for.
    """

    name: str
    kind: str
    layer: int
    index: int | None
    numbers: int
    fit: dict[str, float]
    kl: dict[str, list[float | None]]
    fit_positions: dict[str, float] = field(default_factory=dict)
    certificates: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: float | None = None
    cosine: float | None = None
    refits: list[float] = field(default_factory=list)
    course: list[float] = field(default_factory=list)

    def held(self, method: str) -> float | None:
        """Return the mean cost on the held-out prompts that could be measured."""
        known = [value for value in self.kl.get(method, ()) if value is not None]
        return sum(known) / len(known) if known else None

    def is_overfit(self, method: str) -> bool:
        """Whether a fitted method's held-out cost exceeds the fitted one by more than a fifth."""
        held = self.held(method)
        if method not in values.OPTIMAL or held is None:
            return False
        fitted = self.fit[method]
        return held - fitted > OVERFIT * fitted

    def is_converged(self, method: str) -> bool:
        """Whether a method's constants are at a minimum; True for those that need no fit."""
        return bool(self.certificates.get(method, {}).get("converged", True))


class Bench:
    """A model with its prompts run, on which components are measured.

    Attributes:
        fit: the prompts that constants of few numbers are fitted on, part of ``large``.
    """

    def __init__(
        self, model: HookedTransformer, split: Split, config: AblateConfig, scored: Scored
    ) -> None:
        memory = config.memory * 2**20

        def run(batches: Sequence[Tensor]) -> CleanRun:
            return CleanRun(model, batches, split.first, scored, memory)

        self.config, self.scored = config, scored
        self.large = run(split.fit.clean)
        n = len(self.large)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed))
        chosen = order[: n if scored == "all" else config.fit_prompts].sort().values
        self.held = run(split.held.clean)
        self.fit = self.large.subset(chosen)
        self.large_cf = self.fit_cf = self.held_cf = None
        if split.fit.counterfactual is not None and split.held.counterfactual is not None:
            self.large_cf = run(split.fit.counterfactual)
            self.fit_cf = self.large_cf.subset(chosen)
            self.held_cf = run(split.held.counterfactual)

    @property
    def methods(self) -> list[Method]:
        """The methods that are measured: on text, those that text has."""
        if self.scored == "last":
            return list(self.config.methods)  # type: ignore[arg-type]
        return [one for one in self.config.methods if one in TEXT_METHODS]  # type: ignore[misc]

    @property
    def key(self) -> str:
        """Hash of what decides the figures of a component: weights, prompts and settings.

        Two models may share every stream and still differ, by their unembedding or within a block.
        """
        digest = hashlib.sha256(weights_hash(self.large.model).encode())
        for run in (self.large, self.held, self.large_cf, self.held_cf):
            for bucket in [] if run is None else run.buckets:
                for tensor in (bucket.tokens, *bucket.streams):
                    digest.update(tensor_bytes(tensor))
        settings = self.config.recorded()
        for name in ("components", "no_bridge", "losers_k", "resamples"):
            del settings[name]
        settings["methods"] = self.methods
        return hash_of([FORMAT, digest.hexdigest(), self.scored, self.held.first, settings])

    def fit_config(self, watch: bool) -> FitConfig:
        """Return how constants are fitted."""
        config = self.config
        return FitConfig(
            starts=config.starts,
            rounds=2,
            sample=config.sample if self.scored == "last" else config.sample_windows,
            evaluations=config.evaluations,
            seed=config.seed,
            watch=watch,
        )

    def measure(self, sets: Sequence[ComponentSet], cache: Path | None = None) -> list[Measured]:
        """Measure components, in order; those in the cache are read."""
        directory = (cache or default_cache() / "ablation") / self.key
        found = {name_of(one): _read(directory, name_of(one)) for one in sets}
        groups: dict[object, list[ComponentSet]] = defaultdict(list)
        for one in sets:
            if found[name_of(one)] is None:
                groups[(signature(one), _kind(one) in LARGE)].append(one)
        for members in progress.bar(list(groups.values()), desc="components", unit="batch"):
            for done in self._measure(members):
                found[done.name] = done
                write_atomically(_path(directory, done.name), json.dumps(asdict(done)))
        return [known for known in found.values() if known is not None]

    def _measure(self, members: Sequence[ComponentSet]) -> list[Measured]:
        """Measure the members of one group."""
        batch = group(members)
        is_large = _kind(members[0]) in LARGE
        run = self.large if is_large else self.fit
        counterfactual = self.large_cf if is_large else self.fit_cf
        measured = [_blank(one) for one in members]
        for method in self.methods:
            if method in values.OPTIMAL:
                continue
            if method in CONSTANT:
                constants = values.constants_of(method, run, batch, counterfactual)
                fitted = values.constant_kl(run, batch, constants)
                held = values.constant_kl(self.held, batch, constants)
            else:
                fitted = self._sampled(method, run, batch, counterfactual)
                held = self._sampled(method, self.held, batch, self.held_cf)
            _note(measured, method, fitted, held)
        if set(values.OPTIMAL) & set(self.methods):
            best = fit(run, batch, Slots.one(run), self.fit_config("oa_stopped" in self.methods))
            self._note_optimal(measured, batch, run, best)
            if "oa_pos" in self.methods:
                self._note_positions(measured, batch, best)
        return measured

    def _sampled(
        self, method: Method, run: CleanRun, batch: Group, counterfactual: CleanRun | None
    ) -> Float[Tensor, "problem prompt"]:
        """The cost of a method that replaces by other activations, not by constants."""
        if method == "resample":
            return values.resample_kl(run, batch, values.draw_partners(run, self.config.seed))
        if method == "resample_all":
            return values.resample_all_kl(run, batch)
        if method == "noise":
            return values.noise_kl(run, batch, self.fit, self.config.seed)
        if counterfactual is None:
            raise UserError("cf and cf_mean need a task's corrupted prompts")
        return values.counterfactual_kl(run, batch, counterfactual)

    def _note_optimal(
        self, measured: list[Measured], batch: Group, run: CleanRun, best: Fit
    ) -> None:
        chosen: dict[str, Constants] = {"oa": best.constants, "oa_stopped": best.stopped}
        for method, constants in chosen.items():
            if method in self.methods:
                fitted = values.constant_kl(run, batch, constants)
                _note(measured, method, fitted, values.constant_kl(self.held, batch, constants))
        means = values.mean_constants(run, batch, Slots.one(run))
        size = _norm(best.constants) / values.rms(run, batch).clamp(min=1e-30)
        product = sum((a * m).sum((1, 2)) for a, m in zip(best.constants, means, strict=True))
        cosine = product / (_norm(best.constants) * _norm(means)).clamp(min=1e-30)
        for number, one in enumerate(measured):
            one.certificates["oa"] = _certificate(best, number, len(run))
            one.size, one.cosine = float(size[number]), float(cosine[number])
            if self.config.convergence:
                one.course = best.course[:, number].tolist()
        for draw in range(self.config.refits):
            again = refit(run, batch, best.constants, self.fit_config(watch=False), draw)
            costs = values.constant_kl(self.held, batch, again).mean(1)
            for one, cost in zip(measured, costs.tolist(), strict=True):
                one.refits.append(cost)

    def _note_positions(self, measured: list[Measured], batch: Group, best: Fit) -> None:
        run, slots = self.large, Slots.each(self.large)
        fitted = fit(run, batch, slots, self.fit_config(watch=False), extra=[best.constants])
        kl = values.constant_kl(run, batch, fitted.constants)
        _note(measured, "oa_pos", kl, values.constant_kl(self.held, batch, fitted.constants))
        others: dict[str, Constants] = {
            method: values.constants_of(method, run, batch, self.large_cf)
            for method in CONSTANT
            if method in self.methods
        }
        others |= {"oa": best.constants, "oa_pos": fitted.constants}
        for method, constants in others.items():
            mean = values.constant_kl(run, batch, constants).mean(1)
            for number, one in enumerate(measured):
                one.fit_positions[method] = float(mean[number])
        for number, one in enumerate(measured):
            one.certificates["oa_pos"] = _certificate(fitted, number, len(run))
            one.certificates["oa_pos"]["numbers"] = slots.n * one.numbers


def _kind(members: ComponentSet) -> str:
    return members[0].kind if len(members) == 1 else "set"


def _blank(members: ComponentSet) -> Measured:
    first, numbers = members[0], sum(one.size for one in members)
    index = None
    if len(members) == 1 and first.kind in ("head", "neuron", "z", "feature"):
        index = first.index[0] // (first.size if first.kind == "head" else 1)
    return Measured(name_of(members), _kind(members), first.layer, index, numbers, {}, {})


def _note(measured: list[Measured], method: str, fitted: Tensor, held: Tensor) -> None:
    for number, one in enumerate(measured):
        own = fitted[number]
        one.fit[method] = float(own[own.isfinite()].mean())
        one.kl[method] = [
            value if known else None
            for value, known in zip(
                held[number].tolist(), held[number].isfinite().tolist(), strict=True
            )
        ]


def _norm(constants: Constants) -> Float[Tensor, " problem"]:
    norm: Tensor = torch.cat([one.flatten(1) for one in constants], 1).norm(dim=1)
    return norm


def _certificate(best: Fit, number: int, n_fit: int) -> dict[str, Any]:
    return {
        "gradient": float(best.gradient[number]),
        "gap": float(best.gap[number]),
        "converged": bool(best.converged[number]),
        "capped": bool(best.capped[number]),
        "spread": float(best.spread[number]),
        "evaluations": float(best.evaluations[number]),
        "n_fit": n_fit,
    }


def _path(directory: Path, name: str) -> Path:
    return directory / f"{name}.json" if len(name) < 60 else directory / f"{hash_of(name)}.json"


def _read(directory: Path, name: str) -> Measured | None:
    """A component from the cache; None where it is not there or damaged."""
    path = _path(directory, name)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if set(known) != {one.name for one in fields(Measured)} or known["name"] != name:
            return None
        return Measured(**known)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s); measured again", path.name, error)
        return None
