"""Measure any decoder-only HookedTransformer: a function per evaluation, results as DataFrames.

    import evaluations as ev
    result = ev.acdc("demo:local-k4", task="ioi")
    result.frame, result.plot(), result.graphs
    ev.results_frame("results")

The names are loaded when they are asked for: importing this package loads neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evaluations.registry import SPECS

if TYPE_CHECKING:
    from evaluations.api import Result as Result
    from evaluations.core.frame import results_frame as results_frame
    from evaluations.core.model_source import load_model as load_model
    from evaluations.suite.circuits.graph import Graph as Graph
    from sat_interp._util.errors import UserError as UserError

_HOMES = {
    "Graph": "evaluations.suite.circuits.graph",
    "Result": "evaluations.api",
    "UserError": "sat_interp._util.errors",
    "load_model": "evaluations.core.model_source",
    "report": "evaluations.comparison.collection",
    "results_frame": "evaluations.core.frame",
}

__all__ = sorted([*_HOMES, *(spec.name for spec in SPECS)])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in __all__:
        value = importlib.import_module("evaluations.api").function_of(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
