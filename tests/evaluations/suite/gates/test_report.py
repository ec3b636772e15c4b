"""Tables and figures of gates: what is drawn is what the records say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluations.core.record import Interval, Metric, Record
from evaluations.suite.gates.report import FIGURES, LOSSES, _losses, _probes, draw_masks, tables
from evaluations.tables import draw, markdown, rows


def _curve(*values: float) -> dict[str, list[float | None]]:
    return {"value": list(values), "standard_error": [0.01] * len(values)}


def _usage(units: int) -> dict[str, object]:
    names = ("entropy", "dead", "overlap", "overlap_same_story", "overlap_chance")
    return {
        "k": 2,
        "units": units,
        "frequency": [" ".join(["0.5"] * 4 + ["0"] * (units - 4))] * 2,
        **{name: _curve(0.2, 0.4) for name in names},
        "similarity": {"value": [[1.0, 0.3], [0.3, 1.0]], "standard_error": [[0.0, None]] * 2},
    }


def _probe(bits: float) -> dict[str, object]:
    return {"bits": bits, "bits_interval": [bits - 0.1, bits + 0.2]}


def make(name: str = "gated") -> Record:
    names = ("mask", "shuffled", "token+mask", "residual")
    leak = {"probes": {one: [_probe(1.0 + place), _probe(2.0)] for place, one in enumerate(names)}}
    leak["probes"] |= {"token": [_probe(0.7)], "final": [_probe(3.0)]}
    picture = {
        "tokens": ["<|endoftext|>", " a$b", "\n"],
        "attention": [["0 1", "1 3", "0 2"]] * 2,
        "neuron": [["0 3", "0 3", "0 3"]] * 2,
    }
    losses = [
        Metric(
            f"masks_{one}_loss",
            one,
            1.0 + place,
            interval=Interval(0.9 + place, 1.2 + place, 0.95, "bootstrap"),
        )
        for place, one in enumerate(LOSSES)
    ]
    return Record(
        evaluation="gates",
        data={"spec": "demo"},
        config={},
        config_hash="c",
        seed=0,
        model={"name": name, "weights_hash": name * 8, "ablation": {"variant": "local"}},
        metrics=[*losses, Metric("leak_mask", "leak", 1.5)],
        extra={
            "usage": {"attention": _usage(5), "neuron": _usage(8)},
            "leak": leak,
            "picture": picture,
        },
    )


def test_every_figure_is_written(tmp_path):
    written, failures = draw.write(FIGURES, [make("one:x")], tmp_path, "gates")
    assert failures == []
    stems = ("", "-probes", "-masks-one-x")
    names = {f"gates{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    assert names == {path.name for path in written}
    assert all(path.stat().st_size > 10_000 for path in written)


def test_without_probes_and_interventions_there_is_no_figure_of_them():
    record = make()
    bare = dataclasses.replace(
        record, metrics=[], extra={k: v for k, v in record.extra.items() if k != "leak"}
    )
    assert FIGURES["probes"]([bare]) == []
    assert len(FIGURES[""]([bare])) == 1
    assert len(FIGURES["probes"]([bare, make("full")])) == 1


def test_other_records_are_skipped():
    other = dataclasses.replace(make(), evaluation="lm")
    assert [figure for draws in FIGURES.values() for figure in draws([other])] == []
    assert tables([other]) == []


def test_the_picture_marks_each_winner_in_order_of_first_win():
    (row,) = rows([make()])
    panels = [axes for axes in draw_masks(row).axes if axes.collections]
    attention = panels[0].collections[0].get_offsets()
    # winners 0 1 | 1 3 | 0 2: unit 0 first, then 1, then 3, then 2
    assert sorted(map(tuple, np.asarray(attention).tolist())) == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 3),
    ]
    labels = [label.get_text() for label in panels[-2].get_xticklabels()]
    assert labels == ["‹end›", r"·a\$b", "⏎"]


def test_bits_and_losses_are_where_they_belong():
    (row,) = rows([make()])
    left, right = Figure().subplots(1, 2)
    _probes(left, row.records["gates"].extra["leak"])
    drawn = {one.get_label(): one.lines[0].get_ydata().tolist() for one in left.containers}
    assert drawn["masks"] == [1.0, 2.0]
    assert drawn["shuffled masks"] == [2.0, 2.0]
    _losses(right, row)
    assert [label.get_text() for label in right.get_yticklabels()] == list(LOSSES.values())
    points = [tuple(one.lines[0].get_xydata()[0]) for one in right.containers]
    assert points == [(1.0 + place, float(place)) for place in range(5)]
    bar = right.containers[1].lines[2][0].get_segments()[0]
    assert bar[:, 0] == pytest.approx([1.9, 2.2])


def test_tables_show_what_is_known():
    text = "\n".join(map(markdown, tables([make()])))
    assert "| gated | 1.50 |" in text
    assert "5.000" not in text.split("Ablated loss")[0]
