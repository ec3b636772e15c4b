from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evaluations.cli import main
from evaluations.registry import SPECS
from tests.evaluations.comparison.study_records import acdc, gates, lm

BUILTIN = Path(__file__).parents[3] / "results" / "builtin"
L4 = {"ablation": gates("local", 4)}


@pytest.fixture
def results(tmp_path):
    """Two seeds of a baseline and of local k = 4, and much that is no record."""
    out = tmp_path / "results"
    for seed in (0, 1):
        for name, more in (("baseline", {}), ("local-k4", L4)):
            path = out / f"{name}-s{seed}-0a1b2c3d"
            lm(f"{name}-s{seed}", seed, 2.0 + 0.1 * seed + bool(more), **more).write(
                path / "lm-0123456789ab.json"
            )
    twin = out / "again" / "lm-0123456789ab.json"
    lm("baseline-s0", 0, 9.0, started="2025-01-01T00:00:00+00:00").write(twin)
    (out / "truncated.json").write_text('{"schema": 1, "evalu')
    (out / "foreign.json").write_text(json.dumps({"a": 1}))
    (out / "list.json").write_text("[]")
    logs = out / "models" / "baseline-s0"
    logs.mkdir(parents=True)
    lines = [{"step": step, "tokens": 10 * step, "clean": 3.0 / step} for step in (1, 2, 3)]
    (logs / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return out


def test_the_report_of_a_directory_with_everything_in_it(results, capsys):
    assert main(["report", "--out", str(results), "--paper-values"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for words in (
        "Circuits, autoencoders",
        "Paired differences",
        "Graphs of neurons (N2G)",
        "1 duplicate",
        "2 of the JSON files skipped: not a record",
        "1 of the JSON files skipped: truncated",
    ):
        assert words in told.out
    out = results / "report"
    for name in (
        "table1.md",
        "table1.tex",
        "table1.csv",
        "table1-models.csv",
        "table2.tex",
        "table1-differences.md",
        "report.md",
        "report.html",
        "curves.png",
    ):
        assert (out / name).stat().st_size > 0, name
    page = (out / "report.md").read_text()
    assert "| local-k4 | local | 4 | 2 |" in page
    assert "| baseline | none | – | 2 |" in page
    assert "Not measured yet: sat-eval acdc" in page
    assert "3.050" in page  # (3.0 + 3.1) / 2
    # a second time the report's own files change nothing
    assert main(["report", "--out", str(results), "--paper-values"]) == 0
    assert (out / "report.md").read_text() == page


def test_a_closed_pipe_loses_no_file(results, monkeypatch, capsys):
    def closed(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("evaluations.comparison.command.tables.show", closed)
    assert main(["report", "--out", str(results)]) == 2
    assert "Broken pipe" in capsys.readouterr().err
    assert (results / "report" / "report.html").stat().st_size > 0


def test_a_study_decides_what_is_shown(results, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    content = {"variants": ["none", "global"], "k": [4], "seeds": [0, 1]}
    study.write_text(yaml.safe_dump(content))
    assert main(["report", "--out", str(results), "--study", str(study)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "2 models are not of the study: local-k4-s0, local-k4-s1" in told
    assert "2 of 4 runs of the study have no record (global-k4-s0, global-k4-s1)" in told
    assert f"sat-train --study {study}" in told


def test_a_figure_that_fails_stops_nothing(results, capsys, caplog):
    acdc("baseline-s0", 0, 30).write(results / "acdc-1.json")  # without any circuit to draw
    assert main(["report", "--out", str(results)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "acdc: no figure of records without 'circuit': baseline-s0" in told
    assert (results / "report" / "lm.png").exists()
    assert (results / "report" / "report.html").exists()


def test_an_odd_record_is_left_out_named_and_fails_at_the_end(results, capsys):
    odd = json.loads(lm("odd-s0", 0, 3.0).to_json())
    odd["model"]["ablation"] = {"variant": "spiral"}
    (results / "odd.json").write_text(json.dumps(odd))
    assert main(["report", "--out", str(results)]) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    (line,) = told.err.splitlines()
    assert "left out: results/odd.json: model.ablation.variant" in line
    assert "baseline" in told.out
    assert "odd-s0" not in told.out
    assert (results / "report" / "report.html").exists()


def test_a_figure_that_fails_costs_no_other_and_is_one_line(results, capsys, monkeypatch):
    from evaluations.suite.lm.report import FIGURES

    def fail(records):
        raise RuntimeError("no\nsuch colour")

    monkeypatch.setitem(FIGURES, "", fail)
    assert main(["report", "--out", str(results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: lm: no figure (RuntimeError: no such colour)"
    assert (results / "report" / "curves.png").exists()
    assert (results / "report" / "report.html").exists()


def test_nothing_to_report_is_one_line(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert main(["report", "--out", str(tmp_path / "results")]) == 2
    assert "holds no record: run sat-eval all first" in capsys.readouterr().err
    assert main(["report", "--out", str(tmp_path / "absent")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_a_report_of_every_evaluation_imports_no_model_code(tmp_path):
    """Imports of torch and what is built on it take longer than reading a few hundred records."""
    for path in sorted(BUILTIN.glob("demo-local-k4-*/*.json")):
        shutil.copy(path, tmp_path)
    evaluations = {path.name.split("-")[0] for path in tmp_path.glob("*.json")}
    assert evaluations == {spec.name for spec in SPECS}
    code = f"""
import sys
from evaluations.cli import main
code = main(["report", "--out", {str(tmp_path)!r}])
heavy = {{"torch", "transformers", "transformer_lens", "sae_lens"}} & set(sys.modules)
print(code, *sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0", done.stderr
    assert (tmp_path / "report" / "report.html").exists()
