from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from evaluations.battery.options import StatusOptions
from evaluations.battery.plan import EvaluationJob, claim
from evaluations.battery.status import print_status
from evaluations.cli import main
from evaluations.registry import find_spec
from sat_interp.engine.run import Claims
from sat_interp.training.study import read_study
from sat_interp.training.study_job import TrainingJob
from tests.evaluations.comparison.study_records import lm, made

LM = find_spec("lm").version


@pytest.fixture
def study(tmp_path):
    """Four runs: two trained, one of them measured; one interrupted; one missing."""
    path, runs = tmp_path / "study.yaml", tmp_path / "runs"
    content = {"variants": ["none", "local"], "k": [2], "seeds": [0, 1], "out": str(runs)}
    path.write_text(yaml.safe_dump(content))
    for name in ("baseline-s0", "local-k2-s0"):
        (runs / name).mkdir(parents=True)
        (runs / name / "summary.json").write_text(json.dumps({"best": {"clean_perplexity": 3.0}}))
    (runs / "baseline-s1" / "checkpoints" / "step-00000250").mkdir(parents=True)
    record = dataclasses.replace(lm("baseline-s0", 0, 3.0), version=LM)
    record.write(tmp_path / "res" / "baseline-s0-01234567" / "lm-0.json")
    old = dataclasses.replace(lm("local-k2-s0", 0, 3.0), version=LM - 1)
    old.write(tmp_path / "res" / "local-k2-s0-01234567" / "lm-1.json")
    return path


def state(study, tmp_path, capsys, *more: str) -> tuple[dict[str, list[str]], list[str]]:
    arguments = ["status", "--study", str(study), "--out", str(tmp_path / "res"), *more]
    assert main([*arguments, "--parts", "lm,gates"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return {row[0]: row[1:] for row in rows}, lines[-2:]


def test_what_is_done_running_and_missing_is_read_from_files(study, tmp_path, capsys):
    rows, totals = state(study, tmp_path, capsys)
    assert rows == {
        "baseline-s0": ["done", "done", "–"],
        "local-k2-s0": ["done", "missing", "missing"],
        "baseline-s1": ["at step 250 of 500", "missing", "–"],
        "local-k2-s1": ["missing", "missing", "missing"],
    }
    assert totals == [
        "training: 2 done, 0 running, 1 missing, 1 interrupted, of 4 runs",
        "evaluations: 1 done, 0 running, 5 missing, of 6",
    ]


def test_what_a_study_names_is_a_column_each_and_known_by_its_options(tmp_path, capsys):
    measures = ["lm", {"acdc": {"task": "ioi"}}, {"acdc": {"task": "quotes", "tau": [0.1]}}]
    content = {"variants": ["none"], "measures": measures, "out": str(tmp_path / "runs")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    record = dataclasses.replace(
        made("acdc", "baseline-s0", 0, {"edges": 3.0}, data={"spec": "quotes"}),
        version=find_spec("acdc").version,
    )
    record.write(tmp_path / "res" / "baseline-s0-01234567" / "acdc-0.json")
    options = StatusOptions(str(tmp_path / "study.yaml"), str(tmp_path / "res"))
    (row,) = print_status([], options)
    assert row.evaluations == {"lm": "missing", "acdc": "missing", "acdc-2": "done"}
    assert "acdc-2" in capsys.readouterr().out
    (row,) = print_status([], dataclasses.replace(options, parts=("lm",)))
    assert row.evaluations == {"lm": "missing"}


def test_what_a_driver_has_claimed_is_running(study, tmp_path, capsys):
    run = read_study(study).runs()[2]
    training, measuring = Claims(tmp_path / "runs"), Claims(tmp_path / "res")
    assert training.take(TrainingJob(run, None, lambda: run.config))
    job = EvaluationJob(find_spec("lm"), [str(tmp_path / "runs" / "local-k2-s0")], {})
    assert measuring.take(job)
    rows, totals = state(study, tmp_path, capsys)
    assert rows["baseline-s1"][0] == "running"
    assert rows["local-k2-s0"][1] == "running"
    assert totals[0] == "training: 2 done, 1 running, 1 missing, of 4 runs"
    training.give_back(TrainingJob(run, None, lambda: run.config))
    measuring.give_back(job)
    assert state(study, tmp_path, capsys)[0]["local-k2-s0"][1] == "missing"


def test_a_claim_is_known_by_the_model_and_not_by_how_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert claim("lm", "model") == claim("lm", str(tmp_path / "model")) != claim("sae", "model")
    assert claim("lm", "model [untrained]") != claim("lm", "model")


def test_models_beside_the_study_and_nothing_at_all(tmp_path, capsys):
    arguments = ["status", "demo:local-k4", "--out", str(tmp_path / "none"), "--parts", "gates"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "evaluations: 0 done, 0 running, 1 missing, of 1" in told
    assert "training:" not in told
    assert main(["status"]) == 2
    assert "there is no model to list: name one, or --study FILE" in capsys.readouterr().err
    assert main(["status", "demo:baseline", "--parts", "gate"]) == 2
    assert "unknown part 'gate': did you mean 'gates'?" in capsys.readouterr().err
