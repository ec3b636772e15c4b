from __future__ import annotations

import errno

from matplotlib.figure import Figure

from evaluations.tables import draw
from tests.evaluations.comparison.study_records import lm

GOOD, BAD, OTHER = lm("good", 0, 1.0), lm("bad", 1, 2.0), lm("other", 2, 3.0)


def test_a_model_that_cannot_be_drawn_is_left_out_and_named(tmp_path):
    drawn = []

    def one(records):
        if BAD in records:
            raise TypeError("None + float")
        drawn.append(list(records))
        return [Figure()]

    written, failures = draw.write({"": one}, [GOOD, BAD, OTHER], tmp_path, "lm")
    assert drawn[-1] == [GOOD, OTHER]
    assert written == [tmp_path / "lm.png", tmp_path / "lm.svg"]
    assert failures == ["lm: no figure of bad (TypeError: None + float)"]


def test_a_figure_that_fails_costs_no_other(tmp_path):
    def fail(records):
        raise ValueError("several\nlines")

    figures = {"a": fail, "b": lambda records: [Figure()]}
    written, failures = draw.write(figures, [GOOD], tmp_path, "x")
    assert written == [tmp_path / "x-b.png", tmp_path / "x-b.svg"]
    assert failures == ["x a: no figure (ValueError: several lines)"]


def test_a_full_disk_is_said_once(tmp_path):
    def full(records):
        raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    assert draw.write({"a": full}, [GOOD, OTHER], tmp_path, "x") == (
        [],
        ["x a: no figure (No space left on device: x.png)"],
    )


def test_several_figures_of_one_name_have_their_label_or_number(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "_save", lambda figure, path: [path])
    labelled = Figure()
    labelled.set_label("a:b")
    figures = {"": [Figure(), Figure()], "masks": [labelled], "curves": [Figure()]}
    names = [path.name for path in draw.save(figures, tmp_path, "x")]
    assert names == ["x-1", "x-2", "x-masks-a-b", "x-curves"]


def test_a_panel_without_data_says_why_and_a_legend_covers_no_data():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    draw.empty(axes, "no value")
    assert [text.get_text() for text in axes.texts] == ["no value"]
    axes.plot([0, 1], [0, 1], label="a")
    draw.legend(axes)
    figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    assert box.y1 < axes.get_window_extent().y0
