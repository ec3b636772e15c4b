"""The answer to each evaluation's question in one sentence, made from the records.

A model is called better or worse than its baseline only where the interval of their paired
differences over training seeds leaves 0 out. A single model of each kind never is: its stories and
its neurons are not seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.comparison.measures import (
    ABLE,
    Comparison,
    Measure,
    judged,
    own_interval,
    records_of,
)
from evaluations.comparison.seeds import Group, SeedMean, references
from evaluations.comparison.selection import is_comparable
from evaluations.core import health
from evaluations.core.health import DAGGER
from evaluations.tables.headline import Headline

MOST_NAMED = 8
"""Models named in a part of a sentence."""

Verdict = Literal["better", "worse", "mixed", "cannot be told", "yes", "no"]


@dataclass(frozen=True)
class Answer:
    """The answer to an evaluation's question.

    Attributes:
        verdict: of the models with gates, or of all but the first where none has gates and a
            baseline; ``yes`` and ``no`` where the question is whether a value is above zero.
        text: a sentence.
    """

    evaluation: str
    question: str
    verdict: Verdict
    text: str


def answers(compared: Comparison, headlines: Mapping[str, Headline]) -> list[Answer]:
    """The answers to the questions of evaluations.

    Args:
        headlines: of the evaluations that have records, by name.
    """
    return [
        _answer(Measure(name, one.metric, one.title, one.digits, one.direction), one, compared)
        for name, one in headlines.items()
    ]


@dataclass(frozen=True)
class _Finding:
    """What is found of a group: the verdict, and why none is possible.

    Attributes:
        other: the group it is compared with.
        detail: shown behind the group's value.
    """

    verdict: Verdict
    reason: str
    group: Group
    other: Group | None = None
    detail: str = ""


def _answer(measure: Measure, headline: Headline, compared: Comparison) -> Answer:
    groups = [group for group in compared.groups if records_of([group], measure.evaluation)]
    if not groups:
        text = "No record has the settings that are compared (see the evaluation's section)."
        return Answer(measure.evaluation, headline.question, "cannot be told", text)
    if headline.compared_with == "zero":
        findings = [_above_zero(measure, group, compared) for group in groups]
    else:
        findings = [_against(measure, *pair, compared) for pair in _pairs(groups)]
    if findings:
        alike: dict[tuple[Verdict, str, str], list[_Finding]] = {}
        for one in findings:
            key = (one.verdict, one.reason, one.other.name if one.other else "")
            alike.setdefault(key, []).append(one)
        ordered = sorted(alike, key=lambda key: key[0] == "cannot be told")
        text = "; ".join(_part(measure, alike[key], compared) for key in ordered)
    else:
        text = f"only one model was measured: {_valued(measure, groups, compared)}"
    verdicts: list[Verdict] = list(dict.fromkeys(one.verdict for one in findings))
    verdict = verdicts[0] if len(verdicts) == 1 else "mixed" if verdicts else "cannot be told"
    return Answer(measure.evaluation, headline.question, verdict, f"{text[0].upper()}{text[1:]}.")


def _pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The groups that are judged, each with the one it is compared with.

    Learned gates with their baseline; where there are none, all other groups with the first.
    """
    learned = [
        (group, other)
        for group in groups
        if group.kind == "learned"
        for other in references(group, groups)
        if other.kind == "baseline"
    ]
    return learned or [(group, groups[0]) for group in groups[1:]]


def _against(measure: Measure, group: Group, other: Group, compared: Comparison) -> _Finding:
    """How a group compares with its baseline."""
    mean = compared.difference(measure, group, other)
    detail = _difference(measure, mean)
    if reason := _obstacle(measure, group, other, mean, compared):
        return _Finding("cannot be told", reason, group, other, detail)
    if judged(mean, measure.direction) != "better":
        return _Finding("worse", "", group, other, detail)
    controls = [
        reference.name
        for reference in references(group, compared.groups)
        if reference.kind != "baseline"
        and records_of([reference], measure.evaluation)
        and judged(compared.difference(measure, group, reference), measure.direction) != "better"
    ]
    if controls:
        detail += f", but not shown to be better than {_listed(controls)}"
    return _Finding("better", "", group, other, detail)


def _obstacle(
    measure: Measure, group: Group, other: Group, mean: SeedMean | None, compared: Comparison
) -> str:
    """Why it cannot be told which of two groups is better; "" where it can."""
    pair = (group, other)
    states = [{measure.state(model) for model in one.models} for one in pair]
    if any("scored" not in state for state in states):
        if any("unable" in state and "scored" not in state for state in states):
            return f"accuracy below {ABLE:g}, so that the edge count is not meaningful"
        return "no value"
    if group.recipe != other.recipe:
        return "they differ in more than their gates, or how they were trained is not known"
    if not is_comparable(records_of(pair, measure.evaluation)):
        return "they were measured with different settings or on different texts"
    if marks := [
        phrase
        for one in pair
        if not compared.is_sound(measure, one)
        for record in records_of([one], measure.evaluation)
        for phrase in health.phrases(record)
    ]:
        return f"a warning applies: {', '.join(dict.fromkeys(marks))}"
    if mean is None:
        return "no seed in common"
    if mean.low is None:
        return "one seed each" if mean.n == 1 else f"{mean.n} seeds give no interval"
    is_open = judged(mean, measure.direction) == "cannot tell"
    return "the interval of the difference holds 0" if is_open else ""


def _above_zero(measure: Measure, group: Group, compared: Comparison) -> _Finding:
    """Whether a group's value is above zero: over seeds, else over a single model's stories."""
    mean = compared.mean(measure, group)
    if mean is None:
        return _Finding("cannot be told", "no value", group)
    ends, over = (mean.low, mean.high), f"over {mean.n} seeds"
    if mean.n == 1 and (own := own_interval(measure.metric_of(group.models[0]))):
        ends, over = own, "over the stories of a single model, not over seeds"
    low, high = ends
    if low is None or high is None:
        return _Finding("cannot be told", f"{mean.n} seeds give no interval", group)
    detail = f"[{measure.shown(low)}, {measure.shown(high)}] {over}"
    return _Finding("yes" if low > 0 else "no", "", group, None, detail)


def _part(measure: Measure, members: Sequence[_Finding], compared: Comparison) -> str:
    """The part of the sentence about groups with the same verdict, reason and reference."""
    first, groups = members[0], [one.group for one in members]
    details = {one.group.name: one.detail for one in members if one.detail}
    if first.verdict == "cannot be told":
        known = [first.other, *groups] if first.other else groups
        return f"cannot be told ({first.reason}): {_valued(measure, known, compared, details)}"
    values = _valued(measure, groups, compared, details)
    if first.other is None:
        return f"{first.verdict}: {values}"
    beside = _value(measure, first.other, compared)
    return f"{first.verdict} than {first.other.name} ({beside}): {values}"


def _valued(
    measure: Measure,
    groups: Sequence[Group],
    compared: Comparison,
    details: Mapping[str, str] | None = None,
) -> str:
    """The values of groups: ``perplexity 1.75 of baseline, 2.09 of local-k4 (+0.34 [...])``."""
    parts = []
    for group in groups:
        detail = (details or {}).get(group.name, "")
        text = f"{_value(measure, group, compared)} of {group.name}"
        parts.append(f"{text} ({detail})" if detail else text)
    return f"{measure.title} {_listed(parts)}"


def _value(measure: Measure, group: Group, compared: Comparison) -> str:
    """The mean of a group; in its place the values that do not count, with a dagger."""
    mean = compared.mean(measure, group)
    if mean is not None:
        return measure.shown(mean.mean)
    known = [value for model in group.models if (value := measure.read(model)[0]) is not None]
    return "/".join(f"{measure.shown(value)} {DAGGER}" for value in known) or "no value"


def _difference(measure: Measure, mean: SeedMean | None) -> str:
    if mean is None or mean.low is None or mean.high is None:
        return ""
    value, low, high = (measure.shown(one, sign=True) for one in (mean.mean, mean.low, mean.high))
    return f"difference {value} [{low}, {high}] over {mean.n} seeds"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
