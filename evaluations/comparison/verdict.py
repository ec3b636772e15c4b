"""The verdict of a study: paired tests over seeds, Holm's correction, the effect of interest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from evaluations.comparison.outcomes import NOT_MEASURED, OUTCOMES, Outcome, outcome_values
from evaluations.comparison.seeds import ENOUGH_SEEDS, seed_mean
from evaluations.core.records import collect
from sat_interp._util.errors import UserError
from sat_interp.training.study import BASELINE, Study

ALPHA = 0.05
BETTER, WORSE = "better", "worse"
EXCLUDED = "no gain of that size"
"""The interval excludes a gain as large as the effect of interest; it may hold a loss as large."""
UNDECIDED = "undecided"
OPEN = "open"
"""A comparison of which seeds are not measured yet, and too few are."""
Family = Literal["primary", "secondary"]


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
    """Return (family, group, reference) of every planned comparison.

    Primary: the first group that has controls, against the baseline, its random masks and matched
    baselines. Secondary: every other group against the baseline.

    Raises:
        UserError: the study has no baseline, or no group with learned gates.
    """
    groups = list(dict.fromkeys(run.group for run in study.runs()))
    if BASELINE not in groups or not study.learned_groups:
        raise UserError("a verdict needs a baseline and a group with learned gates in the study")
    learned = (*study.controls_for, *study.learned_groups)[0]
    against = [BASELINE, f"{learned}-random", *(one for one in groups if one.startswith("matched"))]
    primary = [("primary", learned, one) for one in against if one in groups]
    others = [one for one in groups if one not in (learned, BASELINE)]
    return [*primary, *(("secondary", one, BASELINE) for one in others)]  # type: ignore[list-item]


def verdicts(
    values: pd.DataFrame, study: Study, outcomes: Sequence[Outcome] = OUTCOMES
) -> pd.DataFrame:
    """Return a row for each outcome and planned comparison.

    Columns: family, outcome, group, reference, n (pairs of seeds), planned (seeds of the study),
    left_out (reason: number of seeds), estimate with its 95 % interval (low, high) as a ratio or a
    difference, p, p_holm, effect (the one of interest) and verdict.
    """
    rows = [
        {"family": family, **_row(values, outcome, *pair)}
        for family, *pair in plan(study)
        for outcome in outcomes
    ]
    made = pd.DataFrame(rows)
    for _, part in made.groupby("family"):
        made.loc[part.index, "p_holm"] = holm(list(part["p"]), len(part))
    by_name = {outcome.name: outcome for outcome in outcomes}
    made["verdict"] = [_verdict(row, by_name[row["outcome"]]) for _, row in made.iterrows()]
    return made


def overall(made: pd.DataFrame) -> dict[str, str]:
    """Return the plan's answer for each outcome, from its primary comparisons."""
    primary = made[made["family"] == "primary"]
    return {str(name): _answer(list(part["verdict"])) for name, part in primary.groupby("outcome")}


def read_verdict(out: str, study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the values and the verdicts of a study from the records below a directory."""
    values = outcome_values(collect(out).records, study)
    return values, verdicts(values, study)


def _answer(found: Sequence[str]) -> str:
    if all(one == BETTER for one in found):
        return "yes"
    if any(one in (WORSE, EXCLUDED) for one in found):
        return "no"
    return OPEN if OPEN in found else UNDECIDED


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
    mean = seed_mean(differences)
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
        "p": _p_value(differences),
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
    """Two-sided p of the paired t test; NaN with too few seeds or where all are equal."""
    from scipy.stats import ttest_1samp

    if len(differences) < ENOUGH_SEEDS or np.ptp(differences) == 0:
        return math.nan
    return float(ttest_1samp(differences, 0.0).pvalue)


def _verdict(row: pd.Series, outcome: Outcome) -> str:
    neutral = 1.0 if outcome.scale == "ratio" else 0.0
    if math.isnan(row["low"]):
        return OPEN if NOT_MEASURED in row["left_out"] else UNDECIDED
    side = "lower" if row["estimate"] < neutral else "higher"
    if row["p_holm"] < ALPHA:
        return BETTER if side == outcome.direction else WORSE
    excluded = (
        row["low"] > row["effect"]
        if outcome.direction == "lower"
        else (row["high"] < row["effect"])
    )
    return EXCLUDED if excluded else UNDECIDED
