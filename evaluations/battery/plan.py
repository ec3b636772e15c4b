"""Jobs of a battery: evaluations, models, budgets and estimated times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluations.core.spec import Preset, Spec
from evaluations.registry import SPECS, find_spec
from sat_interp._util.errors import UserError, suggest

State = Literal["waiting", "running", "done", "failed", "nothing to do"]
NEAR = 2.0
"""Ratio of sizes to the built-in models up to which an estimate is not called rough."""


@dataclass
class Job:
    """An evaluation with its models, options and state."""

    spec: Spec
    models: list[str]
    settings: dict[str, Any]
    estimate: float | None
    state: State = "waiting"
    seconds: float = 0.0
    reason: str = ""
    """Reason of a failure."""
    is_rough: bool = False
    """Whether the estimate is extrapolated to another size of model, or guessed."""
    number: int = 0
    """Number of the job among those of the same evaluation, from 0."""

    @property
    def name(self) -> str:
        """Name of the evaluation."""
        return self.spec.name

    @property
    def title(self) -> str:
        """Name of the job in tables and of its log: ``acdc``, then ``acdc-2``."""
        return f"{self.name}-{self.number + 1}" if self.number else self.name

    @property
    def arguments(self) -> list[str]:
        """The command line after ``sat-eval``."""
        return [self.name, *self.models, *map(_argument, self.settings.items())]


@dataclass(frozen=True)
class Size:
    """The size of a model, which determines the time of evaluations; None if it is unknown.

    Attributes:
        operations: operations of a forward pass per token.
        edges: number of edges of the graph with separate queries, keys and values.
        has_gates: whether the model has gates.
    """

    operations: float | None = None
    edges: float | None = None
    has_gates: bool = False


@dataclass(frozen=True)
class Budgets:
    """The options of a battery's evaluations.

    Attributes:
        preset: name of the budgets in the specifications.
        common: options for all evaluations that have them, such as data and out.
        own: options by evaluation; they override all others.
    """

    preset: Preset = "demo"
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self, spec: Spec) -> dict[str, Any]:
        """Return the options of one evaluation that differ from its defaults."""
        own = self.own.get(spec.name, {})
        return {**spec.budgets.get(self.preset, {}), **self.shared(spec), **own}

    def shared(self, spec: Spec) -> dict[str, Any]:
        """Return the common options that an evaluation has."""
        return {
            name: value
            for name, value in self.common.items()
            if name in spec.option_names and value is not None
        }


def plan(models: Sequence[str], budgets: Budgets, specs: Sequence[Spec] | None = None) -> list[Job]:
    """Return the jobs of a battery, in the order of the registry.

    Raises:
        UserError: there are options for an unknown evaluation.
    """
    specs = SPECS if specs is None else specs
    for name in budgets.own:
        find_spec(name)
    sizes = {model: size_of(model) for model in models}
    reference = size_of("demo:baseline")
    return [_job(spec, models, budgets, sizes, reference) for spec in specs]


def _job(
    spec: Spec,
    models: Sequence[str],
    budgets: Budgets,
    sizes: Mapping[str, Size],
    reference: Size,
) -> Job:
    preset, cost = budgets.preset, spec.cost
    chosen = [model for model in models if "gates" not in spec.needs or sizes[model].has_gates]
    measured = [sizes[model] for model in chosen]
    if preset in spec.controlled:
        measured += measured[:1]
        chosen += [f"{model} [untrained]" for model in chosen[:1]]
    factors = [
        _factor(getattr(size, cost.grows), getattr(reference, cost.grows)) for size in measured
    ]
    known = [factor for factor in factors if factor is not None]
    estimate = sum(factor**cost.power for factor in known) * cost.seconds[preset]
    return Job(
        spec,
        chosen,
        budgets.settings(spec),
        estimate if len(known) == len(factors) else None,
        "waiting" if chosen else "nothing to do",
        is_rough=preset in cost.guessed or not all(map(_is_near, known)),
    )


def study_plan(
    models: Sequence[str],
    measures: Sequence[Mapping[str, Mapping[str, Any]]],
    budgets: Budgets,
    parts: Sequence[str] = (),
) -> list[Job]:
    """Return the jobs that a study names, in its order; controls are not measured beside them.

    Args:
        measures: an evaluation and its options an entry (``Study.measures``).
        parts: the evaluations to keep; all by default.

    Raises:
        UserError: an unknown evaluation, or an option it does not have.
    """
    chosen_specs(parts)
    gated = {model for model in models if size_of(model).has_gates}
    jobs: list[Job] = []
    for entry in measures:
        for name, options in entry.items():
            spec = find_spec(name)
            for option in options:
                if option not in spec.option_names:
                    raise UserError(suggest(f"option of {name}", option, spec.option_names))
            if parts and name not in parts:
                continue
            chosen = [one for one in models if "gates" not in spec.needs or one in gated]
            settings = {**budgets.shared(spec), **options, **budgets.own.get(name, {})}
            number = sum(job.name == name for job in jobs)
            state: State = "waiting" if chosen else "nothing to do"
            jobs.append(Job(spec, chosen, settings, None, state, number=number))
    return jobs


def chosen_specs(names: Sequence[str]) -> list[Spec]:
    """Return the evaluations of these names in the order of the registry, by default all.

    Raises:
        UserError: there is no such evaluation.
    """
    known = {spec.name: spec for spec in SPECS}
    for name in names:
        if name not in known:
            raise UserError(suggest("part", name, known))
    return [spec for spec in SPECS if not names or spec.name in names]


def estimated_seconds(jobs: Sequence[Job], n_processes: int) -> float | None:
    """Return the estimated time of all jobs without records; None if a model's size is unknown."""
    waiting = [job.estimate for job in jobs if job.state == "waiting"]
    known = [estimate for estimate in waiting if estimate is not None]
    if len(known) < len(waiting):
        return None
    return max([sum(known) / n_processes, *known]) if known else 0.0


def _argument(setting: tuple[str, Any]) -> str:
    """Return an option as an argument of the command line."""
    name, value = setting
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return option
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return f"{option}={value}"


def size_of(spec: str) -> Size:
    """Return a model's size and gates; of a model that cannot be read, an unknown size."""
    from evaluations.core.model_source import ModelSource

    try:
        model = ModelSource.of(spec).meta_model
    except UserError:
        return Size()  # the evaluations report the error
    cfg, gates = model.cfg, getattr(model, "ablation", None)
    size = _size(cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab)
    return dataclasses.replace(size, has_gates=gates is not None and gates.has_gate_weights)


def _size(layers: int, width: int, heads: int, vocabulary: int) -> Size:
    """Count operations of a token, and edges with separate queries, keys and values."""
    sources = [1 + layer * (heads + 1) for layer in range(layers + 1)]
    edges = sum(3 * heads * n + (n + heads) for n in sources[:-1]) + sources[-1]
    return Size(12.0 * layers * width**2 + vocabulary * width, float(edges))


def _factor(size: float | None, reference: float | None) -> float | None:
    return size / reference if size and reference else None


def _is_near(factor: float) -> bool:
    """Return whether a model's size is close to that of the built-in models."""
    return 1 / NEAR <= factor <= NEAR
