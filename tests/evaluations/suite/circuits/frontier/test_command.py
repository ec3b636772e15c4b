"""sat-eval circuits from end to end."""

from __future__ import annotations

import pytest

from evaluations.cli import main
from evaluations.core.options import TaskOptions, make_request
from evaluations.core.record import read_records
from evaluations.registry import find_spec
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.suite.circuits.cases import write_prompts

QUICK = ["--methods", "eap-ig", "--ablations", "cf", "--sizes", "4,20", "--prompts", "10"]
QUICK += ["--random-circuits", "1", "--restorations", "1", "--resamples", "20"]


@pytest.fixture
def evaluate(make_model, tokenizer, tmp_path, monkeypatch, capsys):
    """Run ``sat-eval circuits`` on a file's prompts; returns exit code, stdout, stderr, records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    save_pretrained(make_model(), tmp_path / "tiny")
    write_prompts(tmp_path / "pairs.json", ("Tom", "Anna", "cat", "park"))

    def run(*arguments: str):
        code = main(
            ["circuits", "tiny", *QUICK, "--task", "pairs.json", "--out", "res", *arguments]
        )
        shown = capsys.readouterr()
        return code, shown.out, shown.err, read_records("res")[0]

    return run


def test_a_model_and_its_control_get_tables_figures_and_records(evaluate, tmp_path, caplog):
    code, out, _, records = evaluate("--control", "untrained")
    assert code == 0
    by_name = {record.model["name"]: record for record in records}
    assert set(by_name) == {"tiny", "tiny [untrained]"}
    assert by_name["tiny [untrained]"].model["control"]["kind"] == "untrained"
    for name, record in by_name.items():
        nulls = {(curve["method"], curve["null"]) for curve in record.extra["curves"]}
        assert ("eap-ig", True) in nulls
        assert record.extra["marked"]  # random weights
        assert f"{name} does not do the task" in caplog.text
        assert f"{name} †" in " ".join(out.split())
    assert record.data["n"] == 10
    names = {path.name for path in (tmp_path / "res").glob("circuits-*")}
    for ending in (".md", ".csv", ".png", "-models.png", "-overlap-tiny.png"):
        assert any(name.endswith(ending) for name in names), ending
    assert "2 were there already" in evaluate("--control", "untrained")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "acdc,eapig"), "unknown method 'eapig': did you mean 'eap-ig'"),
        (("--ablations", "cf,cf"), "every ablation is named once"),
        (("--penalties", "0.01,-1"), "at least 0, not -1.0"),
        (("--prompts", "1"), "1 prompts to find circuits on and 1 others to measure them on"),
        (("--held-out", "0"), "it takes 5 of each"),
        (("--control", "untrianed"), "did you mean 'untrained'"),
        (("--task", "oii"), "did you mean 'ioi'"),
    ],
)
def test_what_cannot_be_done_is_one_line(evaluate, arguments, message):
    code, _, err, records = evaluate(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, records) == (2, [])
    assert len(lines) == 1
    assert message in lines[0]


def test_it_takes_more_prompts_than_one_circuit_does():
    prompts = {}
    for name in ("circuits", "acdc"):
        spec = find_spec(name)
        task = make_request([], spec.options, spec.shared, {}).task
        assert isinstance(task, TaskOptions)
        prompts[name] = task.prompts
    assert prompts == {"circuits": 400, "acdc": 100}
    spec = find_spec("circuits")
    assert make_request([], spec.options, spec.shared, {"prompts": 7}).task.prompts == 7
