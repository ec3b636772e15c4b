from __future__ import annotations

import os
import sys

import pytest
import yaml

from evaluations.cli import main
from evaluations.core.record import read_records
from sat_interp.io.pretrained import save_pretrained


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A script in place of Python, which notes the command lines of the battery."""
    path, file = tmp_path / "stub", tmp_path / "asked"
    path.write_text(
        "#!/bin/sh\n"
        f'shift 2; echo "$*" >> {file}\necho "$1 at work"\n'
        'if [ "$1" = "$BROKEN" ]; then echo "error: no prompts" >&2; exit 2; fi\n'
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr("sat_interp.engine.local.can_fork", lambda: False)

    def lines() -> dict[str, list[str]]:
        split = [line.split() for line in file.read_text().splitlines()]
        return {name: arguments for name, *arguments in split}

    return lines


def test_all_runs_every_evaluation_and_prints_one_summary(asked, tmp_path, capsys):
    arguments = ["all", "demo:baseline", "demo:local-k4", "--preset", "quick", "--data", "demo"]
    assert main([*arguments, "--out", str(tmp_path), "--lm.resamples", "50"]) == 0
    told = capsys.readouterr()
    lines = asked()
    assert set(lines) >= {"lm", "gates", "acdc", "sae", "neurons", "n2g"}
    assert lines["lm"] == [
        "demo:baseline",
        "demo:local-k4",
        "--stories=300",
        "--activation-stories=100",
        "--resamples=50",
        f"--out={tmp_path}",
        "--data=demo",
    ]
    assert lines["gates"][0] == "demo:local-k4"
    assert "--data=demo" not in lines["acdc"]
    assert f"2 models, {len(lines)} parts: about" in told.out
    assert "at work" not in told.out
    assert (tmp_path / "logs" / "n2g.log").read_text() == "n2g at work\n"


def test_a_file_may_hold_the_budgets_of_the_evaluations(asked, tmp_path):
    file = tmp_path / "budgets.yaml"
    file.write_text(yaml.safe_dump({"preset": "quick", "acdc": {"tau": [0.1, 0.03]}}))
    arguments = ["all", "demo:baseline", "--config", str(file), "--parts", "acdc"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "--tau=0.1,0.03" in asked()["acdc"]


def test_a_failed_evaluation_makes_the_battery_fail_after_the_others(
    asked, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(os.environ, "BROKEN", "acdc")
    arguments = ["all", "demo:baseline", "--preset", "quick", "--parts", "acdc,lm,n2g"]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == "error: 1 of 3 parts failed: acdc: no prompts"
    assert "n2g" in asked()


def test_a_study_names_the_models_and_what_is_not_trained_is_named(asked, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    content = {"variants": ["none", "local"], "k": [4], "out": str(tmp_path / "runs")}
    study.write_text(yaml.safe_dump(content))
    arguments = ["all", "--study", str(study), "--parts", "lm", "--out", str(tmp_path / "res")]
    assert main(arguments) == 2
    assert "there is no model to evaluate: sat-train --study" in capsys.readouterr().err
    run = tmp_path / "runs" / "baseline-s0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    assert main(arguments) == 2
    assert "1 runs of the study are not trained yet (local-k4-s0)" in capsys.readouterr().err
    assert asked()["lm"][0] == str(run)
    assert set(asked()) == {"lm"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is no model to evaluate: name one, or --study FILE"),
        (["demo:baseline", "--parts", "neuron"], "unknown part 'neuron': did you mean 'neurons'?"),
        (["demo:baseline", "--jobs", "0"], "--jobs must be at least 1"),
        (["demo:baseline", "--preset", "fast"], "unknown preset 'fast'; choices"),
        (["demo:baseline", "--lm.storys", "3"], "--lm.stories"),
        (["--study", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(asked, capsys, arguments, told):
    assert main(["all", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_real_evaluation_in_a_process_of_its_own_leaves_records(
    make_model, stories_file, tmp_path, capsys
):
    tiny = str(save_pretrained(make_model(), tmp_path / "tiny"))
    arguments = ["all", tiny, "--preset", "quick", "--parts", "lm", "--jobs", "2"]
    arguments += ["--data", str(stories_file), "--out", str(tmp_path / "res")]
    assert main(arguments) == 0, capsys.readouterr().err
    (record,) = read_records(tmp_path / "res")[0]
    assert (record.evaluation, record.model["name"]) == ("lm", "tiny")


def test_a_study_names_what_is_measured_and_in_which_order(asked, tmp_path, make_model, capsys):
    for name in ("baseline-s0", "local-k4-s0"):
        variant = "none" if name.startswith("baseline") else "local"
        save_pretrained(make_model(variant), tmp_path / "models" / name)
    study = tmp_path / "study.yaml"
    measures = [
        {"acdc": {"task": "quotes", "tau": [0.1, 0.03]}},
        "gates",
        {"acdc": {"task": "ioi"}},
    ]
    content = {"variants": ["none", "local"], "k": [4], "seeds": [0, 1], "measures": measures}
    study.write_text(yaml.safe_dump(content))
    arguments = ["all", "--study", str(study), "--runs", str(tmp_path / "models")]
    out = tmp_path / "res"
    assert main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 runs of the study are not trained yet (baseline-s1, local-k4-s1)" in error
    models = [str(tmp_path / "models" / name) for name in ("baseline-s0", "local-k4-s0")]
    lines = (tmp_path / "asked").read_text().splitlines()
    assert [line.split() for line in lines] == [
        ["acdc", *models, f"--out={out}", "--task=quotes", "--tau=0.1,0.03"],
        ["gates", models[1], f"--out={out}"],
        ["acdc", *models, f"--out={out}", "--task=ioi"],
    ]
    assert (out / "logs" / "acdc-2.log").is_file()
    (tmp_path / "asked").unlink()
    assert main([*arguments, "--parts", "gates", "--out", str(out)]) == 2
    assert list(asked()) == ["gates"]


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ([{"acdcc": {}}], "unknown evaluation 'acdcc'"),
        ([{"lm": {"story": 3}}], "measures: lm: unknown option 'story': did you mean 'stories'?"),
        ("lm", "measures must be a list of evaluations"),
        ([{"lm": {}, "acdc": {}}], "an entry is one evaluation with its options"),
        ([{"lm": 3}], "measures: lm must be a mapping of settings"),
    ],
)
def test_impossible_measures_are_refused_before_anything_runs(
    asked, tmp_path, make_model, capsys, measures, message
):
    save_pretrained(make_model(), tmp_path / "models" / "baseline-s0")
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"variants": ["none"], "measures": measures}))
    arguments = ["all", "--study", str(study), "--runs", str(tmp_path / "models")]
    assert main([*arguments, "--out", str(tmp_path / "res")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()
