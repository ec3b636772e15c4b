"""What a study measures: the key ``measures`` of its file, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluations.battery.plan import as_arguments
from evaluations.core.options import make_request
from evaluations.core.spec import Spec
from evaluations.registry import find_spec
from sat_interp._util.commandline import option_parser, parse_options
from sat_interp._util.errors import UserError, suggest
from sat_interp.training.study import Study, read_study

OF_THE_COMMAND = ("out", "force")
"""Options of ``sat-eval all`` that no study file decides."""


def measured_study(path: str | None) -> Study | None:
    """Return the study in a file, with its measures checked; None without a file.

    Raises:
        UserError: the file is no study, or names what cannot be measured.
    """
    if path is None:
        return None
    study = read_study(path)
    try:
        check_measures(study.measures)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return study


def check_measures(measures: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Refuse what ``sat-eval all --study`` could not measure.

    ``sat-train --study`` finds this function by the entry point ``sat_interp.measures``, so that
    training does not depend on evaluations.

    Args:
        measures: an evaluation and its options an entry (``Study.measures``).

    Raises:
        UserError: an unknown evaluation or option, a value that is not possible, or the same
            evaluation with the same options twice.
    """
    known: list[tuple[str, dict[str, Any]]] = []
    for entry in measures:
        for name, options in entry.items():
            try:
                values = _checked(find_spec(name), options)
            except UserError as error:
                raise UserError(f"measures: {name}: {error}") from None
            if (name, values) in known:
                raise UserError(f"measures: {name} is there twice with the same options")
            known.append((name, values))


def _checked(spec: Spec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all options of an evaluation."""
    allowed = [name for name in spec.option_names if name not in OF_THE_COMMAND]
    for name, value in options.items():
        if name in OF_THE_COMMAND:
            raise UserError(f"{name} is an option of sat-eval all, not of a study file")
        if name not in allowed:
            raise UserError(suggest("option", name, allowed))
        if value is None:
            raise UserError(f"{name} has no value: leave it out for the default")
    values = parse_options(option_parser(*spec.option_classes), as_arguments(options))
    make_request((), spec.options, spec.shared, values)
    return values
