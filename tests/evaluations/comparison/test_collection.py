"""What a report shows: the models and evaluations asked for, in that order."""

from __future__ import annotations

import pytest
import torch

import evaluations as ev
from evaluations.comparison.collection import report
from sat_interp._util.errors import UserError
from tests.evaluations.comparison.study_records import acdc, gates, lm

L4 = {"ablation": gates("local", 4)}


@pytest.fixture
def results(tmp_path):
    out = tmp_path / "results"
    for seed in (0, 1):
        for name, more in (("baseline", {}), ("local-k4", L4)):
            folder = out / f"{name}-s{seed}"
            lm(f"{name}-s{seed}", seed, 2.0 + seed, **more).write(folder / "lm-0123456789ab.json")
            acdc(f"{name}-s{seed}", seed, 9, **more).write(folder / "acdc-0123456789ab.json")
    return out


def names(table, column="model"):
    return list(table.frame()[column])


def test_the_function_of_notebooks_writes_and_prints_nothing(results, capsys):
    before = sorted(results.rglob("*"))
    made = ev.report(out=str(results))
    assert sorted(results.rglob("*")) == before
    assert capsys.readouterr() == ("", "")
    assert names(made.tables[0]) == ["baseline", "local-k4"]
    assert set(made.frame["evaluation"]) == {"lm", "acdc"}
    assert [answer.evaluation for answer in made.summary] == ["lm", "acdc"]
    shown = made._repr_html_()
    assert "Does it predict text as well?" in shown
    assert "<table" in shown
    assert len(repr(made)) < 200


def test_rows_are_in_the_order_given(results):
    made = report(["local-k4", "baseline-s1"], out=results)
    assert names(made.tables[0]) == ["local-k4", "baseline-s1"]
    (spec,) = (spec for spec in made.specs if spec.name == "lm")
    (language, *_) = spec.report.tables(made.shown(spec))
    assert names(language) == ["local-k4-s0", "local-k4-s1", "baseline-s1"]
    assert names(report("baseline-s0", out=results).tables[0]) == ["baseline-s0"]


def test_a_directory_is_the_model_in_it_under_whatever_name(results, make_model, tmp_path):
    model = make_model("local")
    ev.lm({"mine": model}, data=["One day, Tim went to the park."] * 3, out=str(results))
    for name in ("renamed", "other"):
        model.save_pretrained(tmp_path / name)
        torch.nn.init.normal_(model.unembed.W_U)
    made = report(tmp_path / "renamed", out=results)
    assert names(made.tables[0]) == ["mine"]
    with pytest.raises(UserError, match="no record is of the model in .*other: measure it first"):
        report(tmp_path / "other", out=results)


def test_only_and_exclude_choose_evaluations_and_models(results):
    made = report(out=results, only="lm")
    assert set(made.frame["evaluation"]) == {"lm"}
    assert [column.title for column in made.tables[0].columns][4:] == ["Perplexity", "L1"]
    assert not any("sat-eval acdc" in line for line in made.tables[0].commands)
    made = report(out=results, exclude=["acdc", "local-k4-s0"])
    assert set(made.frame["evaluation"]) == {"lm"}
    assert set(made.frame["model"]) == {"baseline-s0", "baseline-s1", "local-k4-s1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": "local-k5"}, "unknown model 'local-k5'.*local-k4"),
        ({"only": "lmm"}, "unknown evaluation 'lmm': did you mean 'lm'"),
        ({"exclude": "nothing"}, "unknown model or evaluation 'nothing'"),
        ({"exclude": ["lm", "acdc"]}, "holds no record"),
    ],
)
def test_what_is_not_there_is_one_line(results, options, message):
    with pytest.raises(UserError, match=message):
        report(out=results, **options)


def test_files_are_written_when_asked_for(results, tmp_path):
    written = report(out=results).write(tmp_path / "elsewhere")
    assert tmp_path / "elsewhere" / "report.html" in written
    assert all(path.is_file() for path in written)
    assert not (results / "report").exists()
