"""Figures that are typed into pages, with their intervals: each is that of a record.

A page requests most of its figures from records (docs/hooks.py). Those that it types are compared
here: ``value [low, high]`` has to be a metric of a record, or a row of a table beside the records,
to the digits that are typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NUMBER = r"-?\d*\.?\d+"
TYPED = re.compile(rf"({NUMBER})\s+\[({NUMBER}),\s+({NUMBER})\]")
SOURCES: dict[str, tuple[str, ...]] = {
    "docs/evaluations/circuits.md": ("frontiers", "builtin"),
    "docs/smollm2.md": ("smollm2", "smollm2-tasks"),
    "docs/pretrained.md": ("builtin", "init", "smollm2", "smollm2-tuned"),
    "docs/results/answer.md": ("answer",),
}
"""Folders of results that a page is about."""
WITHOUT_RECORD: dict[str, set[str]] = {
    "docs/evaluations/circuits.md": {"26.7 [23.1, 31.7]"},  # 100 prompts, said on the page
    "docs/pretrained.md": {"0.011 [0.004, 0.018]", "0.019 [0.012, 0.026]"},  # pairs of neurons
    # comparisons over seeds of other metrics of the records
    "docs/results/answer.md": {
        *("0.13 [0.05, 0.21]", "0.09 [0.04, 0.14]", "0.15 [0.08, 0.22]"),  # perplexity, lm
        "0.60 [0.35, 0.85]",  # perplexity of the ablated stream, accuracy.csv
        *("-0.07 [-0.76, 0.61]", "0.76 [0.64, 0.89]", "1.20 [0.99, 1.46]"),  # L0 at one coefficient
        *("0.49 [0.45, 0.52]", "0.84 [0.82, 0.86]"),  # cost of the first MLP, ablate
        *("0.009 [0.002, 0.017]", "0.012 [0.006, 0.018]"),  # detection and fuzzing, neurons
        *("0.006 [0.002, 0.010]", "0.034 [0.025, 0.042]"),  # detection
        *(
            "1.33 [0.47, 3.78]",
            "1.08 [0.41, 2.82]",
        ),  # before the search was extended, said on the page
    },
}
"""Typed figures that are computed from records by other means, or have none and say so."""

Triple = tuple[float, float, float]


def metrics_of(folder: Path) -> Iterator[Triple]:
    """Value and interval of every metric, and component, of the records below a folder."""
    for path in folder.glob("*/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for metric in record["metrics"]:
            value, interval = metric["value"], metric["interval"]
            if value is not None and interval is not None and interval["low"] is not None:
                yield value, interval["low"], interval["high"]
        if record["evaluation"] == "ablate":
            for component in record["extra"]["components"]:
                for cost in component["held"].values():
                    if cost["low"] is not None:
                        yield cost["delta"], cost["low"], cost["high"]


def rows_of(folder: Path) -> Iterator[Triple]:
    """Values with intervals of the tables of a folder: x, x_low, x_high; estimate, low, high."""
    for path in [*folder.glob("*.csv"), *folder.glob("*/*.csv")]:
        table = pd.read_csv(path)
        named = [(name, f"{name}_low", f"{name}_high") for name in table.columns]
        for names in [*named, ("estimate", "low", "high")]:
            if set(names) <= set(table.columns):
                rows = table[list(names)].dropna()
                yield from (tuple(map(float, row)) for row in rows.to_numpy())  # type: ignore[misc]


def is_rounded(typed: str, exact: float) -> bool:
    """Whether a number with the digits that are typed is the exact one, rounded."""
    digits = len(typed.partition(".")[2])
    return abs(float(typed) - exact) <= 0.5 * 10**-digits + 1e-9


def unknown(text: str, known: Iterable[Triple]) -> list[str]:
    """Return the typed figures that are none of the known ones."""
    known = list(known)
    return [
        f"{found[1]} [{found[2]}, {found[3]}]"
        for found in TYPED.finditer(re.sub(r"(?<=\d),(?=\d{3})", "", text))
        if not any(all(map(is_rounded, found.groups(), one)) for one in known)
    ]


@pytest.mark.parametrize("page", SOURCES)
def test_typed_figures_are_those_of_records(page):
    folders = [RESULTS / name for name in SOURCES[page]]
    known = [one for folder in folders for read in (metrics_of, rows_of) for one in read(folder)]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert TYPED.search(text)
    assert set(unknown(text, known)) <= WITHOUT_RECORD.get(page, set())


def test_what_no_record_says_is_found():
    known = [(0.1234, 0.05, 0.2), (3767012.6, 3337822.7, 4231308.4)]
    text = "0.12 [0.05, 0.20], 0.13 [0.05, 0.20], 3,767,013\n[3,337,823, 4,231,308], -1 [0, 1]"
    assert unknown(text, known) == ["0.13 [0.05, 0.20]", "-1 [0, 1]"]
