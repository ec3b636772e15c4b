from __future__ import annotations

import errno

from evaluations.tables.drawing import draw_figures
from tests.evaluations.comparison.study_records import lm

GOOD, BAD, OTHER = lm("good", 0, 1.0), lm("bad", 1, 2.0), lm("other", 2, 3.0)


def test_a_model_that_cannot_be_drawn_is_left_out_and_named(tmp_path):
    drawn = []

    def draw(records):
        if BAD in records:
            raise TypeError("None + float")
        drawn.append(list(records))
        return [tmp_path / "figure.png"]

    written, told = draw_figures({"lm": draw}, [GOOD, BAD, OTHER])
    assert drawn[-1] == [GOOD, OTHER]
    assert written == [tmp_path / "figure.png"]
    assert told == ["lm: no figure of bad (TypeError: None + float)"]


def test_a_figure_that_fails_costs_no_other(tmp_path):
    def fail(records):
        raise ValueError("several\nlines")

    written, told = draw_figures({"a": fail, "b": lambda found: [tmp_path / "b.png"]}, [GOOD])
    assert written == [tmp_path / "b.png"]
    assert told == ["a: no figure (ValueError: several lines)"]


def test_a_full_disk_is_said_once():
    def full(records):
        raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    assert draw_figures({"a": full}, [GOOD, OTHER]) == (
        [], ["a: no figure (No space left on device: x.png)"]
    )  # fmt: skip
