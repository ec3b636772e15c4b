"""The evaluations as Python functions: ``evaluations.lm("demo:baseline")`` returns a ``Result``.

There is a function for each specification in ``evaluations.registry``. Its keyword arguments are
the command's options, under the same names.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluations.core.options import make_request
from evaluations.core.spec import Spec
from evaluations.registry import find_spec
from sat_interp._util.errors import UserError, suggest

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.figure import Figure

    from evaluations.core.options import Request
    from evaluations.core.outcome import Outcome
    from evaluations.core.record import Record
    from evaluations.tables.table import Table

log = logging.getLogger(__name__)


class Result:
    """What an evaluation measured of one or several models.

    Attributes:
        records: one for each model (and configuration) that could be measured.
        failures: by model, why it could not.
        directory: where records, autoencoders and explanations lie; a temporary one, removed with
            this object, unless ``out`` was given.
    """

    def __init__(self, spec: Spec, request: Request, outcome: Outcome) -> None:
        self.spec, self.request = spec, request
        self.records: list[Record] = outcome.records
        self.failures: Mapping[str, str] = outcome.failures
        self.directory: Path = request.out

    @property
    def record(self) -> Record:
        """The record, where there is one alone.

        Raises:
            UserError: there are several.
        """
        if len(self.records) != 1:
            raise UserError(f"there are {len(self.records)} records: see .records")
        return self.records[0]

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each metric of each record (see ``results_frame``)."""
        from evaluations.core.frame import results_frame

        return results_frame(self.records)

    @property
    def tables(self) -> list[Table]:
        """The tables that the command prints."""
        tables: list[Table] = self.spec.report.tables(self.records)
        return tables

    @property
    def details(self) -> pd.DataFrame:
        """A row for each thing measured: neurons, graphs, edges of circuits.

        Raises:
            UserError: the evaluation measures no such things.
        """
        import pandas as pd

        details = getattr(self.spec.report, "details", None)
        if details is None:
            raise UserError(f"{self.spec.name} has no details: its figures are in .frame")
        frames = [details(record, self.directory) for record in self.records]
        whole: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return whole

    @property
    def graphs(self) -> dict[str, nx.DiGraph]:
        """The circuit of each model.

        Raises:
            UserError: the evaluation finds no circuits.
        """
        graphs = getattr(self.spec.report, "graphs", None)
        if graphs is None:
            raise UserError(f"{self.spec.name} finds no circuits")
        found: dict[str, nx.DiGraph] = graphs(self.records)
        return found

    def plot(self, name: str = "") -> Figure:
        """Draw a figure of the records.

        Args:
            name: which, of the report's figures; the main one by default.

        Raises:
            UserError: there is no such figure, or nothing to draw.
        """
        figures = self.spec.report.FIGURES
        if name not in figures:
            raise UserError(suggest("figure", name, figures))
        drawn: list[Figure] = figures[name](self.records)
        if not drawn:
            raise UserError(f"{self.spec.name} has nothing to draw of these records")
        _show_in_notebooks()
        return drawn[0]

    def _repr_html_(self) -> str:
        from evaluations.tables.table import html

        return "\n".join(html(table, has_glossary=False) for table in self.tables)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(str(record.model["name"]) for record in self.records))
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Result of {self.spec.name}: {names}{failed}>"


def _show_in_notebooks() -> None:
    """Have a notebook show figures as pictures; by itself it does so only for those of pyplot."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        tools = importlib.import_module("IPython.core.pylabtools")
        tools.select_figure_formats(shell, {"png"})


def evaluate(spec: Spec, models: Any, **settings: Any) -> Result | list[Any]:
    """Run one evaluation on one model or a list of them.

    No file is kept and nothing is printed unless ``out`` names a directory: then records that are
    there already are read instead of measured again.

    Args:
        models: names, paths, models in memory, or a list of these.
        settings: options of the evaluation.

    Returns:
        The result; of options that ask for another thing than the evaluation, what they ask for.

    Raises:
        UserError: options that make no sense, or no model could be measured.
    """
    request = make_request(models, spec.options, spec.shared, settings)
    if request.run.out is not None:
        return _evaluated(spec, request)
    directory = tempfile.mkdtemp(prefix="sat-eval-")
    kept = dataclasses.replace(request.run, out=directory)
    try:
        result = _evaluated(spec, dataclasses.replace(request, run=kept))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if isinstance(result, Result):
        weakref.finalize(result, shutil.rmtree, directory, ignore_errors=True)
    return result


def _evaluated(spec: Spec, request: Request) -> Result | list[Any]:
    """Run an evaluation, or what its options ask for in place of it.

    Raises:
        UserError: no model could be measured.
    """
    from evaluations.core.runner import run

    instead = spec.instead(request)
    made, outcome = instead or ([], run(spec, request))
    if not (made or outcome.records):
        outcome.raise_failures()
    for name, reason in outcome.failures.items():
        log.warning("%s: %s", name, reason)
    return made if instead else Result(spec, request, outcome)


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of an evaluation, with the options as its keyword arguments.

    Raises:
        UserError: there is no such evaluation.
    """
    spec = find_spec(name)

    def run(models: Any, **settings: Any) -> Result | list[Any]:
        return evaluate(spec, models, **settings)

    run.__name__ = run.__qualname__ = name
    run.__module__ = "evaluations"
    run.__doc__ = _docstring(spec)
    run.__signature__ = _signature(spec)  # type: ignore[attr-defined]
    return run


def _signature(spec: Spec) -> inspect.Signature:
    models = inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=field.type,
        )
        for kind in spec.option_classes
        for field in dataclasses.fields(kind)
    ]
    return inspect.Signature([models, *options], return_annotation="Result")


def _docstring(spec: Spec) -> str:
    from sat_interp._util.commandline import field_docstrings

    lines = [spec.summary, "", spec.description.strip(), "", "Args:"]
    lines.append("    models: a name, a path, a model in memory, or a list of these.")
    for kind in spec.option_classes:
        lines += [f"    {name}: {text}" for name, text in field_docstrings(kind).items()]
    return "\n".join([*lines, "", "Returns:", "    A ``Result``."])


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
