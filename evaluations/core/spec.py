"""The specification of an evaluation: everything that the rest of the package needs to know of it.

``evaluations.registry`` lists the specifications. The command line, the battery, the report and the
docs are made from that list; an evaluation is a folder with a ``SPEC`` and one line there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from evaluations.core.options import RunOptions
from sat_interp.engine.job import Resources

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from evaluations.core.models import LoadedModel
    from evaluations.core.options import Request
    from evaluations.core.outcome import Measured, Outcome
    from evaluations.core.record import Metric
    from evaluations.core.runner import Data

Preset = Literal["quick", "demo", "paper"]
PRESETS: tuple[Preset, ...] = ("quick", "demo", "paper")


@dataclass(frozen=True)
class Measurement:
    """What an evaluation returns of one model."""

    metrics: list[Metric]
    extra: dict[str, Any] = field(default_factory=dict)
    """Small curves and histograms; large things go to files of their own."""


@dataclass(frozen=True)
class Cost:
    """What an evaluation takes, so that a battery can say how long it will be.

    Attributes:
        seconds: by preset, of a built-in model on one free core; ``paper`` of the same model too.
        grows: with a model's operations per token, or with the edges of its graph.
        power: exponent of that size.
        guessed: presets whose ``seconds`` nobody has measured.
    """

    seconds: Mapping[Preset, float]
    grows: Literal["operations", "edges"] = "operations"
    power: float = 1.0
    guessed: tuple[Preset, ...] = ()


@dataclass(frozen=True)
class Spec:
    """An evaluation: a folder with this in its ``__init__`` and two modules beside it.

    ``evaluation.py`` holds

    - ``evaluate(model, data, config) -> Measurement``;
    - ``prepare(request, configs) -> Callable[[LoadedModel], Data]``: how a model gets its data;

    and, where they are needed,

    - ``configs(request) -> list[config]``: one record each; by default the options themselves;
    - ``check(model, config)``: raises ``UserError`` where a model of that shape cannot be measured;
      it is given the model on the meta device, before weights are read;
    - ``fit(model, data, config) -> config`` that is used on that data, and recorded;
    - ``follow_up(request, measured) -> [(model, config)]``: what is measured besides, because of
      the first records;
    - ``instead(request) -> (list, Outcome) | None``: what is done in place of the evaluation, where
      the options ask for something else, and which models failed;
    - ``preview(subject) -> str``: what the defaults read and make of a model.

    ``report.py`` holds ``tables(records) -> list[Table]``, ``FIGURES`` (by name, functions from
    records to matplotlib figures; '' is the main one), ``files(records, out, stem) -> list[Path]``
    and, where they are needed,

    - ``HEADLINE``: the question that the report's summary answers, and by which metric;
    - ``details(record, out) -> DataFrame``: a row for each thing measured (neuron, edge);
    - ``graphs(records) -> dict``: a networkx graph of each model;
    - ``warnings(records) -> list[str]``: lines that a command logs;
    - ``pages(records, request) -> list[Path]``: further files that the options ask for;
    - ``fragment``, ``browse``: what the report's page shows besides, and a page of its own;
    - ``DRAWN_FROM``: the part of a record's ``extra`` without which there is no figure;
    - ``EVERY_RECORD``: whether tables show all records of a model, not the newest alone.

    Both are imported when they are first needed: a list of evaluations loads neither torch nor
    matplotlib.

    Attributes:
        package: the folder, ``__name__`` of its ``__init__``.
        name: as in ``sat-eval <name>`` and in the names of record files.
        summary: one sentence.
        description: what is measured and written, for ``--help`` and the docs.
        examples: command lines.
        version: part of a record's identity; raised by one whenever a change of the code changes a
            figure, so that records of the old code are measured again.
        options: frozen dataclass with a docstring under each field.
        shared: classes of shared options it takes besides ``RunOptions``.
        budgets: by preset, the options that differ from the defaults.
        cost: the time it takes.
        resources: what it needs while it measures one model.
        after: the evaluation that leaves something in the cache which this one would make again.
        needs: what a model must have: ``gates`` (with weights).
        controlled: presets in which the first model is measured untrained, too (see
            ``evaluations.core.controls``): the floor its figures are read against.
    """

    package: str
    name: str
    summary: str
    description: str
    examples: tuple[str, ...]
    version: int
    options: type
    shared: tuple[type, ...]
    cost: Cost
    budgets: Mapping[Preset, Mapping[str, Any]] = field(default_factory=dict)
    after: str | None = None
    needs: frozenset[str] = frozenset()
    resources: Resources = Resources()
    controlled: tuple[Preset, ...] = ()

    @property
    def option_classes(self) -> tuple[type, ...]:
        """The classes of all its options: the shared ones, its own, and how it is run."""
        return (*self.shared, self.options, RunOptions)

    @property
    def option_names(self) -> list[str]:
        """The names of all its options."""
        return [field.name for kind in self.option_classes for field in fields(kind)]

    @property
    def evaluation(self) -> Any:
        """The module ``evaluation``."""
        return importlib.import_module(f"{self.package}.evaluation")

    @property
    def report(self) -> Any:
        """The module ``report``."""
        return importlib.import_module(f"{self.package}.report")

    def evaluate(self, model: HookedTransformer, data: Any, config: Any) -> Measurement:
        """Measure one model."""
        measurement: Measurement = self.evaluation.evaluate(model, data, config)
        return measurement

    def prepare(self, request: Request, configs: Sequence[Any]) -> Callable[[LoadedModel], Data]:
        """Return what gives a model its data."""
        finder: Callable[[LoadedModel], Data] = self.evaluation.prepare(request, configs)
        return finder

    def configs(self, request: Request) -> list[Any]:
        """Return the configurations, one record of each model each."""
        make = self._optional("configs")
        return make(request) if make else [request.options]

    def check(self, model: HookedTransformer, config: Any) -> None:
        """Raise ``UserError`` where a model of that shape cannot be measured."""
        if check := self._optional("check"):
            check(model, config)

    def fit(self, model: HookedTransformer, data: Any, config: Any) -> Any:
        """Return the configuration that is used on that data."""
        fit = self._optional("fit")
        return fit(model, data, config) if fit else config

    def follow_up(self, request: Request, measured: Sequence[Measured]) -> list[tuple[Any, Any]]:
        """Return models and configurations that are measured because of the first records."""
        follow_up = self._optional("follow_up")
        return follow_up(request, measured) if follow_up else []

    def instead(self, request: Request) -> tuple[list[Any], Outcome] | None:
        """Do what the options ask for in place of the evaluation, if anything."""
        instead = self._optional("instead")
        return instead(request) if instead else None

    def preview(self, subject: Any) -> str:
        """Return what the defaults read and make of a model, in a few words."""
        preview = self._optional("preview")
        return preview(subject) if preview else ""

    def _optional(self, name: str) -> Callable[..., Any] | None:
        function: Callable[..., Any] | None = getattr(self.evaluation, name, None)
        return function
