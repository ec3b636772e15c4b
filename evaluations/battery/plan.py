"""Jobs of a battery: evaluations, models, budgets and estimated times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluations.battery import shipping
from evaluations.core.options import DEFAULT_OUT, TextOptions
from evaluations.core.record import hash_of
from evaluations.core.spec import Preset, Spec
from evaluations.registry import SPECS, find_spec
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded, file_name
from sat_interp.engine.job import Command, Job, Resources, Shipment, State

IMPORTS = (
    "evaluations.core.runner",
    "evaluations.output",
    "sat_interp._util.commandline",
    "scipy.stats",
)
"""Modules that every evaluation imports."""
NEAR = 2.0
"""Ratio of sizes to the built-in models up to which an estimate is not called rough."""


@dataclass
class EvaluationJob(Job):
    """An evaluation of several models, or of one of them, with its options.

    Attributes:
        spec: the evaluation.
        models: MODEL arguments.
        settings: options that differ from the evaluation's defaults.
        number: among the jobs of the same evaluation with other options, from 0.
        subject: the model of a job of one model; None for a job of all.
        label: of that model, in the overview.
        beside: a model that is measured beside the subject, for what both hold out of their text.
    """

    spec: Spec
    models: list[str]
    settings: dict[str, Any]
    number: int = 0
    subject: str | None = None
    label: str = ""
    beside: str | None = None

    @property
    def name(self) -> str:
        """The title, with the model of a job of one model."""
        return f"{self.title} {self.label}".strip()

    @property
    def title(self) -> str:
        """The evaluation and its number: ``acdc``, then ``acdc-2``."""
        return title(self.spec.name, self.number)

    @property
    def kind(self) -> str:
        """The title."""
        return self.title

    @property
    def after(self) -> tuple[str, ...]:
        """The evaluation that leaves something in the cache, of the same model."""
        if self.spec.after is None:
            return ()
        return (f"{self.spec.after} {self.label}".strip(),)

    @property
    def resources(self) -> Resources:
        """What the specification states; no GPU where the options name the CPU."""
        wanted = self.spec.resources
        return dataclasses.replace(wanted, gpus=0.0) if self._is_on_cpu else wanted

    @property
    def log_name(self) -> str:
        """Name of its log, below the directory of the logs."""
        return self.title if self.subject is None else f"{self.title}/{_short(self.subject)}"

    @property
    def claims(self) -> list[str]:
        """A lock for each model."""
        return [claim(self.title, model) for model in self.models]

    @property
    def arguments(self) -> list[str]:
        """The command line after ``sat-eval``."""
        return [self.spec.name, *self.models, *as_arguments(self.settings)]

    def command(self) -> Command:
        """Return the command."""
        return Command("evaluations.cli", self.arguments, imports=IMPORTS)

    def shipment(self) -> Shipment:
        """Return the command of one model with the files that it reads."""
        assert self.subject is not None
        out = expanded(str(self.settings.get("out") or DEFAULT_OUT)).resolve()
        settings = shipping.absolute_settings({**self.settings, "out": str(out)})
        chosen = list(dict.fromkeys(filter(None, (self.beside, self.subject))))
        models = [shipping.absolute_model(model) for model in chosen]
        inputs = shipping.setting_files(settings)
        for model in models:
            inputs |= shipping.model_files(model)
        force, evaluation = bool(settings.get("force")), self.spec.name
        earlier = [
            name
            for model in models
            if not force
            for name in shipping.earlier_files(evaluation, model, out)
        ]
        sent = dataclasses.replace(self, models=models, settings=settings)
        command = Command("evaluations.job", sent.arguments, imports=IMPORTS)
        record = rf"[^/]+/{re.escape(evaluation)}-[^/]*\.json"
        recipe = str(self.spec.version)
        return Shipment(command, inputs, out, r"[^/]+/.*", record, earlier, force, recipe)

    @property
    def _is_on_cpu(self) -> bool:
        return str(self.settings.get("device") or "").startswith("cpu")


def per_model(part: EvaluationJob) -> list[EvaluationJob]:
    """Return a job for each model of a part."""
    if not part.models:
        return []
    text_model = None
    if TextOptions in part.spec.shared:
        text_model = shipping.text_model(part.models, part.settings)
    short = [Path(model).name for model in part.models]
    estimate = None if part.estimate is None else part.estimate / len(part.models)
    return [
        dataclasses.replace(
            part,
            models=[model],
            subject=model,
            label=name if short.count(name) == 1 else model,
            beside=None
            if text_model is None or shipping.shares_text(model, text_model)
            else text_model,
            estimate=estimate,
        )
        for model, name in zip(part.models, short, strict=True)
    ]


def title(evaluation: str, number: int) -> str:
    """Return the name of a job among those of the same evaluation: ``acdc``, then ``acdc-2``."""
    return f"{evaluation}-{number + 1}" if number else evaluation


def claim(title: str, model: str) -> str:
    """Return the name of the lock of a job's model."""
    return f"{title}-{_short(shipping.absolute_model(model))}"


def _short(model: str) -> str:
    """Return a file name for a MODEL argument."""
    return f"{file_name(Path(model).name)[:60]}-{hash_of(model)[:6]}"


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


def plan(
    models: Sequence[str], budgets: Budgets, specs: Sequence[Spec] | None = None
) -> list[EvaluationJob]:
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
) -> EvaluationJob:
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
    return EvaluationJob(
        spec,
        chosen,
        budgets.settings(spec),
        estimate=estimate if len(known) == len(factors) else None,
        state="waiting" if chosen else "nothing to do",
        is_rough=preset in cost.guessed or not all(map(_is_near, known)),
    )


def study_plan(
    models: Sequence[str],
    measures: Sequence[Mapping[str, Mapping[str, Any]]],
    budgets: Budgets,
    parts: Sequence[str] = (),
) -> list[EvaluationJob]:
    """Return the jobs that a study names, in its order; controls are not measured beside them.

    Args:
        measures: an evaluation and its options an entry (``Study.measures``), checked.
        parts: the evaluations to keep; all by default.

    Raises:
        UserError: an unknown evaluation.
    """
    chosen_specs(parts)
    gated = {model for model in models if size_of(model).has_gates}
    jobs: list[EvaluationJob] = []
    for entry in measures:
        for name, options in entry.items():
            spec = find_spec(name)
            if parts and name not in parts:
                continue
            chosen = [one for one in models if "gates" not in spec.needs or one in gated]
            settings = {**budgets.shared(spec), **options, **budgets.own.get(name, {})}
            number = sum(job.spec is spec for job in jobs)
            state: State = "waiting" if chosen else "nothing to do"
            jobs.append(EvaluationJob(spec, chosen, settings, number, state=state))
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


def estimated_seconds(jobs: Sequence[EvaluationJob], n_processes: int) -> float | None:
    """Return the estimated time of all jobs without records; None if a model's size is unknown."""
    waiting = [job.estimate for job in jobs if job.state == "waiting"]
    known = [estimate for estimate in waiting if estimate is not None]
    if len(known) < len(waiting):
        return None
    return max([sum(known) / n_processes, *known]) if known else 0.0


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of the command line; a flag that is off is left out."""
    return [_argument(name, value) for name, value in settings.items() if value is not False]


def _argument(name: str, value: Any) -> str:
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
