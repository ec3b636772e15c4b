"""sat-eval acdc from end to end."""

from __future__ import annotations

import dataclasses

import pytest

from evaluations import tables
from evaluations.cli import main
from evaluations.core.inputs import default_task
from evaluations.core.models import prepared
from evaluations.core.options import make
from evaluations.core.record import read_records
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.evaluation import one_length
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.suite.circuits.cases import task, write_prompts

QUICK = ["--random-circuits", "2", "--bootstrap", "1", "--prompts", "6", "--null-draws", "1"]


@pytest.fixture
def evaluate(make_model, tokenizer, tmp_path, monkeypatch, capsys):
    """Run ``sat-eval acdc`` on prompts of a file; returns exit code, stdout, stderr, records."""
    monkeypatch.chdir(tmp_path)
    save_pretrained(make_model(), tmp_path / "tiny")
    write_prompts(tmp_path / "pairs.json", ("Tom", "Anna", "cat", "park"))

    def run(*arguments: str, task: bool = True):
        more = ["--task", "pairs.json"] if task else []
        code = main(["acdc", *QUICK, "--out", "res", *more, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err, read_records("res")[0]

    return run


def test_a_model_gets_tables_figures_circuits_and_a_record(evaluate, tmp_path, caplog):
    code, out, _, (record,) = evaluate("tiny", "--tau", "0.0001,9")
    assert code == 0
    assert record.config["taus"] == [0.0001, 9.0]
    assert record.data["n"] == 6
    assert record.data["held_out"]["n"] == 6
    assert "--bootstrap 1 gives no standard deviation: it takes 5" in caplog.text
    assert f"{record.metric('edges').value:,.0f}" in out
    assert "Random" in out
    assert record.extra["marked"]  # random weights
    assert "tiny does not do the task" in caplog.text
    assert "tiny †" in out
    stem = f"res/{tables.stem('acdc', [record])}"
    assert stem.startswith("res/acdc-pairs-tiny-")
    for name in (".png", "-curves.svg", "/tiny.circuit", "/tiny.graphml"):
        assert (tmp_path / f"{stem}{name}").is_file()
    assert read_records("res")[1] == {}
    assert "1 were there already" in evaluate("tiny", "--tau", "0.0001,9")[1]


def test_prompts_begin_with_the_end_of_text_token_unless_told_not_to(evaluate):
    quick = ("tiny", "--method", "eap", "--edges", "20")
    *_, (with_bos,) = evaluate(*quick)
    *_, records = evaluate(*quick, "--no-bos")
    (without,) = [one for one in records if one.data["bos"] is False]
    length = int(next(iter(with_bos.data["lengths"])))
    assert int(next(iter(without.data["lengths"]))) == length - 1
    assert with_bos.metric("edges_chosen").value == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tau", "0"), "positive number"),
        (("--tau", "nan"), "positive number"),
        (("--tau", "-0.1"), "positive number"),
        (("--tau", "much"), "numbers, separated by commas"),
        (("--method", "acd"), "did you mean 'acdc'"),
        (("--engine", "quick"), "choices: auto-circuit, fast"),
        (("--task", "oii"), "did you mean 'ioi'"),
        (("--task", "none.json"), "there is no file"),
        (("--method", "eap", "--score-by", "kl"), "zero for every edge"),
        (("--prompts", "0"), "at least one prompt"),
        (("--held-out", "-1"), "0 prompts or more"),
        (("--method", "eap-ig", "--points", "mine"), "choices: paper, released"),
        (("--method", "eap-ig", "--steps", "0"), "at least one step"),
        ((), "ioi-tinystories"),
    ],
)
def test_what_cannot_be_done_is_one_line(evaluate, arguments, message):
    code, out, err, records = evaluate("tiny", *arguments, task=False)
    assert (code, out, records) == (2, "", [])
    assert err.startswith("error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_thresholds_may_be_a_number_several_or_text():
    for given in ("0.003,0.01", [0.003, 0.01], (0.003, 0.01)):
        assert make(CircuitConfig, {"tau": given}).tau == (0.003, 0.01)
    for given in (0.03, "0.03"):
        assert make(CircuitConfig, {"tau": given}).tau == (0.03,)


def test_the_task_is_the_ioi_of_what_a_model_was_trained_on(make_model, tokenizer):
    model = prepared(make_model(), "tiny", tokenizer)
    for data in ("demo", "demo:5000", "facts", "numbers:900"):
        assert default_task(dataclasses.replace(model, data=data)) == "ioi"
    other = dataclasses.replace(model, data="roneneldan/TinyStories")
    assert default_task(other) == "ioi-tinystories"
    assert default_task(dataclasses.replace(model, data=None)) == "ioi-tinystories"


def test_auto_circuit_gets_the_commonest_length():
    both = task(lengths=(5, 7), n=3)
    made = both.subset([0, 1, 2, 3, 4])
    chosen = one_length(made)
    assert [batch.clean.shape for batch in chosen.batches] == [(3, 5)]
    assert chosen.left_out == {"not of the commonest length": 2}
    assert one_length(chosen).content == chosen.content
