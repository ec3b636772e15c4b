"""Explain neurons and score the explanations (``neurons``), some hundred units at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from transformer_lens import HookedTransformer

from evaluations.core.activations import gather
from evaluations.core.excerpts import GatherConfig
from evaluations.core.inputs import opened_sae, text_data
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request
from evaluations.core.record import hash_of, plain
from evaluations.core.runner import model_directory, model_key
from evaluations.core.spec import Measurement
from evaluations.core.text import Text
from evaluations.core.units import Units, find_units
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.examiners.base import SPENDING_CAP, Examiner
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from evaluations.suite.neurons.excerpts import token_names
from evaluations.suite.neurons.options import NeuronsOptions, ScoreOptions
from evaluations.suite.neurons.run import ExplanationRun
from evaluations.suite.neurons.scores import columns, metrics, unscored
from sat_interp._util import progress
from sat_interp._util.errors import UserError

CHUNK = 256
"""Units of a layer explained and scored at once; controls are drawn within them."""


def evaluate(model: HookedTransformer, data: NeuronsData, config: NeuronsConfig) -> Measurement:
    """Explain units and score the explanations.

    Raises:
        UserError: unknown units, text with tokens that the model does not know, or an error of the
            examiner.
    """
    units = find_units(model, config.hook, config.stream, data.sae)
    gathered = gather(model, data.text, units, config.gather, data.model_key, data.cache)
    run = ExplanationRun(data, config, gathered, token_names(data.text))
    usage = getattr(config.examiner, "usage", dict)
    before: dict[str, Any] = usage()
    chosen = drawn(units, config)
    estimate = run.estimate(chosen)
    total = sum(len(numbers) for _, numbers in chosen)
    with progress.bar(total=total, desc="neurons", unit="unit") as bar:
        for layer, numbers in chosen:
            run.examine(layer, numbers)
            bar.update(len(numbers))
    _check_spending(run)
    results = metrics(run.units, config.scores, config.seed, config.resamples)
    path = data.directory / f"{_key(data, config, units)}.units.json.gz"
    header = {
        "model": data.name,
        "examiner": config.examiner.name,
        "text": _text(data.text),
        "hook": config.hook if "*" in config.hook and not units.sae else ", ".join(units.hooks),
        "stream": config.stream,
        "read": {"text": data.text.content, "units": units.describe()},
    }
    run.details.write(path, header, results)
    extra: dict[str, Any] = {"units": columns(run.units, config.scores), "details": path.name}
    extra["unscored"] = unscored(run.units, config.scores)
    extra |= {"usage": used} if (used := _since(before, usage())) else {}
    extra |= {"estimate": str(estimate)} if estimate else {}
    return Measurement(results, extra)


def _check_spending(run: ExplanationRun) -> None:
    """Check that all units are done: the first layers alone are not a sample of the units.

    Raises:
        UserError: the spending cap was reached.
    """
    unpaid = sum(SPENDING_CAP in unit.reasons.values() for unit in run.units)
    if unpaid:
        raise UserError(
            f"{unpaid:,} of {len(run.units):,} neurons are not done: {SPENDING_CAP} reached; all "
            "replies are stored: run again with a higher --max-spend or a smaller --sample"
        )


def _since(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return an examiner's usage since an earlier one."""
    used: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, dict):
            used[name] = _since(before.get(name, {}), value)
        else:
            used[name] = None if value is None else value - (before.get(name) or 0)
    return used


def configs(request: Request) -> list[NeuronsConfig]:
    """Return the configuration of the scores, after making the examiner.

    Raises:
        UserError: options that do not apply to the examiner, or missing requirements.
    """
    options: NeuronsOptions = request.options
    shared = {field.name: getattr(options, field.name) for field in fields(ScoreOptions)}
    return [
        NeuronsConfig(
            make_examiner(options, request.run.device),
            sae=opened_sae(options.sae),
            gather=GatherConfig(seed=options.seed),
            **shared,
        )
    ]


def prepare(
    request: Request, configs: Sequence[NeuronsConfig]
) -> Callable[[LoadedModel], NeuronsData]:
    """Return a function that gives each model its text."""
    text_of = text_data(request, configs)

    def find(loaded: LoadedModel) -> NeuronsData:
        return NeuronsData(
            text_of(loaded),
            model_key(loaded),
            loaded.name,
            model_directory(request.out, loaded) / "neurons",
            request.options.sae,
        )

    return find


def preview(subject: Any) -> str:
    """Describe the neurons that the default settings explain."""
    return f"{sum(find_units(subject.known.model).sizes):,} neurons"


def make_examiner(options: NeuronsOptions, device: str | None) -> Examiner:
    """Return the examiner.

    Raises:
        UserError: options that do not apply to it, or missing requirements.
    """
    spending = (options.max_spend, options.price_in, options.price_out)
    if options.examiner != "openai" and spending != (None, None, None):
        raise UserError(
            f"--max-spend and prices apply to the examiner openai, not to {options.examiner}"
        )
    if options.examiner == "openai":
        from evaluations.suite.neurons.examiners import openai

        return openai.make(
            options.model or "gpt-4o-mini",
            openai.OpenAIConfig(
                concurrency=options.concurrency,
                requests_per_minute=options.requests_per_minute,
                max_spend=options.max_spend,
                price_in=options.price_in,
                price_out=options.price_out,
            ),
        )
    if options.examiner == "local":
        from evaluations.suite.neurons.examiners import local

        return local.make(options.model or local.SMOLLM2, device)
    if options.model is not None:
        raise UserError("the examiner lookup uses no language model: choose another --examiner")
    return LookupExaminer()


def check(model: HookedTransformer, config: NeuronsConfig) -> None:
    """Check that the model has the units.

    Raises:
        UserError: unknown hook point, or no ablated stream.
    """
    if config.sae is None:
        find_units(model, config.hook, config.stream)


def drawn(units: Units, config: NeuronsConfig) -> list[tuple[int, np.ndarray]]:
    """Return the units to explain, in chunks of one layer."""
    chunks = []
    for layer, size in zip(units.layers, units.sizes, strict=True):
        numbers = np.arange(size)
        if config.sample is not None and config.sample < size:
            draws = np.random.default_rng([config.seed, layer])
            numbers = np.sort(draws.choice(size, config.sample, replace=False))
        parts = np.array_split(numbers, max(1, -(-len(numbers) // CHUNK)))
        chunks += [(layer, part) for part in parts]
    return chunks


def _key(data: NeuronsData, config: NeuronsConfig, units: Units) -> str:
    """Return the hash of everything that determines the details."""
    return hash_of(
        {
            "config": plain(config.recorded()),
            "text": data.content,
            "model": data.model_key,
            "units": units.describe(),
        }
    )


def _text(text: Text) -> str:
    description = text.describe()
    split = "validation split" if description["split"] == "validation" else "all"
    return f"{description.get('validation') or description['spec']}, {split}: {len(text):,} stories"
