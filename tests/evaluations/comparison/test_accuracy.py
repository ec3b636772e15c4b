from __future__ import annotations

import pandas as pd
import pytest

from evaluations import load_model
from evaluations.cli import main
from evaluations.tasks.pairs import wilson
from evaluations.tasks.registry import make_task


def test_the_table_is_what_the_logits_say(tmp_path, capsys):
    """Against a twin that reads the logits prompt by prompt."""
    arguments = ["accuracy", "demo:local-k4", "nowhere", "--tasks", "gender,greater-than"]
    assert main([*arguments, "--prompts", "20", "--seed", "3", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "nowhere" in shown.err
    row = pd.read_csv(tmp_path / "accuracy.csv").set_index("model").loc["demo:local-k4"]
    loaded = load_model("demo:local-k4", "cpu")
    right = n = 0
    for batch in make_task("gender", loaded.tokenizer, 20, 3).batches:
        for prompt, good, bad in zip(batch.clean, batch.right, batch.wrong, strict=True):
            last = loaded.model(prompt[None])[0, -1]
            right += bool(last[good] > last[bad])
            n += 1
    assert (n, row["gender_n"]) == (20, 20)
    assert row["gender"] == pytest.approx(right / n)
    assert (row["gender_low"], row["gender_high"]) == pytest.approx(wilson(right, n))
    assert pd.isna(row["greater-than"])
    assert row["clean_perplexity"] == pytest.approx(2.078, abs=0.01)
    assert "no prompt can be used" in (tmp_path / "accuracy.md").read_text()


def test_no_model_and_no_prompt_are_refused(tmp_path, capsys):
    assert main(["accuracy", "nowhere", "--out", str(tmp_path)]) == 2
    assert not (tmp_path / "accuracy.csv").exists()
    assert main(["accuracy", "demo:baseline", "--prompts", "0", "--out", str(tmp_path)]) == 2
    assert "prompts must be at least 1, not 0" in capsys.readouterr().err
