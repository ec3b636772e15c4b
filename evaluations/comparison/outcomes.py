"""Outcomes of the study's plan (docs/study.md): the one value that each model has of each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from evaluations.comparison.measures import ABLE
from evaluations.comparison.selection import counts
from evaluations.core.record import UPPER_BOUND, Direction, Record, hash_of
from evaluations.suite.ablate.config import UNITS
from sat_interp._util.errors import UserError
from sat_interp.training.recipe import differences
from sat_interp.training.study import Study, StudyRun

CE_SCORE = 0.75
"""CE score at which autoencoders' L0 is compared."""
NOT_MEASURED = "not measured"
COLUMNS = ("outcome", "group", "seed", "model", "value", "reason", "note")


@dataclass(frozen=True)
class Outcome:
    """What groups are compared by.

    Attributes:
        direction: the predicted one.
        scale: whether two groups are compared by a ratio or by a difference.
        effect: of interest, on that scale, in the predicted direction: the paper's, or the plan's;
            None of outcomes that are not in the plan.
        read: the value from one model's records of the evaluation, or the reason why there is none.
        counts: whether a record is of the settings that the plan names.
        sweeps: a setting in which a model's records may differ.
        note: what has to be known of the value, from the same records.
        reads_extra: whether the value is in the records' ``extra``.
    """

    name: str
    title: str
    evaluation: str
    direction: Direction
    scale: Literal["ratio", "difference"]
    effect: float | None
    read: Callable[[Sequence[Record]], float | str]
    counts: Callable[[Record], bool]
    sweeps: str = ""
    note: Callable[[Sequence[Record]], str] = lambda records: ""
    reads_extra: bool = False


def l0_at_score(records: Sequence[Record], score: float = CE_SCORE) -> float | str:
    """L0 at a CE score, linear between the nearest autoencoders of a sweep over coefficients."""
    points = sorted((_value(record, "ce_score"), _value(record, "l0")) for record in records)
    known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(known) < 2:
        return "fewer than two autoencoders"
    scores, l0 = zip(*known, strict=True)
    if not scores[0] <= score <= scores[-1]:
        return f"CE score {score:g} outside the front"
    return float(np.interp(score, scores, l0))


def _newest(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: record.started)


def _of(metric: str) -> Callable[[Sequence[Record]], float | str]:
    """Read one metric of the newest record."""

    def read(records: Sequence[Record]) -> float | str:
        found = _newest(records).metric(metric)
        if found is None or found.value is None:
            return ", ".join(found.reasons) if found and found.reasons else NOT_MEASURED
        return found.value

    return read


def _bound(metric: str) -> Callable[[Sequence[Record]], str]:
    """Say whether the newest record's metric is an upper bound."""

    def read(records: Sequence[Record]) -> str:
        found = _newest(records).metric(metric)
        return UPPER_BOUND if found and UPPER_BOUND in found.description else ""

    return read


def spoof_share_of_the_rest(records: Sequence[Record]) -> float | str:
    """R over all heads and MLPs but the one that zeros cost most: 1 - sum oa / sum zero."""
    newest = _newest(records)
    units = [one["held"] for one in newest.extra.get("components", ()) if one["kind"] in UNITS]
    if not all({"zero", "oa"} <= held.keys() for held in units) or len(units) < 2:
        return NOT_MEASURED
    costs = sorted((held["zero"]["delta"], held["oa"]["delta"]) for held in units)
    zero, best = (sum(side) for side in zip(*costs[:-1], strict=True))
    return 1 - best / zero if zero > 0 else "zeros cost nothing there"


def _edges(records: Sequence[Record]) -> float | str:
    """IOI edges, of a model that does the task."""
    if _value(records[-1], "accuracy") >= ABLE:
        return _of("edges")(records)
    return f"accuracy on IOI below {ABLE:g}"


def is_ioi(record: Record) -> bool:
    """Whether a record is of IOI, in any of its wordings."""
    return str(record.data.get("spec", "")).startswith("ioi")


def _value(record: Record, metric: str) -> float:
    found = record.metric(metric)
    return math.nan if found is None or found.value is None else found.value


OUTCOMES = (
    Outcome(
        "circuit_edges",
        "E(.2), optimal constants",
        "circuits",
        "lower",
        "ratio",
        30 / 79,  # arXiv 2505.00509, Table 1: local k = 4, baseline, at one threshold
        _of("e20_oa"),
        lambda record: "oa" in record.config.get("ablations", ()) and is_ioi(record),
        note=_bound("e20_oa"),
    ),
    Outcome(
        "sae_l0",
        f"SAE L0 at CE score {CE_SCORE:g}",
        "sae",
        "lower",
        "ratio",
        4.01 / 7.22,  # arXiv 2505.00509, Table 1: local k = 4, baseline
        l0_at_score,
        lambda record: (
            record.config.get("architecture") == "standard"
            and record.config.get("hook") is None
            and record.config.get("given") is None
        ),
        sweeps="sparsity",
    ),
    Outcome(
        "simulation",
        "Simulation score",
        "neurons",
        "higher",
        "difference",
        0.05,  # arXiv 2505.00509, figure 2: .46 for global k = 2, .41 for the baseline
        _of("simulation"),
        counts,
    ),
    Outcome(
        "spoof_share",
        "Spoof share R",
        "ablate",
        "lower",
        "difference",
        -0.1,  # none is published: the plan's smallest effect of interest
        _of("spoof_share"),
        lambda record: bool(record.config.get("text")),
    ),
)
"""The primary outcomes."""
EDGES = Outcome(
    "ioi_edges", "IOI edges at tau 0.03", "acdc", "lower", "ratio", None, _edges, counts
)
"""Descriptive: one threshold on models of different scale compares little."""
REST = Outcome(
    "spoof_share_rest",
    "R without the largest component",
    "ablate",
    "lower",
    "difference",
    None,
    spoof_share_of_the_rest,
    lambda record: bool(record.config.get("text")),
    reads_extra=True,
)
"""Not in the plan: one component can be most of what zeros cost."""
FURTHER = (EDGES, REST)
"""Outcomes without a planned test."""


def outcome_values(
    records: Sequence[Record], study: Study, outcomes: Sequence[Outcome] = (*OUTCOMES, *FURTHER)
) -> pd.DataFrame:
    """Return a row for each outcome and run of a study: its value, or the reason why there is none.

    Records count where the model was trained as the study says, where their settings and text are
    those that most models of the study share, and of a model that was trained again those of its
    newest weights.

    Raises:
        UserError: no record is of a model of the study.
    """
    runs = {run.name: run for run in study.runs()}
    known = [record for record in records if _is_of(record, runs)]
    if not known:
        raise UserError(f"no record is of a model of the study {study.name}: {_why(records, runs)}")
    rows = []
    for outcome in outcomes:
        found = _comparable(known, outcome)
        for run in runs.values():
            value = outcome.read(found[run.name]) if run.name in found else NOT_MEASURED
            is_text = isinstance(value, str)
            number = math.nan if is_text else value
            reason = value if is_text else ""
            note = "" if reason else outcome.note(found[run.name])
            rows.append((outcome.name, run.group, run.seed, run.name, number, reason, note))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": "float64"})


def _is_of(record: Record, runs: Mapping[str, StudyRun]) -> bool:
    """Whether a record is of a run's model: of its name, and trained as the study says."""
    run = runs.get(str(record.model.get("name")))
    if run is None or record.model.get("control"):
        return False
    return not differences(run, record.model.get("training") or {})


def _why(records: Sequence[Record], runs: Mapping[str, StudyRun]) -> str:
    """Why no record is of the study: another recipe, or other names."""
    for record in records:
        run = runs.get(str(record.model.get("name")))
        if run and (names := differences(run, record.model.get("training") or {})):
            return f"{run.name} was trained with another {names[0]}; name its own study file"
    return "run sat-eval all with the study first"


def _comparable(records: Sequence[Record], outcome: Outcome) -> dict[str, list[Record]]:
    """The records of each run whose settings and text most runs share."""
    by_settings: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.started):
        name = str(record.model.get("name"))
        if record.evaluation == outcome.evaluation and outcome.counts(record):
            config = {key: one for key, one in record.config.items() if key != outcome.sweeps}
            key = hash_of([config, record.data.get("content"), record.version])
            by_settings[key][name].append(record)
    sizes = Counter({key: len(of) for key, of in by_settings.items()})
    if not sizes:
        return {}
    shared = by_settings[sizes.most_common(1)[0][0]]
    return {name: _of_the_newest_weights(found) for name, found in shared.items()}


def _of_the_newest_weights(records: Sequence[Record]) -> list[Record]:
    """The records of the weights that the last record is of."""
    newest = records[-1].model.get("weights_hash")
    return [record for record in records if record.model.get("weights_hash") == newest]
