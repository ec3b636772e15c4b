from __future__ import annotations

import re

import pytest

from evaluations.battery import command
from evaluations.core.options import TextOptions
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.conftest import STORIES


def check(models, **text):
    return command.check(models, TextOptions(**text), None)


ALL = ["lm", "gates", "acdc", "sae", "neurons", "n2g", "ablate", "trace", "lens", "circuits"]


def test_each_evaluation_is_answered_without_weights(foreign, stories_file, capsys):
    (found,) = check([str(foreign)], data=str(stories_file))
    answers = {one.evaluation: one for one in found}
    assert list(answers) == ALL
    assert answers["gates"].reason.startswith("this model has no gates")
    assert answers["lm"].budget.startswith(f"{len(STORIES)} stories, ")
    assert answers["neurons"].budget == "128 neurons"
    # what `sae` says of the same text: tests/evaluations/sae/test_budget.py
    assert answers["sae"].reason.startswith("no autoencoder can be trained on a text of")
    assert answers["acdc"].reason  # a tokenizer of 300 tokens has not the names
    assert all(one.seconds for one in found if not one.reason)
    printed = capsys.readouterr().out
    assert "GPT2LMHeadModel, 2 layers of 4 heads" in printed
    assert "beyond the context" in printed


def test_without_text_what_reads_text_cannot_run(foreign, capsys):
    (found,) = check([str(foreign)])
    reasons = {one.evaluation: one.reason for one in found}
    assert {reasons[name] for name in ("lm", "sae", "neurons", "n2g")} == {"no text"}
    assert "name text to measure it on with --data" in capsys.readouterr().out.replace("\n", " ")


def test_a_model_of_ours_is_measured_on_its_own_text(make_model, stories_file, tmp_path):
    card = {"data": str(stories_file)}
    directory = str(save_pretrained(make_model("local"), tmp_path / "mine", card))
    (found,) = check([directory])
    assert {one.evaluation for one in found if not one.reason} >= {"lm", "gates", "neurons"}


def test_a_model_that_cannot_be_read_costs_no_other_its_answers(foreign, stories_file, capsys):
    with pytest.raises(UserError, match="nonsense"):
        check(["./nonsense", str(foreign)], data=str(stories_file))
    assert "foreign" in capsys.readouterr().out


def test_bundled_models_can_go_through_all_but_their_missing_gates():
    (found,) = check(["demo:baseline"])
    assert [one.evaluation for one in found if one.reason] == ["gates"]
    assert not any(one.is_rough for one in found)


def test_the_budget_of_an_autoencoder_is_that_of_the_text(foreign, tmp_path, capsys):
    budgets = {}
    for times in (20, 400):
        file = tmp_path / f"{times}.txt"
        file.write_text("\n<|endoftext|>\n".join(STORIES * times))
        (found,) = check([str(foreign)], data=str(file))
        budgets[times] = next(one.budget for one in found if one.evaluation == "sae")
    assert budgets[400] == "1,000,000 tokens at blocks.0.hook_mlp_out"
    assert re.fullmatch(
        r"[1-9]\d,\d{3} tokens \((19\.\d|20\.0) passes over the text\) at .*", budgets[20]
    )
