"""What is compared over seeds: the values of a measure by group and seed, and cells of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.comparison.seeds import Group, SeedMean, seed_mean
from evaluations.comparison.selection import Model, is_comparable
from evaluations.core import health
from evaluations.core.health import DAGGER
from evaluations.core.record import Direction, Metric, Record
from evaluations.core.statistics import LEVEL, interval_of
from evaluations.tables.table import EMPTY, UNSCORED, Cell, Exact, Heading
from evaluations.tables.view import number, share_scored

ABLE = 0.9
"""Accuracy on IOI below which an edge count is not meaningful: it is low for the wrong reason."""

State = Literal["scored", "missing", "unscored", "unable"]


@dataclass(frozen=True)
class Measure:
    """A metric that models are compared by.

    Attributes:
        shows: its value, or the share of things (neurons) that could be scored.
        is_fixed: whether values near 0 are shown at fixed digits, too (differences never are).
        is_counted: whether a single model's interval is shown with its n.
    """

    evaluation: str
    metric: str
    title: str
    digits: int
    direction: Direction | None
    shows: Literal["value", "scored"] = "value"
    definition: str = ""
    is_fixed: bool = False
    is_counted: bool = False

    @property
    def key(self) -> str:
        """The name of the column in CSV."""
        return self.metric if self.shows == "value" else f"{self.metric}_scored"

    @property
    def heading(self) -> Heading:
        """The heading of the measure's column."""
        return Heading(self.title, self.direction, self.definition)

    def metric_of(self, model: Model) -> Metric | None:
        """The model's metric, where it has such a record."""
        record = model.records.get(self.evaluation)
        return record.metric(self.metric) if record else None

    def read(self, model: Model) -> tuple[float | None, str]:
        """The value whether it counts or not, and the reason why there is none."""
        metric = self.metric_of(model)
        if metric is None:
            return None, "not measured"
        if self.shows == "value":
            return metric.value, ", ".join(metric.reasons)
        share = share_scored(metric.n, metric.n_failed)
        return share, "not counted" if share is None else ""

    def state(self, model: Model) -> State:
        """Whether the model has a value that counts, and if not, why."""
        if self.evaluation not in model.records:
            return "missing"
        if self.read(model)[0] is None:
            return "unscored"
        return "unable" if self.evaluation == "acdc" and fails_task(model) else "scored"

    def shown(self, value: float, sign: bool = False) -> str:
        """A value as a cell shows it: ``-1.20``, with a sign where asked for."""
        size = abs(value)
        is_fixed = self.is_fixed and not sign
        text = f"{size:.{self.digits}f}" if is_fixed else number(size, self.digits)
        return ("−" if value < 0 else "+" if sign else "") + text


def fails_task(model: Model) -> bool:
    """Whether the model is right on fewer than 9 of 10 prompts."""
    record = model.records.get("acdc")
    accuracy = record.metric("accuracy") if record else None
    return accuracy is None or accuracy.value is None or accuracy.value < ABLE


class Comparison:
    """The models of several groups, and the values of measures by group and seed."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self._values: dict[Measure, dict[str, dict[int, float]]] = {}

    @property
    def models(self) -> list[Model]:
        """The models of all groups."""
        return [model for group in self.groups for model in group.models]

    def values(self, measure: Measure) -> dict[str, dict[int, float]]:
        """The values that count, by the group's name and the seed."""
        if measure not in self._values:
            self._values[measure] = {
                group.name: {
                    seed: value
                    for seed, model in group.members.items()
                    if measure.state(model) == "scored"
                    and (value := measure.read(model)[0]) is not None
                }
                for group in self.groups
            }
        return self._values[measure]

    def mean(self, measure: Measure, group: Group) -> SeedMean | None:
        """The group's mean over its seeds; None without a value."""
        return seed_mean(self.values(measure)[group.name].values())

    def difference(self, measure: Measure, group: Group, other: Group) -> SeedMean | None:
        """The mean of ``group - other`` over the seeds for which both have a value, paired."""
        values = self.values(measure)
        own, others = values[group.name], values[other.name]
        return seed_mean(own[seed] - others[seed] for seed in own if seed in others)

    def best(self, measure: Measure) -> set[str]:
        """The group that is better than every other one, over seeds; none where there is none.

        Better: the paired interval of its difference to each other group with a value (same seeds)
        leaves 0 out, on the better side. Single models, and groups of two seeds, have no interval
        over seeds: among them none is best. None either where records differ in settings or text;
        groups with a health mark are left aside.
        """
        if measure.direction is None or not is_comparable(self.records(measure.evaluation)):
            return set()
        known = [
            group
            for group in self.groups
            if self.mean(measure, group) and self.is_sound(measure, group)
        ]
        return {
            group.name
            for group in known
            if len(known) > 1
            and all(
                judged(self.difference(measure, group, other), measure.direction) == "better"
                for other in known
                if other is not group
            )
        }

    def is_sound(self, measure: Measure, group: Group) -> bool:
        """Whether no record that the group's mean is taken from carries a health mark."""
        used = [model for model in group.models if measure.state(model) == "scored"]
        return not any(health.phrases(model.records[measure.evaluation]) for model in used)

    def records(self, evaluation: str) -> list[Record]:
        """The models' records of one evaluation."""
        return records_of(self.groups, evaluation)

    def cell(self, measure: Measure, group: Group, is_best: bool) -> Cell:
        """A group's mean with its interval, and the number of seeds where not all have a value."""
        states = [measure.state(model) for model in group.models]
        left_out: dict[str, Exact] = {
            f"{measure.key}_{state}": states.count(state)
            for state in ("missing", "unscored", "unable")
        }
        mean = self.mean(measure, group)
        if mean is None:
            exact = {**exact_values(measure.key, None), **own_values(measure.key, None), **left_out}
            return Cell(_no_mean(measure, group, states), "none", (), exact)
        details = interval_text(measure, mean)
        if mean.n < len(states):
            unable = states.count("unable")
            details.append(f"(n={mean.n}{f', {unable} {DAGGER}' if unable else ''})")
        alone = [model for model in group.models if measure.state(model) == "scored"]
        own = measure.metric_of(alone[0]) if mean.n == 1 and measure.shows == "value" else None
        details += own_text(measure, own)
        text = measure.shown(mean.mean)
        is_whole = mean.low is None and not measure.is_fixed
        text = text.removesuffix(".0") if is_whole else text
        is_sound = self.is_sound(measure, group)
        exact = {**exact_values(measure.key, mean), **own_values(measure.key, own), **left_out}
        kind: Literal["best", "value"] = "best" if is_best and is_sound else "value"
        return Cell(text if is_sound else f"{text} {DAGGER}", kind, tuple(details), exact)

    def difference_cell(self, measure: Measure, group: Group, other: Group) -> Cell:
        """A paired difference with its interval, number of pairs and verdict."""
        names = [measure.key + ending for ending in ("", "_low", "_high", "_n", "_verdict")]
        if not is_comparable(records_of([group, other], measure.evaluation)):
            return Cell.none(*names, text="other settings")
        mean = self.difference(measure, group, other)
        if mean is None:
            return Cell.none(*names)
        verdict = judged(mean, measure.direction)
        sound = self.is_sound(measure, group) and self.is_sound(measure, other)
        n = f"n={mean.n}: {verdict}" if verdict else f"n={mean.n}"
        details = (*interval_text(measure, mean, sign=True), n if sound else f"{n} {DAGGER}")
        return Cell(
            measure.shown(mean.mean, sign=True),
            "best" if verdict == "better" and sound else "value",
            details,
            {**exact_values(measure.key, mean), f"{measure.key}_verdict": verdict},
        )


def records_of(groups: Iterable[Group], evaluation: str) -> list[Record]:
    """The records of one evaluation of the groups' models."""
    return [
        model.records[evaluation]
        for group in groups
        for model in group.models
        if evaluation in model.records
    ]


def interval_text(measure: Measure, mean: SeedMean, sign: bool = False) -> list[str]:
    """``[3.90, 4.12]``, in a list; an empty one without an interval."""
    if mean.low is None or mean.high is None:
        return []
    return [f"[{measure.shown(mean.low, sign)}, {measure.shown(mean.high, sign)}]"]


def own_interval(metric: Metric | None) -> tuple[float, float] | None:
    """A single model's 95 % interval, over its stories or neurons; None where there is none."""
    interval = interval_of(metric) if metric else None
    return (interval.low, interval.high) if interval and interval.level == LEVEL else None


def own_text(measure: Measure, metric: Metric | None) -> list[str]:
    """``(2.061–2.108)``, in a list: other brackets than of an interval over seeds."""
    ends, parts = own_interval(metric), []
    if ends:
        low, high = map(measure.shown, ends)
        parts.append(f"{low} to {high}" if ends[0] < 0 else f"{low}–{high}")
    if measure.is_counted and metric and metric.n is not None:
        parts.append(f"n={metric.n}")
    return [f"({', '.join(parts)})"] if parts else []


def exact_values(key: str, mean: SeedMean | None) -> dict[str, Exact]:
    """The CSV columns of a mean over seeds."""
    if mean is None:
        return {key: None, f"{key}_low": None, f"{key}_high": None, f"{key}_n": 0}
    return {key: mean.mean, f"{key}_low": mean.low, f"{key}_high": mean.high, f"{key}_n": mean.n}


def own_values(key: str, metric: Metric | None) -> dict[str, Exact]:
    """The CSV columns of a single model's interval."""
    low, high = own_interval(metric) or (None, None)
    return {f"{key}_within_low": low, f"{key}_within_high": high}


def judged(mean: SeedMean | None, direction: Direction | None) -> str:
    """``better``, ``worse`` or ``cannot tell``; "" without an interval.

    Where neither direction is better: ``higher`` or ``lower``.
    """
    if mean is None or mean.low is None or mean.high is None:
        return ""
    if mean.low <= 0 <= mean.high:
        return "cannot tell"
    side: Direction = "lower" if mean.high < 0 else "higher"
    return side if direction is None else ("better" if side == direction else "worse")


def _no_mean(measure: Measure, group: Group, states: Sequence[State]) -> str:
    """What a cell without a mean shows: the counts that are not meaningful, n/a, or a dash."""
    if "unable" in states:
        unable = [one for one in group.models if measure.state(one) == "unable"]
        values = [value for one in unable if (value := measure.read(one)[0]) is not None]
        return f"{'; '.join(number(value, 0) for value in values)} {DAGGER}"
    return UNSCORED if "unscored" in states else EMPTY
