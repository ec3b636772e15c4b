"""Curves of runs: the tokens under each point, what is no run, and that a figure is left."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from evaluations.cli import main
from evaluations.comparison.curves import draw_curves, read_run
from evaluations.tables import draw
from sat_interp._util.errors import UserError


def _run(folder, name, gated, steps=200):
    directory = folder / name
    directory.mkdir()
    lines = []
    for step in range(10, steps + 1, 10):
        line = {"step": step, "tokens": step * 1024, "clean": 3 + 50 / step}
        lines.append(line | ({"ablated": 4 + 50 / step} if gated else {}))
        if step % 100 == 0:
            lines.append({"step": step, "validation_clean": 3.5, "validation_ablated": None})
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_points_lie_at_the_tokens_seen(tmp_path):
    run = read_run(_run(tmp_path, "a", gated=True))
    tokens, losses = run.series("clean")
    assert tokens[0] == 10 * 1024
    assert losses[-1] == pytest.approx(3.25)
    tokens, losses = run.series("validation_clean")
    np.testing.assert_array_equal(tokens, [100 * 1024, 200 * 1024])
    assert len(run.series("validation_ablated")[0]) == 0


def test_a_figure_of_several_runs_is_written(tmp_path):
    runs = [read_run(_run(tmp_path, name, gated)) for name, gated in (("a", False), ("b", True))]
    written = draw.save({"": [draw_curves(runs)]}, tmp_path, "curves")
    assert [path.suffix for path in written] == [".png", ".svg"]
    text = written[1].read_text()
    assert "clean stream" in text or "<svg" in text
    assert written[0].stat().st_size > 5_000


def test_the_command_takes_runs(tmp_path, capsys):
    runs = [str(_run(tmp_path, name, gated=False)) for name in ("a", "b")]
    assert main(["curves", *runs, "--out", str(tmp_path / "out")]) == 0
    assert "curves.png" in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.svg").is_file()


def test_a_run_that_cannot_be_read_costs_the_others_nothing(tmp_path, capsys):
    good = _run(tmp_path, "good", gated=False)
    assert main(["curves", str(good), str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "curves.png" in told.out
    assert told.err.startswith(f"error: {tmp_path / 'none'} has no log.jsonl")


def test_a_log_that_is_being_written_is_read_up_to_there(tmp_path):
    log = _run(tmp_path, "a", gated=False) / "log.jsonl"
    whole = len(read_run(log).series("clean")[0])
    log.write_text(log.read_text() + '{"step": 210, "tok')
    assert len(read_run(log).series("clean")[0]) == whole


@pytest.mark.parametrize(
    "line",
    [
        {"step": 0, "validation_clean": 3.2},  # the first line of a run with --init
        {"step": 0, "tokens": 0, "clean": 3.0},
        {"step": 5, "tokens": "many", "clean": 3.0},
        {"step": 5, "tokens": 100, "clean": {"a": 1}},
        {"step": 5, "tokens": 100, "clean": math.nan},
    ],
)
def test_numbers_that_no_run_logs_are_left_out(tmp_path, line):
    directory = tmp_path / "odd"
    directory.mkdir()
    (directory / "log.jsonl").write_text(json.dumps(line) + "\n")
    draw.save({"": [draw_curves([read_run(directory)])]}, tmp_path, "curves")
    good = _run(tmp_path, "good", gated=False)
    with (good / "log.jsonl").open("a") as file:
        file.write(json.dumps({**line, "step": 300}) + "\n")
    assert read_run(good).series("clean")[0][0] == 10 * 1024


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"other": 1}\n', "[1]\n"])
def test_what_is_no_run_is_one_line(tmp_path, content, capsys):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(UserError):
        read_run(tmp_path)
    assert main(["curves", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
