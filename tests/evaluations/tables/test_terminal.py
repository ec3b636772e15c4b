"""Tables in terminals of any width: whole words, every interval."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from evaluations.tables import Cell, Heading, Table, show

INTERVAL = "[1.900, 2.200]"
COLUMNS = ("Perplexity", "Control: shuffled explanation", "Third", "Fourth")
TABLE = Table(
    "t",
    "A title",
    (Heading("Model"), *(Heading(title, "lower") for title in COLUMNS)),
    [
        [Cell.label("model", name), *[Cell("2.000", "value", (INTERVAL,))] * len(COLUMNS)]
        for name in ("baseline", "matched-local-k4")
    ],
    "A caption.",
)


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    show([table], console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [35, 60, 75, 100, 200])
def test_no_word_is_broken_no_interval_lost_and_no_line_too_long(width):
    text = printed(TABLE, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert text.count(INTERVAL) == 8
    for word in ("matched-local-k4", "Perplexity", "shuffled", "explanation", "Fourth ↓"):
        assert word in text


def test_intervals_go_below_then_columns_into_blocks():
    assert "2.000 [1.900, 2.200]" in printed(TABLE, 200)
    assert printed(TABLE, 200).count("Model") == 1
    assert "2.000 [1.900, 2.200]" not in printed(TABLE, 90)
    assert printed(TABLE, 90).count("Model") == 1
    assert printed(TABLE, 60).count("Model") == 2


def test_a_label_that_repeats_is_shown_once():
    rows = [[Cell.label("a", "metric"), Cell.label("b", name)] for name in ("x", "y")]
    text = printed(Table("t", "T", (Heading("A"), Heading("B")), rows, n_labels=2), 80)
    assert text.count("metric") == 1


def test_markup_in_names_is_shown_as_it_is():
    table = Table("t", "[red]T", (Heading("Model"),), [[Cell.label("model", "[bold]a")]])
    assert "[bold]a" in printed(table, 80)
    assert "[red]T" in printed(table, 80)
