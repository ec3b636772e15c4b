"""The verdict of a study: paired tests over seeds, Holm's correction, the effect of interest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from evaluations.comparison.outcomes import (
    FURTHER,
    NOT_MEASURED,
    OUTCOMES,
    Outcome,
    outcome_values,
)
from evaluations.comparison.seeds import ENOUGH_SEEDS, seed_mean
from evaluations.core.record import read_record
from evaluations.core.records import collect, identity
from sat_interp._util.errors import UserError
from sat_interp.training.study import BASELINE, Study

ALPHA = 0.05
BETTER, WORSE = "better", "worse"
EXCLUDED = "no gain of that size"
"""The interval excludes a gain as large as the effect of interest; it may hold a loss as large."""
UNDECIDED = "undecided"
TOO_FEW = "too few pairs"
"""All seeds are measured, and fewer than three pairs have a value on both sides."""
OPEN = "open"
"""A comparison of which seeds are not measured yet; nothing of it is shown before they are."""
NOT_PLANNED = "not planned"
"""A comparison that the plan does not have: an estimate, and no verdict."""
Family = Literal["primary", "secondary", "further"]


def holm(p: Sequence[float], tests: int) -> list[float]:
    """P-values corrected by Holm's method (1979): max over smaller ones of (m - rank + 1) p.

    Args:
        p: of the tests that could be done; NaN for the others.
        tests: m, all planned ones.
    """
    order = sorted(
        (place for place in range(len(p)) if not math.isnan(p[place])), key=p.__getitem__
    )
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (tests - rank) * p[place]))
        corrected[place] = largest
    return corrected


def plan(study: Study) -> list[tuple[Family, str, str]]:
    """Return (family, group, reference) of every comparison.

    Primary: the first group that has controls, against the baseline, its random masks and matched
    baselines. Secondary: every other group against the baseline. Further, without a verdict: the
    first group against its other controls, and groups of ``extra`` that are named after it.

    Raises:
        UserError: the study has no baseline, or no group with learned gates.
    """
    kinds = {run.group: run.kind for run in study.runs()}
    groups = list(kinds)
    if BASELINE not in groups or not study.learned_groups:
        raise UserError("a verdict needs a baseline and a group with learned gates in the study")
    learned = (*study.controls_for, *study.learned_groups)[0]
    random = f"{learned}-random"
    primary = [BASELINE, *([random] if kinds.get(random) == "control" else [])]
    primary += [one for one in groups if kinds[one] == "matched"]
    others = [one for one in groups if one not in (learned, BASELINE)]
    relatives = [one for one in groups if one.startswith(f"{learned}-") and one not in primary]
    found: list[tuple[Family, str, str]] = [("primary", learned, one) for one in primary]
    found += [("secondary", one, BASELINE) for one in others]
    return [*found, *(("further", learned, one) for one in relatives)]


def verdicts(
    values: pd.DataFrame,
    study: Study,
    outcomes: Sequence[Outcome] = OUTCOMES,
    further: Sequence[Outcome] = FURTHER,
) -> pd.DataFrame:
    """Return a row for each outcome and comparison.

    Further outcomes are compared as the primary ones are, without a correction or a verdict.

    Columns: family, outcome, group, reference, n (pairs of seeds), planned (seeds of the study),
    left_out (reason: number of seeds), estimate with its 95 % interval (low, high) as a ratio or a
    difference, p, p_holm, effect (the one of interest) and verdict.
    """
    pairs = plan(study)
    rows = [
        {"family": family, **_row(values, outcome, *pair)}
        for family, *pair in pairs
        for outcome in outcomes
    ]
    rows += [
        {"family": "further", **_row(values, outcome, *pair)}
        for family, *pair in pairs
        for outcome in further
        if family == "primary"
    ]
    made = pd.DataFrame(rows)
    made["p_holm"] = math.nan
    for family in ("primary", "secondary"):
        part = made[made["family"] == family]
        made.loc[part.index, "p_holm"] = holm(list(part["p"]), len(part))
    by_name = {outcome.name: outcome for outcome in (*outcomes, *further)}
    made["verdict"] = [_verdict(row, by_name[row["outcome"]]) for _, row in made.iterrows()]
    return made


def overall(made: pd.DataFrame) -> dict[str, str]:
    """Return the plan's answer for each outcome, from its primary comparisons."""
    primary = made[made["family"] == "primary"]
    return {
        str(name): _answer(dict(zip(part["reference"], part["verdict"], strict=True)))
        for name, part in primary.groupby("outcome")
    }


def sensitivity(values: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the plan's answers again, with a row for what is left out.

    Nothing, each seed in turn, and all models that fail the task (by the reason that the first
    outcome gives), from all outcomes.
    """
    circuits = values[values["outcome"] == OUTCOMES[0].name]
    failing = set(circuits.loc[~circuits["reason"].isin(("", NOT_MEASURED)), "model"])
    seeds = sorted(set(values["seed"]))
    parts = {
        "nothing": values,
        **{f"seed {seed}": values[values["seed"] != seed] for seed in seeds},
        "models without a circuit": values[~values["model"].isin(failing)],
    }
    return pd.DataFrame(
        [{"left_out": name, **overall(verdicts(part, study))} for name, part in parts.items()]
    )


def read_verdict(out: str, study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the values and the verdicts of a study from the records below a directory."""
    collected = collect(out)
    whole = {outcome.evaluation for outcome in (*OUTCOMES, *FURTHER) if outcome.reads_extra}
    records = [
        read_record(collected.files[identity(one)]) if one.evaluation in whole else one
        for one in collected.records
    ]
    values = outcome_values(records, study)
    return values, verdicts(values, study)


def _answer(found: Mapping[str, str]) -> str:
    """The answer from the verdict against each reference; 'yes' takes all that the plan names."""
    verdicts = found.values()
    has_all = any(one.endswith("-random") for one in found) and any(
        one.startswith("matched") for one in found
    )
    if all(one == BETTER for one in verdicts):
        return "yes" if has_all else UNDECIDED
    if any(one in (WORSE, EXCLUDED) for one in verdicts):
        return "no"
    return OPEN if OPEN in verdicts else UNDECIDED


def _row(values: pd.DataFrame, outcome: Outcome, group: str, reference: str) -> dict[str, object]:
    own, other = (_side(values, outcome, name) for name in (group, reference))
    reasons = Counter(
        own[1].get(seed) or other[1].get(seed, "")
        for seed in own[0].keys() | other[0].keys()
        if own[1].get(seed) or other[1].get(seed)
    )
    seeds = sorted(seed for seed in own[0] if not own[1][seed] and not other[1].get(seed, "none"))
    pairs = np.array([[own[0][seed], other[0][seed]] for seed in seeds]).reshape(-1, 2)
    if outcome.scale == "ratio" and not (pairs > 0).all():
        reasons["a value of 0 has no ratio"] = int((pairs <= 0).any(axis=1).sum())
        pairs = pairs[(pairs > 0).all(axis=1)]
    pairs = np.log(pairs) if outcome.scale == "ratio" else pairs
    back = math.exp if outcome.scale == "ratio" else float
    differences = pairs[:, 0] - pairs[:, 1]
    mean = None if NOT_MEASURED in reasons else seed_mean(differences)
    ends = (mean.low, mean.high) if mean else (None, None)
    return {
        "outcome": outcome.name,
        "group": group,
        "reference": reference,
        "n": len(differences),
        "planned": len(own[0].keys() | other[0].keys()),
        "left_out": dict(reasons),
        "estimate": back(mean.mean) if mean else math.nan,
        "low": math.nan if ends[0] is None else back(ends[0]),
        "high": math.nan if ends[1] is None else back(ends[1]),
        "p": math.nan if NOT_MEASURED in reasons else _p_value(differences),
        "effect": outcome.effect,
    }


def _side(
    values: pd.DataFrame, outcome: Outcome, group: str
) -> tuple[Mapping[int, float], Mapping[int, str]]:
    part = values[(values["outcome"] == outcome.name) & (values["group"] == group)]
    return dict(zip(part["seed"], part["value"], strict=True)), dict(
        zip(part["seed"], part["reason"], strict=True)
    )


def _p_value(differences: np.ndarray) -> float:
    """Two-sided p of the paired t test; NaN with too few seeds, or where all differences are 0."""
    from scipy.stats import ttest_1samp

    if len(differences) < ENOUGH_SEEDS or not differences.any():
        return math.nan
    if np.ptp(differences) == 0:
        return 0.0
    return float(ttest_1samp(differences, 0.0).pvalue)


def _verdict(row: pd.Series, outcome: Outcome) -> str:
    neutral = 1.0 if outcome.scale == "ratio" else 0.0
    if NOT_MEASURED in row["left_out"]:
        return OPEN
    if row["family"] == "further":
        return NOT_PLANNED
    if math.isnan(row["low"]):
        return TOO_FEW
    side = "lower" if row["estimate"] < neutral else "higher"
    if row["p_holm"] < ALPHA:
        return BETTER if side == outcome.direction else WORSE
    excluded = (
        row["low"] > row["effect"]
        if outcome.direction == "lower"
        else (row["high"] < row["effect"])
    )
    return EXCLUDED if excluded else UNDECIDED
