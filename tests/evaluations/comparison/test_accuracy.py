from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

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


def test_an_unknown_task_is_refused_before_any_model_is_read(tmp_path, capsys):
    arguments = ["accuracy", "nowhere", "--tasks", "ioi,gendr", "--out", str(tmp_path)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'gendr': did you mean 'gender'?" in line
    assert not list(tmp_path.iterdir())


def test_the_stored_models_of_the_study_are_small_and_the_table_is_theirs(tmp_path):
    answer = Path(__file__).parents[3] / "results" / "answer"
    table = pd.read_csv(answer / "accuracy.csv").set_index("model")
    models = sorted(path for path in (answer / "models").iterdir() if path.is_dir())
    assert [path.name for path in models] == sorted(table.index)
    for path in models:
        assert sum(file.stat().st_size for file in path.iterdir()) < 2**20
        weights = load_file(path / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    # one model of each group, and one that fails IOI
    chosen = [path for path in models if path.name.endswith("-s0") or path.name == "local-k4-s3"]
    assert main(["accuracy", *map(str, chosen), "--tasks", "ioi", "--out", str(tmp_path)]) == 0
    again = pd.read_csv(tmp_path / "accuracy.csv").set_index("model")
    for path in chosen:
        for column in ("ioi", "ioi_low", "ioi_high", "clean_perplexity"):
            known = table.loc[path.name, column]
            assert again.loc[path.name, column] == pytest.approx(known, abs=1e-9)
