from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from evaluations.cli import main
from evaluations.record import read_records
from sat_interp.checkpoint import save_pretrained
from tests.evaluations.conftest import STORIES

FAST = ["--resamples", "50", "--activation-stories", "3"]


@pytest.fixture
def evaluate(stories_file, tmp_path, monkeypatch, capsys):
    """Run ``sat-eval lm`` on the stories; returns exit code, stdout, stderr and records."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, data: bool = True):
        more = ["--data", str(stories_file)] if data else []
        code = main(["lm", *FAST, "--out", "res", *more, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err, read_records("res")[0]

    return run


def test_several_models_give_a_table_and_a_record_each(evaluate, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path / "base")
    save_pretrained(make_model("local"), tmp_path / "gated")
    code, out, err, records = evaluate("gated", "base")
    assert (code, err) == (0, "")
    assert {record.model["name"] for record in records} == {"base", "gated"}
    assert out.index("base") < out.index("gated")  # the baseline comes first
    for record in records:
        assert f"{record.metric('perplexity').value:,.2f}" in out
        assert record.data["n_stories"] == len(STORIES)
    assert "Perplexity ↓" in out
    assert "2 records in res" in out
    assert "2 were there already" in evaluate("gated", "base")[1]


def test_a_gpt2_of_hugging_faces_goes_through(evaluate, tokenizer, text, tmp_path):
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tokenizer),
                   initializer_range=0.3)
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, _, err, records = evaluate("gpt2")
    assert (code, err) == (0, "")
    (record,) = records
    nats, scored = 0.0, 0
    for story in range(len(text)):
        end = text.corpus.end_of_text
        ids = torch.tensor([[end, *text.corpus.story(story).tolist(), end]])
        # transformers' own loss: a mean over the tokens after the first
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        scored += ids.shape[1] - 1
    assert record.metric("loss").value == pytest.approx(nats / scored, rel=1e-4)
    assert record.metric("loss").n == scored
    assert record.metric("cut_tokens").value == 0


def test_the_default_text_is_what_was_held_out_in_training(
    evaluate, make_model, stories_file, tmp_path
):
    save_pretrained(make_model(), tmp_path / "run" / "model")
    config = {"config": {"data": str(stories_file)}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    code, _, _, (record,) = evaluate("run", data=False)
    assert code == 0
    assert record.data["split"] == "validation"
    assert record.data["n_stories"] < len(STORIES)


def test_a_config_file_and_the_printed_configuration_agree(evaluate, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["lm", "x", "--seed", "5", "--force", "--print_config"])
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "seed: 5" in printed
    (tmp_path / "lm.yaml").write_text(printed.replace("- x", "- tiny"))
    code, _, err, _ = evaluate("--config", "lm.yaml")
    assert code == 2
    assert "tiny" in err


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from evaluations.cli import main\n"
        "try: main(['lm', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sat-eval lm demo:baseline demo:local-k4 demo:global-k4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere"),
        (["./nowhere/at/all"], "no such directory"),
        (["demo:baselin"], "did you mean 'demo:baseline'"),
        (["a-file"], "is a file"),
        (["empty"], "empty holds no model"),
        (["damaged"], "damaged"),
        ([], "MODEL"),
        (["tiny", "--stories", "0"], "--stories"),
        (["tiny", "--stories", "many"], "--stories must be a whole number, not 'many'"),
        (["tiny", "--resamples", "-1"], "resamples"),
        (
            ["tiny", "--dtype", "float8"],
            "must be one of 'float32', 'float64', 'bfloat16', not 'float8'",
        ),
        (["tiny", "--device", "toaster"], "toaster"),
        (["tiny", "--sead", "1"], "--sead"),
        (["tiny", "--tokenizer", "gpt2"], "do not belong together"),
        (["tiny", "--tokenizer", "./nothing"], "nothing"),
        (["tiny", "--data", "missing.jsonl"], "missing.jsonl"),
        (["tiny", "--data", "empty.txt"], "no text"),
        (["tiny", "--data", "table.csv"], "table.csv"),
        (["tiny", "--data", "demo:x"], "demo:x"),
        (["tiny", "--validation", "missing.txt"], "missing.txt"),
        (["tiny", "--out", "a-file"], "a-file"),
        (["tiny", "nowhere"], "1 of 2 models failed: nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    evaluate, model_directory, tmp_path, arguments, told
):
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "table.csv").write_text("text\nx\n")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model_directory.iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:100] if "safetensors" in path.name else content)
    code, _, err, _ = evaluate(*arguments, data="--data" not in arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def test_an_unknown_command_is_one_line(capsys):
    assert main(["lmm"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "lmm" in err
