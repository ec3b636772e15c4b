"""The figure of lm: what is drawn is what the records say, and both files are whole."""

from __future__ import annotations

import dataclasses

from evaluations.core.record import Interval, Metric, Record
from evaluations.suite.lm import report
from evaluations.suite.lm.report import FIGURES, tables
from evaluations.tables import draw, write


def _record(name: str, variant: str, perplexity: float, ablated: float | None) -> Record:
    interval = Interval(perplexity - 0.1, perplexity + 0.2, 0.95, "bootstrap")
    metrics = [Metric("perplexity", "Perplexity", perplexity, "", "lower", 0.1, interval, 10)]
    if ablated is not None:
        metrics.append(Metric("ablated_perplexity", "Perplexity", ablated, "", "lower", n=10))
    curve = {"value": [0.2, 0.4], "standard_error": [0.01, None]}
    return Record(
        evaluation="lm",
        data={"spec": "demo"},
        config={},
        config_hash="c",
        seed=0,
        model={"name": name, "weights_hash": name * 8, "ablation": {"variant": variant}},
        metrics=metrics,
        extra={"activations": {"z_hoyer": curve, "post_hoyer": curve}},
    )


def test_png_and_svg_are_written_and_values_are_where_they_belong(tmp_path, monkeypatch):
    drawn = []
    keep = report._perplexities
    monkeypatch.setattr(
        report, "_perplexities", lambda axes, found: (keep(axes, found), drawn.append(axes))
    )
    records = [_record("gated", "local", 7.0, 9.0), _record("plain", "none", 5.0, None)]
    paths, failures = draw.write(FIGURES, records, tmp_path, "lm")
    assert failures == []
    assert [path.name for path in paths] == ["lm.png", "lm.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in paths[1].read_text()[-20:]
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "gated"]
    points = [tuple(c.lines[0].get_xydata()[0]) for c in axes.containers]
    assert points == [(5.0, 0.0), (7.0, 1.0), (9.0, 1.0)]
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 0].tolist() == [4.9, 5.2]


def test_without_records_of_lm_nothing_is_drawn(tmp_path):
    other = dataclasses.replace(_record("plain", "none", 5.0, None), evaluation="acdc")
    assert draw.write(FIGURES, [other], tmp_path, "none") == ([], [])
    assert not list(tmp_path.iterdir())


def test_tables_are_written_beside(tmp_path):
    records = [_record("plain", "none", 5.0, None)]
    markdown, latex, csv = write(tables(records), tmp_path, "lm")
    assert "\\label{tab:language}" in latex.read_text()
    assert "plain" in markdown.read_text()
    assert csv.read_text().splitlines()[0].startswith("model,weights,health,perplexity,")
    assert csv.read_text().splitlines()[1].startswith("plain,plainpla,,5.0,0.1,4.9,5.2,10,0")
    assert write(tables([]), tmp_path, "none") == []
