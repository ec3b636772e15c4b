"""The verdict as tables, a figure and a page: ``sat-eval verdict``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations import tables
from evaluations.comparison.options import VerdictOptions
from evaluations.comparison.outcomes import FURTHER, NOT_MEASURED, OUTCOMES, Outcome
from evaluations.comparison.seeds import ENOUGH_SEEDS, seed_mean
from evaluations.comparison.verdict import BETTER, overall, read_verdict, sensitivity
from evaluations.output import console, say
from evaluations.tables import Cell, Heading, Table, draw, markdown
from evaluations.tables.table import EMPTY
from sat_interp._util import escape
from sat_interp._util.files import write_atomically
from sat_interp.training.study import Study, read_study

TITLES = {outcome.name: outcome.title for outcome in (*OUTCOMES, *FURTHER)}
LIMITS = (
    "Models of the paper's size, real text, and language models as examiners: this study has "
    "none of them. Its models have 4 layers of width 64.",
    "Effects smaller than the intervals. An undecided comparison is no evidence of equality; 'no "
    "gain of that size' is said only where the interval excludes a gain as large as the effect of "
    "interest; it may hold a loss as large. These intervals are not corrected for the number of "
    "comparisons.",
    "That a ramp of the loss weight is what the paper did: its weights are constant.",
    "With five seeds the t intervals assume that differences of pairs are about normal.",
)
"""What no outcome of the study shows."""


def print_verdict(options: VerdictOptions) -> list[Path]:
    """Print the verdict of a study and write it as tables, figure and page.

    Raises:
        UserError: no such directory or study, or a study without a comparison.
    """
    study = read_study(options.study)
    directory = Path("results") / study.name if options.out is None else Path(options.out)
    values, made = read_verdict(str(directory), study)
    out, every = directory / "verdict", every_table(values, made, study)
    written = [path for table in every for path in tables.write([table], out, table.name)]
    written += draw.save({"": [draw_verdict(made)]}, out, "verdict")
    written.append(write_atomically(out / "models.csv", values.to_csv(index=False)))
    title = f"# Verdict of the study {escape.markdown(study.name)}"
    blocks = [title, *blocks_of(made, every)]
    blocks.append("![Every comparison with its 95 % interval](verdict.png)")
    written.append(write_atomically(out / "README.md", "\n\n".join(blocks) + "\n"))
    shown = console()  # last: a reader such as head may close the pipe
    for line in sentences(made):
        say(shown, line)
    tables.show(every, shown)
    return written


def every_table(values: pd.DataFrame, made: pd.DataFrame, study: Study) -> list[Table]:
    """Return the tables of the comparisons, of how firm the answers are, and of each group."""
    return [*verdict_tables(made), sensitivity_table(values, study), values_table(values)]


def blocks_of(made: pd.DataFrame, every: Sequence[Table], level: int = 2) -> list[str]:
    """Return the page as Markdown: answers, what stands open, the tables, what none of it shows.

    Args:
        every: all tables (:func:`every_table`).
        level: of its headings.
    """
    mark = "#" * level
    lists = {
        "Answers": sentences(made),
        "Comparisons that stand open": open_comparisons(made),
        "What it does not show": LIMITS,
    }
    blocks = {
        title: "\n".join(f"- {escape.markdown(line)}" for line in lines)
        for title, lines in lists.items()
        if lines
    }
    limits = blocks.pop("What it does not show")
    blocks |= {"Tables": "\n\n".join(map(markdown, every)), "What it does not show": limits}
    return [f"{mark} {title}\n\n{text}" for title, text in blocks.items()]


def sentences(made: pd.DataFrame) -> list[str]:
    """Return the answer to each outcome in a line."""
    primary = made[made["family"] == "primary"]
    lines = []
    for name, answer in overall(made).items():
        part = primary[primary["outcome"] == name]
        found = "; ".join(
            f"{row['reference']}: {row['verdict']} (n={row['n']})" for _, row in part.iterrows()
        )
        lines.append(f"{TITLES[name]}: {answer}. {part['group'].iloc[0]} against {found}.")
    return lines


def open_comparisons(made: pd.DataFrame) -> list[str]:
    """Return a line for each primary comparison that lacks seeds, with the outcomes that do.

    No estimate of it is shown anywhere, so that nothing is decided by what is seen before all are
    measured.
    """
    lines: dict[str, list[str]] = {}
    for _, row in made[made["family"] == "primary"].iterrows():
        if NOT_MEASURED in row["left_out"]:
            pair = f"{row['group']} against {row['reference']}"
            seeds = f"{row['n']} of {row['planned']} seeds"
            lines.setdefault(pair, []).append(f"{TITLES[str(row['outcome'])]} ({seeds})")
    return [f"{pair}: {', '.join(outcomes)}" for pair, outcomes in lines.items()]


def verdict_tables(made: pd.DataFrame) -> list[Table]:
    """Return a row for each comparison: a table of the primary ones, the secondary, and others."""
    names = {"primary": "verdict", "secondary": "secondary", "further": "further"}
    found = {family: made[made["family"] == family] for family in names}
    return [
        _table(names[family], f"{family.capitalize()} comparisons", part)
        for family, part in found.items()
        if len(part)
    ]


def _table(name: str, title: str, made: pd.DataFrame) -> Table:
    headings = (
        Heading("Outcome"),
        Heading("Group"),
        Heading("Against"),
        Heading("Pairs", definition="seeds with a value of both groups"),
        Heading(
            "Estimate",
            definition="over pairs, the geometric mean of the ratio (edges, L0) or the mean of the "
            "difference",
        ),
        Heading("p", definition="paired t test, two-sided, not corrected"),
        Heading("p, Holm"),
        Heading("Verdict"),
    )
    ordered = made.sort_values("outcome", kind="stable")
    rows = [_row(row) for _, row in ordered.iterrows()]
    caption = "Intervals: Student's t over the pairs of seeds, 95 %. The plan is docs/study.md."
    notes = [*_interest(made), *_gaps(made)]
    return Table(name, title, headings, rows, caption, notes, n_labels=3)


def _interest(made: pd.DataFrame) -> list[str]:
    """Return a note of the effects of interest, or that there is no verdict."""
    if set(made["family"]) == {"further"}:
        return ["Not in the plan: p is not corrected, and there is no verdict."]
    effects = made.drop_duplicates("outcome").set_index("outcome")["effect"]
    listed = "; ".join(
        f"{TITLES[str(name)]}: a {_SCALES[str(name)]} of {_estimate(effect, str(name))}"
        for name, effect in effects.items()
    )
    return [f"Effects of interest (the first paper's; for R the plan's). {listed}."]


def _gaps(made: pd.DataFrame) -> list[str]:
    """Return a note for each reason why pairs have no value: how many of each comparison."""
    found: dict[tuple[str, str], list[str]] = {}
    for _, row in made.iterrows():
        for reason, count in row["left_out"].items():
            pair = f"{count} of {row['group']} against {row['reference']}"
            found.setdefault((str(row["outcome"]), reason), []).append(pair)
    return [
        f"Pairs left out, {TITLES[outcome]}, {reason}: {', '.join(pairs)}."
        for (outcome, reason), pairs in found.items()
        if reason != NOT_MEASURED
    ]


def sensitivity_table(values: pd.DataFrame, study: Study) -> Table:
    """Return the answer to each outcome again, with seeds and failing models left out."""
    found = sensitivity(values, study)
    names = [name for name in found.columns if name != "left_out"]
    rows = [
        [
            Cell.label("left_out", str(row["left_out"])),
            *(Cell.label(name, str(row[name])) for name in names),
        ]
        for _, row in found.iterrows()
    ]
    headings = (Heading("Left out"), *(Heading(TITLES[name]) for name in names))
    caption = "The plan's answers, computed again with the same tests and corrections."
    return Table("sensitivity", "Answers without some of the models", headings, rows, caption, [])


def values_table(values: pd.DataFrame) -> Table:
    """Return the mean of each group, its interval over seeds, and what is missing."""
    names = list(dict.fromkeys(values["outcome"]))
    groups = list(dict.fromkeys(values["group"]))
    rows = [
        [Cell.label("group", group), *(_mean(values, group, name) for name in names)]
        for group in groups
    ]
    reasons = values[(values["reason"] != "") & (values["reason"] != NOT_MEASURED)]
    notes = [
        f"{TITLES[str(outcome)]}, {reason}: {', '.join(part['model'])}"
        for (outcome, reason), part in reasons.groupby(["outcome", "reason"])
    ]
    notes += [
        f"{TITLES[str(outcome)]}, {note} of {len(part)} models: {', '.join(part['model'])}"
        for (outcome, note), part in values[values["note"] != ""].groupby(["outcome", "note"])
    ]
    headings = (Heading("Group"), *(Heading(TITLES[name]) for name in names))
    caption = (
        "Mean over seeds (geometric of edges and L0), interval by Student's t, number of seeds; "
        "nothing below 3 seeds."
    )
    return Table("values", "Outcomes by group", headings, rows, caption, notes)


def draw_verdict(made: pd.DataFrame) -> Figure:
    """Draw every comparison with its interval; a dashed line is the effect of interest.

    Secondary comparisons of which no outcome has an estimate yet are left out.
    """
    shown = made[_is_drawn(made) & made["outcome"].isin([one.name for one in OUTCOMES])]
    size = (3 + 2.7 * len(OUTCOMES), 1.2 + 0.3 * len(shown) / len(OUTCOMES))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(OUTCOMES), sharey=True, squeeze=False)[0]
    for panel, outcome in zip(panels, OUTCOMES, strict=True):
        _panel(panel, shown[shown["outcome"] == outcome.name], outcome)
    return figure


def _is_drawn(made: pd.DataFrame) -> pd.Series:
    """Whether a row is of a primary comparison, or of one with an estimate for some outcome."""
    most_pairs = made.groupby(["group", "reference"])["n"].transform("max")
    return (made["family"] == "primary") | ((most_pairs >= ENOUGH_SEEDS) & ~_is_open(made))


def _is_open(made: pd.DataFrame) -> pd.Series:
    return made["left_out"].map(lambda reasons: NOT_MEASURED in reasons)


def _panel(axes: Axes, part: pd.DataFrame, outcome: Outcome) -> None:
    labels = [f"{row['group']} v {row['reference']}" for _, row in part.iterrows()]
    for place, (_, row) in enumerate(part.iterrows()):
        if not math.isnan(row["low"]):
            color = draw.PALETTE[1] if row["verdict"] == BETTER else draw.PALETTE[0]
            axes.plot(row["estimate"], place, "o", color=color, markersize=5)
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.5)
    axes.axvline(1.0 if outcome.scale == "ratio" else 0.0, color="0.6", linewidth=0.8)
    if outcome.effect is not None:
        axes.axvline(outcome.effect, color=draw.PALETTE[6], linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    if outcome.scale == "ratio":
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
    axes.set_title(outcome.title, fontsize=10, loc="left")
    axes.set_xlabel(f"{outcome.scale} to the reference\n({outcome.direction} is predicted)")
    axes.spines[["top", "right"]].set_visible(False)


def _row(row: pd.Series) -> list[Cell]:
    outcome = str(row["outcome"])
    labels = [TITLES[outcome], str(row["group"]), str(row["reference"])]
    exact = {name: _exact(row[name]) for name in ("estimate", "low", "high", "effect")}
    if row["n"] < ENOUGH_SEEDS:  # of fewer seeds nothing is shown before all are measured
        exact["estimate"] = None
    low, high = (_estimate(exact[name], outcome) for name in ("low", "high"))
    interval = () if exact["low"] is None else (f"[{low}, {high}]",)
    pairs = f"{row['n']} of {row['planned']}"
    return [
        *(Cell.label(name, text) for name, text in zip(_LABELS, labels, strict=True)),
        Cell(pairs, "value", (), {"n": int(row["n"]), "planned": int(row["planned"])}),
        Cell(_estimate(exact["estimate"], outcome), "value", interval, exact),
        *(Cell(_probability(row[name]), "value", (), {name: _exact(row[name])}) for name in _P),
        Cell.label("verdict", str(row["verdict"])),
    ]


_LABELS = ("outcome", "group", "reference")
_P = ("p", "p_holm")
_SCALES = {outcome.name: outcome.scale for outcome in (*OUTCOMES, *FURTHER)}


def _exact(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _estimate(value: float | None, outcome: str) -> str:
    """A ratio to two decimals, a difference to three."""
    return _number(value, 2 if _SCALES[outcome] == "ratio" else 3)


def _number(value: float | None, decimals: int = 3) -> str:
    return EMPTY if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _probability(p: float) -> str:
    return "<0.001" if p < 0.0005 else _number(p)


def _mean(values: pd.DataFrame, group: str, name: str) -> Cell:
    part = values[(values["group"] == group) & (values["outcome"] == name)]
    known, is_ratio = part["value"].dropna().to_numpy(), _SCALES[name] == "ratio"
    if is_ratio and not (known > 0).all():
        return Cell.none(name, text=f"{EMPTY} (a value of 0)")
    mean = seed_mean(list(np.log(known) if is_ratio else known))
    if mean is None:
        return Cell.none(name)
    if mean.n < ENOUGH_SEEDS:
        return Cell.none(name, text=f"{EMPTY} (n={mean.n})")
    back = math.exp if is_ratio else float
    value, *ends = (None if x is None else back(x) for x in (mean.mean, mean.low, mean.high))
    low, high = (_estimate(end, name) for end in ends)
    interval = [] if ends[0] is None else [f"[{low}, {high}]"]
    exact = {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return Cell(_estimate(value, name), "value", (*interval, f"(n={mean.n})"), exact)
