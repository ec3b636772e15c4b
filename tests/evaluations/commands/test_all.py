from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from evaluations import commands
from evaluations.battery import run as battery
from evaluations.cli import main
from evaluations.core.record import read_records
from sat_interp.io.pretrained import save_pretrained


@pytest.fixture
def stubs(monkeypatch) -> dict[str, list]:
    """Every part of the battery as a stub that notes what it was asked."""
    asked: dict[str, list] = {}

    def stub(name: str) -> Callable[..., None]:
        def command(models, data=None, out="results", **settings):
            print(f"{name} at work")
            asked.setdefault(name, []).append((models, data, out, settings))

        return command

    # the dictionary the battery asks, not the one the command line was made from
    names = [part.name for part in battery.PARTS]
    monkeypatch.setattr(commands, "COMMANDS", {name: stub(name) for name in names})
    return asked


def test_all_runs_every_part_and_prints_one_summary(stubs, tmp_path, capsys):
    arguments = ["all", "demo:baseline", "demo:local-k4", "--preset", "quick", "--data", "demo"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert set(stubs) == {"lm", "gates", "acdc", "sae", "neurons", "n2g"}
    (models, data, out, settings) = stubs["lm"][0]
    assert (models, data, out) == (["demo:baseline", "demo:local-k4"], "demo", str(tmp_path))
    assert settings == {"stories": 300, "activation_stories": 100, "resamples": 1000}
    assert stubs["gates"][0][0] == ["demo:local-k4"]
    assert "2 models, 6 parts: about" in told.out
    assert told.out.count("done") == 6 + 1  # the parts, and "less what is done"
    assert "at work" not in told.out
    assert (tmp_path / "logs" / "n2g.log").read_text() == "n2g at work\n"


def test_a_failed_part_makes_the_battery_fail_after_the_others(
    stubs, tmp_path, capsys, monkeypatch
):
    from sat_interp._util.errors import UserError

    def fails(models, **settings):
        raise UserError("no prompts")

    monkeypatch.setitem(commands.COMMANDS, "acdc", fails)
    assert main(["all", "demo:baseline", "--preset", "quick", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.strip() == "error: 1 of 6 parts failed: acdc: no prompts"
    assert "n2g" in stubs


def test_a_study_names_the_models_and_what_is_not_trained_is_told(stubs, tmp_path, capsys):
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
    assert stubs["lm"][0][0] == [str(run)]
    assert set(stubs) == {"lm"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is no model to evaluate: name one, or --study FILE"),
        (["demo:baseline", "--parts", "neuron"], "unknown part 'neuron': did you mean 'neurons'?"),
        (["demo:baseline", "--jobs", "0"], "--jobs must be at least 1"),
        (["demo:baseline", "--preset", "fast"], "--preset must be one of"),
        (["--study", "absent.yaml"], "absent.yaml is no study"),
    ],
)
def test_what_is_wrong_is_one_line(stubs, capsys, arguments, told):
    assert main(["all", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_real_part_in_a_process_of_its_own_leaves_records(
    make_model, stories_file, tmp_path, capsys
):
    tiny = str(save_pretrained(make_model(), tmp_path / "tiny"))
    arguments = ["all", tiny, "--preset", "quick", "--parts", "lm", "--jobs", "2",
                 "--data", str(stories_file), "--out", str(tmp_path / "res")]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    (record,) = read_records(tmp_path / "res")[0]
    assert (record.evaluation, record.model["name"]) == ("lm", "tiny")
