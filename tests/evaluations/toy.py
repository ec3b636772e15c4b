"""Evaluations made for a test, and a short way to run one on models."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluations.core.model_source import sources
from evaluations.core.models import LoadedModel
from evaluations.core.outcome import Outcome
from evaluations.core.runner import measure
from evaluations.core.spec import Cost, Spec

_NUMBERS = itertools.count()


def toy_spec(
    name: str, options: type, evaluate: Callable[..., Any], *, version: int = 1, **hooks: Any
) -> Spec:
    """A specification whose modules exist in memory only.

    Args:
        hooks: further functions of its module ``evaluation``.
    """
    package = f"toy_{name}_{next(_NUMBERS)}"
    module = types.ModuleType(f"{package}.evaluation")
    module.__dict__.update({"evaluate": evaluate, **hooks})
    sys.modules[package] = types.ModuleType(package)
    sys.modules[module.__name__] = module
    return Spec(
        package=package,
        name=name,
        summary="A toy.",
        description="",
        examples=(),
        version=version,
        options=options,
        shared=(),
        cost=Cost({"quick": 1, "demo": 1, "paper": 1}),
    )


def run_on(
    spec: Spec,
    models: Sequence[str | LoadedModel],
    data: Callable[[LoadedModel], Any],
    config: Any,
    out: str | Path,
    force: bool = False,
) -> Outcome:
    """Measure models with one configuration."""

    jobs = [(source, config) for source in sources(list(models))]
    return measure(spec, jobs, data, out, force, load=lambda source, config: source.load())
