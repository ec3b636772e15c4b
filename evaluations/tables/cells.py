"""Cells of the paper's tables: a figure over seeds, why there is none, what a difference says."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.comparison.seeds import Estimate, Group, difference, estimate
from evaluations.comparison.selection import Model
from evaluations.core.record import Direction, Metric, Record
from evaluations.core.statistics import LEVEL, interval_of_mean, share_interval
from evaluations.tables import health
from evaluations.tables.grid import Cell
from evaluations.tables.health import DAGGER
from evaluations.tables.tables import number, scored_share

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
    shows: Literal["value", "scored"] = "value"
    """Its value, or the share of neurons (stories) that it could be taken of."""

    @property
    def key(self) -> str:
        """Names the column in CSV."""
        return self.metric if self.shows == "value" else f"{self.metric}_scored"

    def of(self, model: Model) -> float | None:
        """The model's figure where it has one that counts."""
        return self.read(model)[0] if self.state(model) == "scored" else None

    def read(self, model: Model) -> tuple[float | None, str]:
        """The figure whether it counts or not, and why there is none."""
        record = model.records.get(self.evaluation)
        metric = record.metric(self.metric) if record else None
        if metric is None:
            return None, "not measured"
        if self.shows == "scored":
            return scored_share(metric), "not counted"
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
        alone = len(values) == 1 and figure.shows == "value"
        metric = scored[0].records[figure.evaluation].metric(figure.metric)
        ends = own_interval(metric) if alone else None
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
    """A single model's 95 % interval, over its stories or neurons; None where there is none.

    The record's own. Records from before they had one: of a share, Wilson's; of a mean, Student's
    t from its standard error; none of fewer than `statistics.ENOUGH` things.
    """
    if metric is None or metric.value is None:
        return None
    found = metric.interval
    if found is None and metric.n is not None:
        hits = metric.value * metric.n
        if metric.unit == "share" and 0 <= hits <= metric.n and abs(hits - round(hits)) < 1e-6:
            found = share_interval(round(hits), metric.n)
        else:
            found = interval_of_mean(metric.value, metric.standard_error, metric.n)
    return (found.low, found.high) if found and found.level == LEVEL else None


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
    """The group that is better than every other one, over seeds; none where there is no such group.

    Better: the paired interval of its difference to each other group with a value (same seeds)
    leaves 0 out, on the better side. Single models, and groups of two seeds, have no interval over
    seeds: among them none is best.
    """
    known = [group for group in groups if any(value(model) is not None for model in group.models)]
    if direction is None or len(known) < 2:
        return set()
    return {
        group.name
        for group in known
        if all(
            (found := difference(group, other, value)) and judged(found, direction) == "better"
            for other in known
            if other is not group
        )
    }


def records_of(groups: Sequence[Group], evaluation: str) -> list[Record]:
    """The records of one evaluation that the tables are made from."""
    return [
        model.records[evaluation]
        for group in groups
        for model in group.models
        if evaluation in model.records
    ]


def judged(found: Estimate, direction: Direction | None) -> str:
    """better, worse or cannot tell; higher or lower, where neither is better; "" of few pairs."""
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
