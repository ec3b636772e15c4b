"""Cells of the paper's tables: a figure over seeds, why there is none, what a difference says."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.record import Direction, Metric, Record
from evaluations.report import health
from evaluations.report.grid import Cell
from evaluations.report.health import DAGGER
from evaluations.report.seeds import Estimate, Group, estimate
from evaluations.report.selection import Model
from evaluations.report.tables import number
from evaluations.statistics import LEVEL, t_quantile

ABLE = 0.9
"""Below this accuracy on IOI a count of edges says nothing: it is low for the wrong reason."""

State = Literal["scored", "missing", "unscored", "unable"]


@dataclass(frozen=True)
class Figure:
    """A column of Table 1."""

    evaluation: str
    metric: str
    title: str
    digits: int
    direction: Direction | None

    def of(self, model: Model) -> float | None:
        """The model's figure where it has one that counts."""
        return self.read(model)[0] if self.state(model) == "scored" else None

    def read(self, model: Model) -> tuple[float | None, str]:
        """The figure whether it counts or not, and why there is none."""
        record = model.records.get(self.evaluation)
        metric = record.metric(self.metric) if record else None
        if metric is None:
            return None, "not measured"
        return metric.value, ", ".join(metric.reasons)

    def state(self, model: Model) -> State:
        """Whether the model has the figure, and if not, whose fault that is."""
        record = model.records.get(self.evaluation)
        if record is None:
            return "missing"
        if self.read(model)[0] is None:
            return "unscored"
        return "unable" if self.evaluation == "acdc" and fails_task(model) else "scored"

    def is_sound(self, group: Group) -> bool:
        """Whether no record that the group's mean is taken from carries a health mark."""
        return is_sound(self.evaluation, [one for one in group.models if self.of(one) is not None])


def fails_task(model: Model) -> bool:
    """Whether the model is right on fewer than 9 of 10 prompts."""
    record = model.records.get("acdc")
    accuracy = record.metric("accuracy") if record else None
    return accuracy is None or accuracy.value is None or accuracy.value < ABLE


def is_sound(evaluation: str, models: Iterable[Model]) -> bool:
    """Whether the models' records of an evaluation carry no health mark."""
    records = [one.records[evaluation] for one in models if evaluation in one.records]
    return not any(map(health.phrases, records))


def seeds_cell(figure: Figure, group: Group, is_best: bool) -> Cell:
    """A group's mean with interval; how many seeds it is of, where not all; why there is none."""
    states = [figure.state(model) for model in group.models]
    scored = [model for model in group.models if figure.of(model) is not None]
    values = [value for model in scored if (value := figure.of(model)) is not None]
    left_out = {f"_{state}": states.count(state) for state in ("missing", "unscored", "unable")}
    if values:
        found = estimate(values)
        text = shown(found, figure.digits)
        if found.n < len(states):
            text += f" (n={found.n}{_marks(states)})"
        ends = own_interval(scored[0].records[figure.evaluation].metric(figure.metric))
        ends = ends if len(values) == 1 else None
        within = own_text(ends, figure.digits) if ends else ""
        if not figure.is_sound(group):
            text, is_best = f"{text} {DAGGER}", False
        return Cell(text, is_best, {**exact(found), **own_exact(ends), **left_out}, within)
    nothing: dict[str, float | int | str | None] = {
        "": None,
        "_low": None,
        "_high": None,
        "_n": 0,
        **own_exact(None),
        **left_out,
    }
    return Cell(_reason(figure, group, states), False, nothing)


def shown(found: Estimate, digits: int, sign: bool = False) -> str:
    """``4.01 [3.90, 4.12]``; a whole number without its zeros where it is of one seed."""
    if found.low is None or found.high is None:
        return _signed(found.mean, digits, sign).removesuffix(".0")
    low, high = (_signed(end, digits, sign) for end in (found.low, found.high))
    return f"{_signed(found.mean, digits, sign)} [{low}, {high}]"


def exact(found: Estimate) -> dict[str, float | int | str | None]:
    """An estimate's figures for CSV."""
    return {"": found.mean, "_low": found.low, "_high": found.high, "_n": found.n}


def own_interval(metric: Metric | None) -> tuple[float, float] | None:
    """A single model's 95 % interval, over its stories or neurons; None where none is recorded.

    The record's own; else value -+ t(0.975, n - 1) standard errors, the value being a mean over n.
    """
    if metric is None or metric.value is None:
        return None
    if metric.interval is not None:
        one = metric.interval
        return (one.low, one.high) if one.level == LEVEL else None
    if not metric.standard_error or metric.n is None or metric.n < 2:
        return None  # an error of 0 is of neurons that are all alike: it says nothing
    reach = t_quantile(metric.n - 1) * metric.standard_error
    return metric.value - reach, metric.value + reach


def own_text(ends: tuple[float, float], digits: int) -> str:
    """``(2.061–2.108)``: other brackets than of an interval over seeds."""
    low, high = (_signed(end, digits, False) for end in ends)
    return f"({low} to {high})" if ends[0] < 0 else f"({low}–{high})"


def own_exact(ends: tuple[float, float] | None) -> dict[str, float | int | str | None]:
    """A single model's interval for CSV."""
    low, high = ends or (None, None)
    return {"_within_low": low, "_within_high": high}


def command_for(evaluation: str, models: Iterable[Model]) -> str:
    """The command that fills what is missing."""
    return f"sat-eval {evaluation} {' '.join(shlex.quote(model.spec) for model in models)}"


def best_of(
    groups: Sequence[Group], value: Callable[[Model], float | None], direction: Direction | None
) -> set[str]:
    """The groups with the best mean; none where only one has a mean, or no way is better."""
    means = {
        group.name: estimate(values).mean
        for group in groups
        if (values := [found for one in group.models if (found := value(one)) is not None])
    }
    if direction is None or len(means) < 2:
        return set()
    target = min(means.values()) if direction == "lower" else max(means.values())
    return {name for name, mean in means.items() if mean == target}


def records_of(groups: Sequence[Group], evaluation: str) -> list[Record]:
    """The records of one evaluation that the tables are made from."""
    return [
        model.records[evaluation]
        for group in groups
        for model in group.models
        if evaluation in model.records
    ]


def judged(found: Estimate, direction: Direction | None) -> str:
    """better, worse or cannot tell; higher or lower, where neither is better; "" for one pair."""
    if found.low is None or found.high is None:
        return ""
    if found.low <= 0 <= found.high:
        return "cannot tell"
    side: Direction = "lower" if found.high < 0 else "higher"
    return side if direction is None else ("better" if side == direction else "worse")


def _signed(value: float, digits: int, sign: bool) -> str:
    text = number(abs(value), digits)
    return ("−" if value < 0 else "+" if sign else "") + text


def _marks(states: Sequence[State]) -> str:
    unable = states.count("unable")
    return f", {unable} {DAGGER}" if unable else ""


def _reason(figure: Figure, group: Group, states: Sequence[State]) -> str:
    """What stands in a cell without a mean."""
    if "unable" in states:  # the counts as they are: no mean of them
        found = [figure.read(one)[0] for one in group.models if figure.state(one) == "unable"]
        told = "; ".join(number(value, 0) for value in found if value is not None)
        return f"{told} {DAGGER}"
    if "unscored" in states:
        return "n/a: " + (figure.read(group.models[states.index("unscored")])[1] or "no value")
    return f"run: sat-eval {figure.evaluation if states else 'all'}"
